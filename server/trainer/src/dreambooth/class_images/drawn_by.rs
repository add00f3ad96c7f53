//! What drew a class image, told by the image itself: in a comment of its JPEG file, which no program minds, so that it
//! stays with the image, and the folder holds images alone.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::pipeline::SampleRequest;

/// Before the JSON of our comments.
const MARK: &[u8] = b"likeness ";
const START_OF_IMAGE: [u8; 2] = [0xff, 0xd8];
const COMMENT: u8 = 0xfe;
/// Before the first of the pixels.
const START_OF_SCAN: u8 = 0xda;

/// All that makes images of a class other ones, but for the seed: one seed's are as good as another's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DrawnBy {
    model: String,
    prompt: String,
    steps: usize,
    guidance_scale: f64,
    side_px: usize,
}

impl DrawnBy {
    pub fn of(model: &str, request: &SampleRequest) -> Self {
        Self {
            model: model.to_owned(),
            prompt: request.prompt.clone(),
            steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
            side_px: request.width_px,
        }
    }

    /// How it is told from `other`, in words; empty where they are the same.
    pub fn unlike(&self, other: &Self) -> String {
        let mut words = Vec::new();
        if self.prompt != other.prompt {
            words.push(format!("for the prompt `{}`", self.prompt));
        }
        if self.model != other.model {
            words.push("with other weights".to_owned());
        }
        if self.steps != other.steps {
            words.push(format!("in {} steps", self.steps));
        }
        if self.guidance_scale != other.guidance_scale {
            words.push(format!("with guidance {}", self.guidance_scale));
        }
        if self.side_px != other.side_px {
            words.push(format!("at {} pixels", self.side_px));
        }
        words.join(", ")
    }

    /// `jpeg` with this as its comment. A prompt that has no room there leaves it without.
    pub fn sign(&self, jpeg: Vec<u8>) -> Vec<u8> {
        let comment = [MARK, &serde_json::to_vec(self).unwrap_or_default()].concat();
        let (Ok(length), Some(rest)) = (u16::try_from(comment.len() + 2), jpeg.strip_prefix(&START_OF_IMAGE)) else {
            return jpeg;
        };
        [
            &START_OF_IMAGE[..],
            &[0xff, COMMENT],
            &length.to_be_bytes(),
            &comment,
            rest,
        ]
        .concat()
    }

    /// Of an image that we drew; `None` of any other, and of one from before this was told.
    pub fn read(path: &Path) -> Option<Self> {
        let mut file = BufReader::new(File::open(path).ok()?);
        let mut start = [0; 2];
        file.read_exact(&mut start).ok()?;
        if start != START_OF_IMAGE {
            return None;
        }
        loop {
            let mut head = [0; 4];
            file.read_exact(&mut head).ok()?;
            let [0xff, kind, high, low] = head else { return None };
            if kind == START_OF_SCAN {
                return None;
            }
            let length = u64::from(u16::from_be_bytes([high, low])).checked_sub(2)?;
            let mut segment = (&mut file).take(length);
            if kind == COMMENT {
                let mut comment = Vec::new();
                segment.read_to_end(&mut comment).ok()?;
                if let Some(json) = comment.strip_prefix(MARK) {
                    return serde_json::from_slice(json).ok();
                }
            } else {
                io::copy(&mut segment, &mut io::sink()).ok()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_tells_what_drew_it_and_is_the_same_image() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("0.jpg");
        let picture = image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([9 * x as u8, 9 * y as u8, 40]));
        picture.save(&path).expect("saves");
        assert_eq!(DrawnBy::read(&path), None);
        let before = image::open(&path).expect("a picture");

        let drawn_by = DrawnBy {
            model: "m".into(),
            prompt: "photo of a \"dog\"".into(),
            steps: 20,
            guidance_scale: 7.5,
            side_px: 512,
        };
        let signed = drawn_by.sign(std::fs::read(&path).expect("reads"));
        std::fs::write(&path, signed).expect("writes");
        assert_eq!(DrawnBy::read(&path), Some(drawn_by.clone()));
        assert_eq!(image::open(&path).expect("a picture"), before);

        let other = DrawnBy {
            prompt: "photo of a cat".into(),
            steps: 30,
            ..drawn_by.clone()
        };
        assert_eq!(other.unlike(&drawn_by), "for the prompt `photo of a cat`, in 30 steps");
        assert!(drawn_by.unlike(&drawn_by).is_empty());
    }
}
