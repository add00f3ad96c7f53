//! Folders of photos become training images: found by their content, turned upright, resized and cropped exactly as
//! the tutorial's transforms do (PIL's antialiased bilinear resize of the shorter side, then a square).

mod listing;
mod read;
mod resize;

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use image::RgbImage;

use crate::noise::{Noise, Purpose};

pub use listing::{Listing, Stray, entries, list};
pub use read::{Photo, Reading, read_caption, read_photo};
pub use resize::resize_shorter_side;

#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("cannot read the folder of photos {}", .folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no photos in {}; put JPEG, PNG or WebP files there", .folder.display())]
    Empty { folder: PathBuf },
    #[error("cannot open the photo {}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the photo {} is damaged or of an unknown kind; remove it or save it again", .path.display())]
    Decode {
        path: PathBuf,
        #[source]
        source: image::ImageError,
    },
    #[error("{} has no caption: --read_prompts_from_txts looked for {looked_for}", .photo.display())]
    NoCaption { photo: PathBuf, looked_for: String },
    #[error("cannot read the caption {}", .path.display())]
    Caption {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// How a photo becomes a square. Two equal frames of one photo give equal pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    pub flip: bool,
    /// Offsets into the resized picture in pixels.
    pub left: u32,
    pub top: u32,
}

/// What the recipe says about framing.
#[derive(Clone, Copy, Debug)]
pub struct Framing {
    pub resolution_px: u32,
    pub center_crop: bool,
    pub hflip: bool,
}

impl Framing {
    /// The frame of an item's `showing`: a function of seed and showing alone.
    pub fn choose(&self, (width, height): (u32, u32), noise: &Noise, showing: u64) -> Frame {
        let (resized_width, resized_height) = resize::resized_size(width, height, self.resolution_px);
        let (slack_x, slack_y) = (resized_width - self.resolution_px, resized_height - self.resolution_px);
        let flip = self.hflip && noise.uniform(Purpose::Flip, showing, 1)[0] < 0.5;
        if self.center_crop {
            return Frame {
                flip,
                left: half_to_even(slack_x),
                top: half_to_even(slack_y),
            };
        }
        let places = noise.uniform(Purpose::Crop, showing, 2);
        let offset = |place: f64, slack: u32| ((place * f64::from(slack + 1)) as u32).min(slack);
        Frame {
            flip,
            left: offset(places[0], slack_x),
            top: offset(places[1], slack_y),
        }
    }
}

/// Half of `slack`, a half rounded to the even neighbour as Python's `round` does.
fn half_to_even(slack: u32) -> u32 {
    let half = slack / 2;
    half + u32::from(slack % 2 == 1 && half % 2 == 1)
}

/// Flips, resizes the shorter side to the resolution, cuts the square out: the tutorial's order.
pub fn cut(rgb: &RgbImage, resolution_px: u32, frame: Frame) -> RgbImage {
    let flipped = frame.flip.then(|| image::imageops::flip_horizontal(rgb));
    let resized = resize_shorter_side(flipped.as_ref().unwrap_or(rgb), resolution_px);
    image::imageops::crop_imm(&resized, frame.left, frame.top, resolution_px, resolution_px).to_image()
}

/// 8-bit pixels as [3, h, w] f32 in -1..1.
///
/// # Errors
/// When the device has no room.
pub fn to_tensor(rgb: &RgbImage) -> candle_core::Result<Tensor> {
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let mut planes = vec![0f32; 3 * width * height];
    for (at, pixel) in rgb.pixels().enumerate() {
        for (channel, value) in pixel.0.iter().enumerate() {
            planes[channel * width * height + at] = (f32::from(*value) / 255.0 - 0.5) / 0.5;
        }
    }
    Tensor::from_vec(planes, (3, height, width), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even_as_in_python() {
        let halves: Vec<u32> = (0..8).map(half_to_even).collect();
        assert_eq!(halves, [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn a_frame_depends_on_seed_and_item_and_stays_inside() {
        let framing = Framing {
            resolution_px: 64,
            center_crop: false,
            hflip: true,
        };
        let frames = |seed| -> Vec<Frame> {
            let noise = Noise::new(seed);
            (0..100).map(|item| framing.choose((100, 64), &noise, item)).collect()
        };
        assert_eq!(frames(1), frames(1));
        assert_ne!(frames(1), frames(2));
        assert!(frames(1).iter().all(|f| f.left <= 36 && f.top == 0));
        assert!(frames(1).iter().any(|f| f.flip) && frames(1).iter().any(|f| !f.flip));
        assert!(frames(1).iter().any(|f| f.left == 36 || f.left == 0));
    }
}
