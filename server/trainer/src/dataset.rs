//! Folders of photos become training images: found by their content, turned upright, resized and cropped exactly as
//! the tutorial's transforms do (PIL's antialiased bilinear resize of the shorter side, then a square).

mod resize;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

use crate::noise::{Noise, Purpose};

pub use resize::resize_shorter_side;

/// Most memory one picture may take while it is decoded.
const DECODE_LIMIT_BYTES: u64 = 1 << 30;

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
    #[error("cannot read the caption {}", .path.display())]
    Caption {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What a folder holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// Photos, by name.
    pub photos: Vec<PathBuf>,
    /// Files that are no photos, and are left out.
    pub strays: Vec<PathBuf>,
}

/// Looks at each file's first bytes, not at its name. Hidden files, folders and captions (`.txt`) are passed over.
///
/// # Errors
/// When the folder or a file in it cannot be read.
pub fn list(folder: &Path) -> Result<Listing, DatasetError> {
    let failed = |source| DatasetError::Folder {
        folder: folder.into(),
        source,
    };
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let caption = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt"));
        if hidden || caption || path.is_dir() {
            continue;
        }
        if is_photo(&path)? {
            listing.photos.push(path);
        } else {
            listing.strays.push(path);
        }
    }
    listing.photos.sort();
    listing.strays.sort();
    Ok(listing)
}

fn is_photo(path: &Path) -> Result<bool, DatasetError> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut head))
        .map_err(|source| DatasetError::Open {
            path: path.into(),
            source,
        })?;
    let known = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP];
    Ok(image::guess_format(&head).is_ok_and(|format| known.contains(&format)))
}

/// A photo, upright, in 8-bit RGB.
#[derive(Debug)]
pub struct Photo {
    pub rgb: RgbImage,
    /// It had transparent parts. As in the tutorial, transparency is dropped and what lies below it shows.
    pub dropped_alpha: bool,
}

/// Reads a photo the way PIL's `exif_transpose` and `convert("RGB")` do.
///
/// # Errors
/// When the file is missing, damaged or unreasonably large.
pub fn read_photo(path: &Path) -> Result<Photo, DatasetError> {
    let open = |source| DatasetError::Open {
        path: path.into(),
        source,
    };
    let decode = |source| DatasetError::Decode {
        path: path.into(),
        source,
    };
    let mut reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(open)?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(DECODE_LIMIT_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(decode)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(decode)?;
    picture.apply_orientation(orientation);
    let dropped_alpha = has_transparency(&picture);
    Ok(Photo {
        rgb: to_rgb(picture),
        dropped_alpha,
    })
}

fn has_transparency(picture: &DynamicImage) -> bool {
    match picture {
        DynamicImage::ImageRgba8(p) => p.pixels().any(|p| p.0[3] < u8::MAX),
        DynamicImage::ImageLumaA8(p) => p.pixels().any(|p| p.0[1] < u8::MAX),
        DynamicImage::ImageRgba16(p) => p.pixels().any(|p| p.0[3] < u16::MAX),
        DynamicImage::ImageLumaA16(p) => p.pixels().any(|p| p.0[1] < u16::MAX),
        _ => false,
    }
}

/// PIL's conversions: alpha is dropped, 16-bit grey is clipped at 255, 16-bit colour keeps its high byte.
fn to_rgb(picture: DynamicImage) -> RgbImage {
    let (width, height) = (picture.width(), picture.height());
    let high = |value: u16| (value >> 8) as u8;
    match picture {
        DynamicImage::ImageLuma16(grey) => {
            let value = |x, y| grey.get_pixel(x, y).0[0].min(255) as u8;
            RgbImage::from_fn(width, height, |x, y| image::Rgb([value(x, y); 3]))
        }
        DynamicImage::ImageRgb16(rgb) => {
            RgbImage::from_fn(width, height, |x, y| image::Rgb(rgb.get_pixel(x, y).0.map(high)))
        }
        DynamicImage::ImageRgba16(rgba) => RgbImage::from_fn(width, height, |x, y| {
            let [r, g, b, _] = rgba.get_pixel(x, y).0.map(high);
            image::Rgb([r, g, b])
        }),
        // Drops alpha as it is, without blending.
        other => other.into_rgb8(),
    }
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
    /// The frame of data set item `item`: a function of seed and item alone.
    pub fn choose(&self, (width, height): (u32, u32), noise: &Noise, item: u64) -> Frame {
        let (resized_width, resized_height) = resize::resized_size(width, height, self.resolution_px);
        let (slack_x, slack_y) = (resized_width - self.resolution_px, resized_height - self.resolution_px);
        let flip = self.hflip && noise.uniform(Purpose::Flip, item, 1)[0] < 0.5;
        if self.center_crop {
            return Frame {
                flip,
                left: half_to_even(slack_x),
                top: half_to_even(slack_y),
            };
        }
        let places = noise.uniform(Purpose::Crop, item, 2);
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

/// The caption beside a photo, `NAME.EXT.txt`, as `--read_prompts_from_txts` asks for.
///
/// # Errors
/// When it is missing or no text.
pub fn read_caption(photo: &Path) -> Result<String, DatasetError> {
    let mut name = photo.as_os_str().to_owned();
    name.push(".txt");
    let path = PathBuf::from(name);
    let text = std::fs::read_to_string(&path).map_err(|source| DatasetError::Caption { path, source })?;
    Ok(text.trim().to_owned())
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
    fn strays_and_hidden_files_are_told_apart_by_content() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        RgbImage::new(2, 2)
            .save_with_format(at("b.dat"), ImageFormat::Png)
            .expect("saves");
        for name in ["Thumbs.db", "a.jpg", ".hidden.png", "b.dat.txt"] {
            std::fs::write(at(name), b"not a picture").expect("writes");
        }
        std::fs::create_dir(at("folder.png")).expect("makes");
        let listing = list(folder.path()).expect("lists");
        assert_eq!(listing.photos, [at("b.dat")]);
        assert_eq!(listing.strays, [at("Thumbs.db"), at("a.jpg")]);
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
