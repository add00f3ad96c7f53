//! `--preset`: settings that suit a kind of subject or a size of card, for the flags that are not given.

use std::fmt;
use std::str::FromStr;

use app::preset::SubjectKind;
use app::recipe::{PriorPreservation, RecipeDraft};
use clap::ValueEnum;
use serde::{Serialize, Serializer};

/// One of each at most: `person`, `12gb`, `person,12gb`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presets {
    pub subject: Option<Preset>,
    pub card: Option<Card>,
}

impl FromStr for Presets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut presets = Self::default();
        for word in text.split(',') {
            let twice = match (Preset::from_str(word, true), Card::from_str(word, true)) {
                (Ok(subject), _) => presets.subject.replace(subject).is_some(),
                (_, Ok(card)) => presets.card.replace(card).is_some(),
                _ => return Err(format!("unknown preset `{word}`; known: {}", known())),
            };
            if twice {
                return Err(format!("`{text}` asks for two of a kind"));
            }
        }
        Ok(presets)
    }
}

fn known() -> String {
    names::<Preset>().chain(names::<Card>()).collect::<Vec<_>>().join(", ")
}

fn names<T: ValueEnum + 'static>() -> impl Iterator<Item = String> {
    let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    values.map(|value| value.get_name().to_owned())
}

impl fmt::Display for Presets {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let subject = self.subject.and_then(|subject| subject.to_possible_value());
        let card = self.card.and_then(|card| card.to_possible_value());
        let words: Vec<_> = subject.iter().chain(&card).map(|value| value.get_name()).collect();
        f.write_str(&words.join(","))
    }
}

impl Serialize for Presets {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A size of card, by the memory that it is sold with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Card {
    #[value(name = "6gb")]
    Gb6,
    #[value(name = "8gb")]
    Gb8,
    #[value(name = "12gb")]
    Gb12,
    #[value(name = "16gb")]
    Gb16,
    #[value(name = "24gb")]
    Gb24,
}

impl Card {
    /// Fills a draft with what lets Stable Diffusion 1.5 learn at 512 pixels, text encoder and class images included: from
    /// 12 GB on in 16 bits of either kind, below in bf16.
    pub fn fill(self, draft: &mut RecipeDraft) {
        draft.low_memory |= matches!(self, Self::Gb6 | Self::Gb8);
        draft.use_8bit_adam |= matches!(self, Self::Gb12 | Self::Gb16);
        draft.gradient_checkpointing |= self == Self::Gb12;
    }
}

/// A kind of subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    Person,
    Animal,
    Object,
    Style,
}

impl Preset {
    pub fn kind(self) -> SubjectKind {
        match self {
            Self::Person => SubjectKind::Person,
            Self::Animal => SubjectKind::Animal,
            Self::Object => SubjectKind::Object,
            Self::Style => SubjectKind::Style,
        }
    }

    /// Fills a draft for Stable Diffusion: 100 steps a photo within what suits the kind. Values that tutorials and trainers
    /// agree on; faces need the text encoder and many class images, objects are learned quickly, a style should colour
    /// everything and so has no class.
    pub fn fill(self, draft: &mut RecipeDraft, photos: usize) {
        let per_photo = u32::try_from(photos.saturating_mul(100)).unwrap_or(u32::MAX);
        let prior = |num_class_images| {
            Some(PriorPreservation {
                num_class_images,
                ..PriorPreservation::default()
            })
        };
        let (steps, learning_rate, train_text_encoder, prior) = match self {
            Self::Person => (per_photo.clamp(800, 1500), 1e-6, true, prior(200)),
            Self::Animal => (per_photo.clamp(400, 800), 1e-6, true, prior(50)),
            Self::Object => (per_photo.clamp(400, 800), 2e-6, true, prior(100)),
            Self::Style => (per_photo.clamp(400, 2000), 2e-6, false, None),
        };
        draft.max_train_steps = steps;
        draft.learning_rate = learning_rate;
        draft.train_text_encoder = train_text_encoder;
        draft.prior = prior;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_photos_within_bounds() {
        let steps = |preset: Preset, photos| {
            let mut draft = RecipeDraft::default();
            preset.fill(&mut draft, photos);
            draft.max_train_steps
        };
        assert_eq!([1, 10, 99].map(|n| steps(Preset::Person, n)), [800, 1000, 1500]);
        assert_eq!([1, 5, 99].map(|n| steps(Preset::Object, n)), [400, 500, 800]);
    }

    #[test]
    fn a_style_has_no_class() {
        let mut draft = RecipeDraft::default();
        Preset::Style.fill(&mut draft, 20);
        assert_eq!((draft.prior, draft.train_text_encoder), (None, false));
    }
}
