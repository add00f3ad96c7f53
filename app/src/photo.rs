//! What is known about one photo with its crop, and the rules that judge it.
//!
//! The rules live here once: the page applies them as photos come in, the server to what it is sent, the command line
//! to a folder.

use serde::{Deserialize, Serialize};

use crate::api::CropSquare;
use crate::pixels::{Exposure, PhotoHash};

/// Sharpness below this is "a bit soft".
///
/// Measured on 33 sharp photos of seven subjects (the DreamBooth dataset), cut to 512 px, then blurred with a Gaussian:
///
/// | sigma, px | 1 of 10 below | median | 9 of 10 below | most |
/// | --- | --- | --- | --- | --- |
/// | 0 (as they are) | 0.719 | 0.769 | 0.857 | 0.867 |
/// | 0.7 | 0.571 | 0.659 | 0.798 | 0.817 |
/// | 1.0 | 0.460 | 0.573 | 0.734 | 0.770 |
/// | 1.5 | 0.326 | 0.457 | 0.637 | 0.695 |
/// | 2.0 | 0.230 | 0.332 | 0.489 | 0.576 |
/// | 3.0 | 0.139 | 0.187 | 0.251 | 0.344 |
/// | 4.0 | 0.102 | 0.127 | 0.167 | 0.257 |
///
/// The least sharp of the originals has 0.717. So no sharp photo is called soft, at sigma 2 nine of ten are, at sigma 3
/// all. `app/tests/real_photos.rs` repeats this.
pub const SOFT_BELOW: f32 = 0.50;
/// Sharpness below this is "blurred": sigma 3 and more.
pub const BLURRED_BELOW: f32 = 0.25;
/// Share of nearly black (or white) pixels above which nothing is left to learn from. Good photos of things on black or
/// white paper reached 0.56 and 0.62.
pub const EMPTY_ABOVE: f32 = 0.85;

/// A photo and its crop, as figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhotoFacts {
    /// Size of the upright photo.
    pub width_px: u32,
    pub height_px: u32,
    /// In upright pixels. All that follows is about what lies inside it.
    pub crop: CropSquare,
    /// Some part of the photo was transparent and now is white.
    pub has_alpha: bool,
    /// 0 to 1, see `pixels::sharpness`.
    pub sharpness: f32,
    pub exposure: Exposure,
    pub hash: PhotoHash,
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Training works, but better without.
    Advice,
    /// Not trained on like this.
    Error,
}

/// What is wrong with a photo, with its numbers. `Display` is the verdict as people read it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PhotoProblem {
    #[error("too small after this crop: {side_px} of {min_px}")]
    TooSmall { side_px: u32, min_px: u32 },
    #[error("blurred")]
    Blurred { sharpness: f32, min: f32 },
    #[error("a bit soft")]
    Soft { sharpness: f32, min: f32 },
    #[error("nearly all black")]
    Black { share: f32, max: f32 },
    #[error("nearly all white")]
    White { share: f32, max: f32 },
    #[error("transparent parts become white")]
    Transparent,
    /// Found by `dataset::judge`, which sees all photos. Photos are counted from 1.
    #[error("almost the same as photo {photo}")]
    AlmostSame { photo: usize, distance: u32 },
}

impl PhotoProblem {
    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooSmall { .. } => "too_small",
            Self::Blurred { .. } => "blurred",
            Self::Soft { .. } => "soft",
            Self::Black { .. } => "black",
            Self::White { .. } => "white",
            Self::Transparent => "transparent",
            Self::AlmostSame { .. } => "almost_same",
        }
    }

    pub fn severity(&self) -> Severity {
        match self {
            // Enlarged more than twice, a photo teaches the model to draw blurred.
            Self::TooSmall { side_px, min_px } if side_px.saturating_mul(2) < *min_px => Severity::Error,
            _ => Severity::Advice,
        }
    }
}

/// Every problem of one photo by itself, the worst first.
pub fn judge(facts: &PhotoFacts, resolution_px: u32) -> Vec<PhotoProblem> {
    let mut problems = Vec::new();
    // In range: a crop's side is at most the photo's.
    let side_px = facts.crop.side.round() as u32;
    if side_px < resolution_px {
        problems.push(PhotoProblem::TooSmall {
            side_px,
            min_px: resolution_px,
        });
    }
    let Exposure { black, white, .. } = facts.exposure;
    if black > EMPTY_ABOVE {
        problems.push(PhotoProblem::Black {
            share: black,
            max: EMPTY_ABOVE,
        });
    } else if white > EMPTY_ABOVE {
        problems.push(PhotoProblem::White {
            share: white,
            max: EMPTY_ABOVE,
        });
    }
    let sharpness = facts.sharpness;
    if sharpness < BLURRED_BELOW {
        problems.push(PhotoProblem::Blurred {
            sharpness,
            min: BLURRED_BELOW,
        });
    } else if sharpness < SOFT_BELOW {
        problems.push(PhotoProblem::Soft {
            sharpness,
            min: SOFT_BELOW,
        });
    }
    if facts.has_alpha {
        problems.push(PhotoProblem::Transparent);
    }
    problems
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A photo nothing is wrong with; `look` makes photos differ as real ones do.
    pub(crate) fn good(look: u64) -> PhotoFacts {
        // A different half of all bits for each look: about 128 of 256 between any two.
        let words: Vec<String> = (0..8)
            .map(|i| {
                format!(
                    "{:016x}",
                    (look * 8 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
                )
            })
            .collect();
        PhotoFacts {
            width_px: 4000,
            height_px: 3000,
            crop: CropSquare {
                x: 500.0,
                y: 0.0,
                side: 3000.0,
            },
            has_alpha: false,
            sharpness: 0.8,
            exposure: Exposure {
                mean: 120.0,
                black: 0.01,
                white: 0.0,
            },
            hash: PhotoHash::try_from(words.concat()).expect("128 digits"),
        }
    }

    fn words(facts: &PhotoFacts) -> Vec<String> {
        judge(facts, 512).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_photo_has_no_problems() {
        assert!(judge(&good(0), 512).is_empty());
    }

    #[test]
    fn each_problem_is_named_in_words() {
        let mut facts = good(0);
        facts.crop.side = 380.0;
        assert_eq!(words(&facts), ["too small after this crop: 380 of 512"]);
        facts.crop.side = 512.0;
        facts.sharpness = 0.4;
        assert_eq!(words(&facts), ["a bit soft"]);
        facts.sharpness = 0.1;
        facts.has_alpha = true;
        assert_eq!(words(&facts), ["blurred", "transparent parts become white"]);
        facts.exposure.white = 0.9;
        assert_eq!(words(&facts)[0], "nearly all white");
    }

    #[test]
    fn only_a_photo_enlarged_more_than_twice_is_an_error() {
        let mut facts = good(0);
        facts.crop.side = 256.0;
        assert_eq!(judge(&facts, 512)[0].severity(), Severity::Advice);
        facts.crop.side = 255.0;
        assert_eq!(judge(&facts, 512)[0].severity(), Severity::Error);
    }

    #[test]
    fn facts_survive_json() {
        let json = serde_json::to_string(&good(3)).expect("serialises");
        assert_eq!(serde_json::from_str::<PhotoFacts>(&json).expect("parses"), good(3));
        let broken = json.replace("hash\":\"", "hash\":\"zz");
        assert!(serde_json::from_str::<PhotoFacts>(&broken).is_err());
    }
}
