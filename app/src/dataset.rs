//! What is known about all photos of one subject, and the rules that judge the set.

use crate::api::MAX_PHOTOS;
use crate::photo::{self, PhotoFacts, PhotoProblem, Severity};

/// Fewer teach the model a picture, not a subject.
pub const MIN_PHOTOS: usize = 3;
/// From here on more photos help little.
pub const GOOD_PHOTOS: usize = 10;

/// Two photos whose hashes differ in at most this many of 256 bits look alike.
///
/// Measured on the 33 photos of `photo::SOFT_BELOW`. The same photo, changed: JPEG at quality 30 up to 25 bits, blurred
/// with sigma 2 up to 5, brightened (gamma 0.7) up to 15, cut to its middle 98% up to 22 and 95% up to 43, shifted by 4%
/// 46 in the median. Different photos of the same subject: 64 at least (two of one dog on one sofa), next 82, 120 in the
/// median; of different subjects 79 at least.
pub const ALIKE_BITS: u32 = 48;
/// A set whose median distance is below this was taken from one spot: see `ALIKE_BITS`.
const LITTLE_VARIETY_BITS: u32 = 70;
/// The median of every set measured is above this.
const GOOD_VARIETY_BITS: u32 = 100;

/// How different the photos are from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variety {
    Good,
    Some,
    Little,
}

/// What is wrong with the set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetProblem {
    #[error("add at least {} more: a subject needs {min} usable photos", .min - .usable)]
    TooFew { usable: usize, min: usize },
    #[error("{count} photos are more than {max}, the most in one run")]
    TooMany { count: usize, max: usize },
    #[error("{count} photos work; {good} or more work better")]
    Few { count: usize, good: usize },
    #[error("{count} photos look alike; keep the best of each")]
    LookAlike { count: usize },
    #[error("the photos are much alike; change the background, the light and the angle")]
    LittleVariety,
}

impl SetProblem {
    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooFew { .. } => "too_few_photos",
            Self::TooMany { .. } => "too_many_photos",
            Self::Few { .. } => "few_photos",
            Self::LookAlike { .. } => "look_alike",
            Self::LittleVariety => "little_variety",
        }
    }

    pub fn severity(&self) -> Severity {
        match self {
            Self::TooFew { .. } | Self::TooMany { .. } => Severity::Error,
            _ => Severity::Advice,
        }
    }
}

/// The verdict on a set, and on each photo in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SetVerdict {
    /// For each photo its problems by itself and beside the others; empty for one that is not known yet.
    pub photos: Vec<Vec<PhotoProblem>>,
    pub problems: Vec<SetProblem>,
    /// Known photos.
    pub count: usize,
    /// Known photos without an error.
    pub usable: usize,
    /// Photos that look like one before them or have one after them that does.
    pub alike: usize,
    /// From three photos on.
    pub variety: Option<Variety>,
}

impl SetVerdict {
    /// Nothing stands against training on it.
    pub fn is_ready(&self) -> bool {
        let no_error = self.problems.iter().all(|p| p.severity() < Severity::Error);
        no_error && self.usable == self.count
    }

    /// One sentence for the whole set, without a full stop.
    pub fn sentence(&self) -> String {
        let photos = |n: usize| {
            if n == 1 {
                "1 photo".into()
            } else {
                format!("{n} photos")
            }
        };
        if self.count == 0 {
            return "No photos yet".into();
        }
        let mut sentence = photos(self.count);
        match self.variety {
            Some(Variety::Good) => sentence += ", good variety",
            Some(Variety::Some) => sentence += ", some variety",
            Some(Variety::Little) => sentence += ", little variety",
            None => {}
        }
        if self.alike > 0 {
            sentence += &format!("; {} look alike", self.alike);
        }
        if self.usable < self.count {
            sentence += &format!("; {} cannot be used yet", self.count - self.usable);
        }
        for problem in &self.problems {
            match problem {
                SetProblem::TooFew { usable, min } => sentence += &format!("; {} more to go", min - usable),
                SetProblem::Few { good, .. } => sentence += &format!("; {good} or more work better"),
                SetProblem::TooMany { max, .. } => sentence += &format!("; the most is {max}"),
                SetProblem::LookAlike { .. } | SetProblem::LittleVariety => {}
            }
        }
        sentence
    }
}

/// Judges the photos of one subject in their order. `None` stands for a photo that cannot be read or is not known yet:
/// it keeps its number but counts for nothing.
pub fn judge(photos: &[Option<&PhotoFacts>], resolution_px: u32) -> SetVerdict {
    let mut verdict = SetVerdict {
        photos: photos
            .iter()
            .map(|facts| facts.map_or_else(Vec::new, |facts| photo::judge(facts, resolution_px)))
            .collect(),
        count: photos.iter().flatten().count(),
        ..SetVerdict::default()
    };
    let distances = compare(photos, &mut verdict);
    let is_error = |problem: &PhotoProblem| problem.severity() == Severity::Error;
    let known = photos.iter().zip(&verdict.photos).filter(|(facts, _)| facts.is_some());
    verdict.usable = known.filter(|(_, problems)| !problems.iter().any(is_error)).count();
    if verdict.count >= MIN_PHOTOS {
        verdict.variety = median(distances).map(|bits| match bits {
            ..LITTLE_VARIETY_BITS => Variety::Little,
            LITTLE_VARIETY_BITS..GOOD_VARIETY_BITS => Variety::Some,
            _ => Variety::Good,
        });
    }
    verdict.problems = set_problems(&verdict);
    verdict
}

