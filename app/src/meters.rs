//! What the meters of a run say in plain words, and which step they would pick.
//!
//! Thresholds are from runs of the starter with eight subjects (docs/measurements.md): with prior preservation likeness
//! rose from 0.3 to 0.75 in the mean and drift stayed below 0.1; without it drift rose to between 0.3 and 0.9. Where a photo
//! was held out, the loss on it was back at what it was before training when 0.35 to 0.45 was learned by heart.

use std::collections::BTreeMap;

use crate::run::Reading;

/// From here on samples show the subject.
const LIKE: f32 = 0.6;
/// From here on others of its kind show it too.
const DRIFTED: f32 = 0.3;
/// From here on the photo that is held out has lost what it had gained.
const BY_HEART: f32 = 0.35;

/// How far along a round of samples is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doneness {
    Learning,
    Good,
    Overcooked,
}

impl Doneness {
    pub fn of(reading: &Reading) -> Self {
        if has_drifted(reading) || by_heart(reading) >= BY_HEART {
            Self::Overcooked
        } else if reading.likeness >= LIKE {
            Self::Good
        } else {
            Self::Learning
        }
    }
}

fn has_drifted(reading: &Reading) -> bool {
    reading.drift.is_some_and(|drift| drift >= DRIFTED)
}

/// How much of what it learned holds for its photos alone, from 0 to 1; 0 where no photo is held out.
fn by_heart(reading: &Reading) -> f32 {
    reading.overfit.map_or(0.0, |overfit| overfit.share().max(0.0))
}

/// The step whose samples are like the subject while its kind is itself and the photos are not learned by heart; none
/// before one shows the subject.
pub fn best(readings: &BTreeMap<u32, Reading>) -> Option<u32> {
    // Half: in every run some is learned by heart before the subject shows.
    let score = |reading: &Reading| reading.likeness - reading.drift.unwrap_or(0.0).max(0.0) - 0.5 * by_heart(reading);
    let is_good = |reading: &Reading| Doneness::of(reading) == Doneness::Good;
    let shows_it = readings.iter().filter(|(step, r)| **step > 0 && r.likeness >= LIKE);
    let best = shows_it.max_by(|(_, a), (_, b)| is_good(a).cmp(&is_good(b)).then(score(a).total_cmp(&score(b))));
    best.map(|(step, _)| *step)
}

/// One line about the newest reading.
pub fn sentence(readings: &BTreeMap<u32, Reading>) -> String {
    let Some((newest, reading)) = readings.last_key_value() else {
        return "Measured with each round of samples.".into();
    };
    let pick = match best(readings) {
        Some(step) if step == *newest && Doneness::of(reading) == Doneness::Overcooked => {
            " None before it was better.".to_owned()
        }
        Some(step) if step == *newest => " This round is the best so far.".to_owned(),
        Some(step) => format!(" Step {step} was the best so far."),
        None => String::new(),
    };
    match Doneness::of(reading) {
        _ if *newest == 0 => "Before training: this is how like your photos the base model's pictures are.".into(),
        Doneness::Learning => format!("Learning: the samples are not yet like your photos.{pick}"),
        Doneness::Good => {
            format!("Good: the samples are like your photos, and others of its kind are still themselves.{pick}")
        }
        Doneness::Overcooked if !has_drifted(reading) => format!(
            "Overcooked: it learns your photos by heart, and the one that it never saw gains nothing. Fewer steps or more photos help.{pick}"
        ),
        Doneness::Overcooked => format!(
            "Overcooked: others of its kind begin to look like your subject. Fewer steps or prior preservation keep them apart.{pick}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Overfit;

    fn readings(of: &[(u32, f32, f32)]) -> BTreeMap<u32, Reading> {
        let reading = |(step, likeness, drift): &(u32, f32, f32)| {
            let reading = Reading {
                likeness: *likeness,
                drift: Some(*drift),
                overfit: None,
            };
            (*step, reading)
        };
        of.iter().map(reading).collect()
    }

    /// The starter on a dog, with prior preservation.
    const WITH_PRIOR: [(u32, f32, f32); 4] = [
        (0, 0.39, 0.0),
        (120, 0.71, 0.20),
        (240, 0.87, -0.09),
        (360, 0.82, -0.20),
    ];
    /// The same without.
    const WITHOUT: [(u32, f32, f32); 4] = [(0, 0.39, 0.0), (60, 0.70, 0.36), (240, 0.85, 0.65), (360, 0.62, 0.32)];

    #[test]
    fn a_run_is_learning_then_good_and_the_best_step_is_named() {
        let all = readings(&WITH_PRIOR);
        assert_eq!(best(&all), Some(240));
        assert!(sentence(&all).starts_with("Good") && sentence(&all).ends_with("Step 240 was the best so far."));
        let alone = sentence(&readings(&[(20, 0.9, 0.9)]));
        assert!(
            alone.starts_with("Overcooked") && alone.ends_with("None before it was better."),
            "{alone}"
        );
        assert!(sentence(&readings(&WITH_PRIOR[..1])).starts_with("Before training"));
        assert_eq!(best(&readings(&WITH_PRIOR[..1])), None, "the base model is no result");
        let early = readings(&[(0, 0.1, 0.0), (60, 0.3, 0.0)]);
        assert!(sentence(&early).starts_with("Learning"));
    }

    /// The starter on five photos of a vase, at three times its steps: likeness, and both losses.
    const BY_HEART_IN_THE_END: [(u32, f32, f32, f32); 5] = [
        (0, 0.01, 1.0, 1.0),
        (100, 0.72, 0.94, 0.83),
        (200, 0.82, 0.87, 0.68),
        (300, 0.73, 1.03, 0.58),
        (900, 0.88, 1.43, 0.31),
    ];

    #[test]
    fn photos_learned_by_heart_are_overcooked_and_count_in_the_best_step() {
        let reading = |(step, likeness, held_out_loss, training_loss): (u32, f32, f32, f32)| {
            let overfit = Some(Overfit {
                held_out_loss,
                training_loss,
            });
            let reading = Reading {
                likeness,
                drift: Some(0.0),
                overfit,
            };
            (step, reading)
        };
        let mut all: BTreeMap<u32, Reading> = BY_HEART_IN_THE_END.map(reading).into();
        assert_eq!(best(&all), Some(200));
        let words = sentence(&all);
        assert!(
            words.starts_with("Overcooked: it learns your photos by heart"),
            "{words}"
        );
        assert!(words.ends_with("Step 200 was the best so far."), "{words}");
        all.values_mut().for_each(|reading| reading.overfit = None);
        assert_eq!(best(&all), Some(900), "no photo is held out");
        assert!(sentence(&all).starts_with("Good"));
    }

    #[test]
    fn without_prior_preservation_it_is_overcooked() {
        let all = readings(&WITHOUT);
        assert!(sentence(&all).starts_with("Overcooked"), "{}", sentence(&all));
        assert_eq!(best(&all), Some(60), "the least drifted that shows the subject");
    }
}
