//! `--preset`: settings that suit a kind of subject, for the flags that are not given.

use app::preset::SubjectKind;
use app::recipe::{PriorPreservation, RecipeDraft};
use serde::Serialize;

/// A kind of subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
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
                prior_loss_weight: 1.0,
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