fn set_problems(verdict: &SetVerdict) -> Vec<SetProblem> {
    let SetVerdict { count, usable, .. } = *verdict;
    let mut problems = Vec::new();
    if usable < MIN_PHOTOS {
        problems.push(SetProblem::TooFew {
            usable,
            min: MIN_PHOTOS,
        });
    } else if count < GOOD_PHOTOS {
        problems.push(SetProblem::Few {
            count,
            good: GOOD_PHOTOS,
        });
    } else if count > MAX_PHOTOS {
        problems.push(SetProblem::TooMany { count, max: MAX_PHOTOS });
    }
    if verdict.alike > 0 {
        problems.push(SetProblem::LookAlike { count: verdict.alike });
    }
    if verdict.variety == Some(Variety::Little) {
        problems.push(SetProblem::LittleVariety);
    }
    problems
}

/// Marks each photo that looks like an earlier one, and gives all distances.
fn compare(photos: &[Option<&PhotoFacts>], verdict: &mut SetVerdict) -> Vec<u32> {
    let mut distances = Vec::new();
    let mut alike = vec![false; photos.len()];
    for (later, facts) in photos.iter().enumerate() {
        let Some(facts) = facts else { continue };
        let mut nearest: Option<(u32, usize)> = None;
        for (earlier, other) in photos[..later].iter().enumerate() {
            let Some(other) = other else { continue };
            let distance = facts.hash.distance(&other.hash);
            distances.push(distance);
            if distance <= ALIKE_BITS {
                alike[earlier] = true;
                alike[later] = true;
                nearest = nearest.into_iter().chain([(distance, earlier)]).min();
            }
        }
        if let Some((distance, earlier)) = nearest {
            let photo = earlier + 1;
            verdict.photos[later].push(PhotoProblem::AlmostSame { photo, distance });
        }
    }
    verdict.alike = alike.iter().filter(|alike| **alike).count();
    distances
}

fn median(mut values: Vec<u32>) -> Option<u32> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::photo::tests::good;

    fn set(facts: &[PhotoFacts]) -> SetVerdict {
        judge(&facts.iter().map(Some).collect::<Vec<_>>(), 512)
    }

    fn looks(looks: impl IntoIterator<Item = u64>) -> Vec<PhotoFacts> {
        looks.into_iter().map(good).collect()
    }

    #[test]
    fn the_sentence_says_what_the_set_is() {
        assert_eq!(set(&[]).sentence(), "No photos yet");
        assert_eq!(set(&looks(0..1)).sentence(), "1 photo; 2 more to go");
        assert_eq!(
            set(&looks(0..5)).sentence(),
            "5 photos, good variety; 10 or more work better"
        );
        assert_eq!(set(&looks(0..12)).sentence(), "12 photos, good variety");
        let twice = looks((0..10).chain([4]));
        assert_eq!(set(&twice).sentence(), "11 photos, good variety; 2 look alike");
    }

    #[test]
    fn a_look_alike_names_the_earlier_photo() {
        let verdict = set(&looks([0, 1, 2, 1]));
        assert_eq!(verdict.photos[3][0].to_string(), "almost the same as photo 2");
        assert!(verdict.photos[1].is_empty());
        assert_eq!(verdict.alike, 2);
    }

    #[test]
    fn two_photos_are_too_few_and_a_bad_one_does_not_count() {
        assert!(!set(&looks(0..2)).is_ready());
        assert!(set(&looks(0..3)).is_ready());
        let mut photos = looks(0..3);
        photos[1].crop.side = 100.0;
        let verdict = set(&photos);
        assert!(!verdict.is_ready());
        assert_eq!(verdict.problems, [SetProblem::TooFew { usable: 2, min: 3 }]);
        assert_eq!(
            verdict.sentence(),
            "3 photos, good variety; 1 cannot be used yet; 1 more to go"
        );
    }

    #[test]
    fn an_unknown_photo_keeps_its_number() {
        let (a, b) = (good(0), good(0));
        let verdict = judge(&[None, Some(&a), Some(&b)], 512);
        assert_eq!(verdict.count, 2);
        assert_eq!(verdict.photos[2][0].to_string(), "almost the same as photo 2");
    }

    #[test]
    fn a_set_from_one_spot_has_little_variety() {
        let verdict = set(&looks([7; 10]));
        assert_eq!(verdict.variety, Some(Variety::Little));
        assert!(verdict.problems.contains(&SetProblem::LittleVariety));
        assert!(verdict.is_ready(), "advice does not stop anyone");
    }
}
