//! A photo's pixels: decoded, turned upright, cropped, resized, measured and encoded. No I/O: bytes in, bytes out.
//!
//! The full photo is decoded once, into 3 bytes a pixel, and never turned: its orientation is applied to the crop's
//! coordinates and to the small result, so a 12-megapixel photo costs 36 MB and no second copy.

mod measure;
mod sniff;

use std::io::Cursor;

use fast_image_resize as fir;
use image::codecs::jpeg::{JpegDecoder, JpegEncoder};
use image::codecs::png::{CompressionType, FilterType, PngDecoder, PngEncoder};
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, RgbImage};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use measure::{Exposure, PhotoHash, exposure, hash, sharpness};
pub use sniff::FileKind;

use crate::api::CropSquare;
use crate::crop::Crop;
use crate::photo::PhotoFacts;

/// Most pixels of a photo, in megapixels: more than any phone and nearly any camera makes; 300 MB decoded.
pub const MAX_MEGAPIXELS: u32 = 100;
/// What shows through transparent parts.
const PAPER: u8 = 255;
/// Side at which a crop is measured, whatever the model's resolution: verdicts must not change with the model.
pub const MEASURE_PX: u32 = 512;

/// Why a file gives no photo. Each says what to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum PhotoError {
    #[error("This file is empty. Copy it from the phone or camera again and drop it again.")]
    Empty,
    #[error("This file is not a photo we can read ({}). {}", .kind.words(), .kind.way_out())]
    NotReadable { kind: FileKind },
    #[error("This photo has {megapixels} megapixels; the most is {max}. Export it smaller and drop it again.")]
    TooLarge { megapixels: u32, max: u32 },
    #[error("This photo is cut short: its end is missing. Copy it from the phone or camera again and drop it again.")]
    CutShort,
    #[error(
        "This {} is damaged ({detail}). Open it in a photo app, save it again and drop that.",
        .kind.words()
    )]
    Damaged { kind: FileKind, detail: String },
    #[error("This could not be read: it is a folder, or was moved or deleted. Drop the photos themselves.")]
    Gone,
    #[error("The crop does not fit this photo ({detail}). Reset the crop.")]
    BadCrop { detail: String },
}

impl PhotoError {
    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotReadable { .. } => "not_readable",
            Self::TooLarge { .. } => "too_large",
            Self::CutShort => "cut_short",
            Self::Damaged { .. } => "damaged",
            Self::Gone => "gone",
            Self::BadCrop { .. } => "bad_crop",
        }
    }
}

/// Pixels of 8-bit red, green, blue; row by row from the top left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Rgb {
    /// `None` when the number of bytes is not `width * height * 3`, or there are none.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Option<Self> {
        let wanted = u64::from(width) * u64::from(height) * 3;
        (wanted > 0 && wanted == pixels.len() as u64).then_some(Self { width, height, pixels })
    }

    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// All of it, resampled with Lanczos3.
    pub fn resized(&self, width: u32, height: u32) -> Self {
        let all = (0.0, 0.0, f64::from(self.width), f64::from(self.height));
        self.resampled(all, width, height, fir::FilterType::Lanczos3)
    }

    /// All of it, the longer side at most `long_side` pixels. For looking at.
    pub fn fitted(&self, long_side: u32) -> Self {
        let scale = (f64::from(long_side) / f64::from(self.width.max(self.height))).min(1.0);
        let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let all = (0.0, 0.0, f64::from(self.width), f64::from(self.height));
        // Hamming: nearly as sharp as bicubic with half as many taps.
        self.resampled(all, scaled(self.width), scaled(self.height), fir::FilterType::Hamming)
    }

    /// The region (left, top, width, height) resampled. The region must lie inside.
    fn resampled(&self, region: (f64, f64, f64, f64), width: u32, height: u32, filter: fir::FilterType) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        let mut pixels = vec![PAPER; width as usize * height as usize * 3];
        let options = fir::ResizeOptions::new()
            .resize_alg(fir::ResizeAlg::Convolution(filter))
            .crop(region.0, region.1, region.2, region.3)
            .use_alpha(false);
        let source = fir::images::ImageRef::new(self.width, self.height, &self.pixels, fir::PixelType::U8x3);
        let target = fir::images::Image::from_slice_u8(width, height, &mut pixels, fir::PixelType::U8x3);
        if let (Ok(source), Ok(mut target)) = (source, target) {
            let done = fir::Resizer::new().resize(&source, &mut target, &options);
            debug_assert!(done.is_ok(), "the region lies inside: {done:?}");
        }
        Self { width, height, pixels }
    }

    /// Turned and flipped as a camera's orientation asks.
    fn oriented(self, orientation: Orientation) -> Self {
        if orientation == Orientation::NoTransforms {
            return self;
        }
        let Some(image) = RgbImage::from_raw(self.width, self.height, self.pixels) else {
            return Self {
                width: 1,
                height: 1,
                pixels: vec![PAPER; 3],
            };
        };
        let mut image = DynamicImage::ImageRgb8(image);
        image.apply_orientation(orientation);
        let image = image.into_rgb8();
        Self {
            width: image.width(),
            height: image.height(),
            pixels: image.into_raw(),
        }
    }

    /// A PNG of nothing but size and pixels: no metadata, no time, no place. Equal pixels give equal bytes.
    pub fn to_png(&self) -> Vec<u8> {
        let mut png = Vec::with_capacity(self.pixels.len() / 2 + 1024);
        // `Fast`: the person waits, and the disk has room.
        let encoder = PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Adaptive);
        let done = encoder.write_image(&self.pixels, self.width, self.height, ExtendedColorType::Rgb8);
        debug_assert!(done.is_ok(), "memory takes every byte: {done:?}");
        png
    }

    /// For looking at only.
    pub fn to_jpeg(&self, quality: u8) -> Vec<u8> {
        let mut jpeg = Vec::with_capacity(self.pixels.len() / 8 + 1024);
        let encoder = JpegEncoder::new_with_quality(&mut jpeg, quality);
        let done = encoder.write_image(&self.pixels, self.width, self.height, ExtendedColorType::Rgb8);
        debug_assert!(done.is_ok(), "memory takes every byte: {done:?}");
        jpeg
    }
}

/// A decoded photo, as it lies in the file; everything it gives out is upright.
pub struct Photo {
    raw: Rgb,
    orientation: Orientation,
    has_alpha: bool,
}

impl Photo {
    /// Decodes JPEG, PNG or WebP, told apart by content. Transparent parts are laid on white, 16 bits become 8, grey and
    /// CMYK become RGB.
    ///
    /// # Errors
    /// Not a photo, too large, cut short or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, PhotoError> {
        if bytes.is_empty() {
            return Err(PhotoError::Empty);
        }
        let kind = FileKind::sniff(bytes);
        let damaged = |error: image::ImageError| damage(kind, &error);
        match kind {
            FileKind::Jpeg if !sniff::jpeg_is_whole(bytes) => Err(PhotoError::CutShort),
            FileKind::Jpeg => read(JpegDecoder::new(Cursor::new(bytes)).map_err(damaged)?, kind),
            FileKind::Png => read(PngDecoder::new(Cursor::new(bytes)).map_err(damaged)?, kind),
            FileKind::Webp => read(WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?, kind),
            kind => Err(PhotoError::NotReadable { kind }),
        }
    }

    /// Width and height in upright pixels.
    pub fn size_px(&self) -> (u32, u32) {
        if swaps_sides(self.orientation) {
            (self.raw.height, self.raw.width)
        } else {
            (self.raw.width, self.raw.height)
        }
    }

    pub fn has_alpha(&self) -> bool {
        self.has_alpha
    }

    /// The crop, resampled with Lanczos3 to `side` x `side` pixels.
    ///
    /// # Errors
    /// A crop that reaches outside this photo.
    pub fn cropped(&self, crop: CropSquare, side: u32) -> Result<Rgb, PhotoError> {
        let (width, height) = self.size_px();
        let bad = |detail: String| PhotoError::BadCrop { detail };
        let crop = Crop::new(crop, width, height)
            .map_err(|error| bad(error.to_string()))?
            .square();
        let (x, y) = self.to_raw(crop);
        let region = (x, y, crop.side, crop.side);
        Ok(self
            .raw
            .resampled(region, side, side, fir::FilterType::Lanczos3)
            .oriented(self.orientation))
    }

    /// The whole upright photo, its longer side at most `long_side` pixels. For looking at.
    pub fn fitted(&self, long_side: u32) -> Rgb {
        self.raw.fitted(long_side).oriented(self.orientation)
    }

    /// What the rules need to know about this photo with this crop.
    ///
    /// # Errors
    /// A crop that reaches outside this photo.
    pub fn facts(&self, crop: CropSquare) -> Result<PhotoFacts, PhotoError> {
        // Not enlarged: interpolated pixels are smooth and would be called blurred.
        let side = (crop.side.round() as u32).clamp(1, MEASURE_PX);
        Ok(self.facts_of(crop, &self.cropped(crop, side)?))
    }

    /// The same from a crop that is already cut at the side measured at, `MEASURE_PX`.
    pub fn facts_of(&self, crop: CropSquare, measured: &Rgb) -> PhotoFacts {
        let (width_px, height_px) = self.size_px();
        PhotoFacts {
            width_px,
            height_px,
            crop,
            has_alpha: self.has_alpha,
            sharpness: sharpness(measured),
            exposure: exposure(measured),
            hash: hash(measured),
        }
    }

    /// Top left corner, in the file's own pixels, of a square given in upright ones.
    fn to_raw(&self, crop: CropSquare) -> (f64, f64) {
        let (width, height) = self.size_px();
        let CropSquare { x, y, side } = crop;
        let (from_right, from_bottom) = (f64::from(width) - x - side, f64::from(height) - y - side);
        match self.orientation {
            Orientation::NoTransforms => (x, y),
            Orientation::FlipHorizontal => (from_right, y),
            Orientation::Rotate180 => (from_right, from_bottom),
            Orientation::FlipVertical => (x, from_bottom),
            Orientation::Rotate90FlipH => (y, x),
            Orientation::Rotate90 => (y, from_right),
            Orientation::Rotate270FlipH => (from_bottom, from_right),
            Orientation::Rotate270 => (from_bottom, x),
        }
    }
}

/// SHA-256 in lower-case hex: the name of a crop, and of the file it came from.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn swaps_sides(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    )
}

fn damage(kind: FileKind, error: &image::ImageError) -> PhotoError {
    if let image::ImageError::IoError(io) = error
        && io.kind() == std::io::ErrorKind::UnexpectedEof
    {
        return PhotoError::CutShort;
    }
    PhotoError::Damaged {
        kind,
        detail: error.to_string(),
    }
}

fn read(mut decoder: impl ImageDecoder, kind: FileKind) -> Result<Photo, PhotoError> {
    let (width, height) = decoder.dimensions();
    let megapixels = u64::from(width) * u64::from(height) / 1_000_000;
    if megapixels > u64::from(MAX_MEGAPIXELS) {
        return Err(PhotoError::TooLarge {
            megapixels: u32::try_from(megapixels).unwrap_or(u32::MAX),
            max: MAX_MEGAPIXELS,
        });
    }
    // A photo whose EXIF cannot be read is shown as it lies.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let (raw, has_alpha) = if decoder.color_type() == ColorType::Rgb8 {
        let mut pixels = vec![0; width as usize * height as usize * 3];
        decoder.read_image(&mut pixels).map_err(|error| damage(kind, &error))?;
        (Rgb::new(width, height, pixels), false)
    } else {
        let image = DynamicImage::from_decoder(decoder).map_err(|error| damage(kind, &error))?;
        let (pixels, has_alpha) = flattened(image);
        (Rgb::new(width, height, pixels), has_alpha)
    };
    Ok(Photo {
        raw: raw.ok_or(PhotoError::Empty)?,
        orientation,
        has_alpha,
    })
}

/// To 8-bit RGB, transparent parts laid on white. The flag tells whether any part was transparent.
fn flattened(image: DynamicImage) -> (Vec<u8>, bool) {
    if !image.color().has_alpha() {
        return (image.into_rgb8().into_raw(), false);
    }
    let mut has_alpha = false;
    let rgba = image.into_rgba8().into_raw();
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.chunks_exact(4) {
        let alpha = u32::from(pixel[3]);
        has_alpha |= alpha < 255;
        rgb.extend(pixel[..3].iter().map(|&value| {
            let blended = u32::from(value) * alpha + u32::from(PAPER) * (255 - alpha);
            // Below 256: a weighted mean of two bytes.
            ((blended + 127) / 255) as u8
        }));
    }
    (rgb, has_alpha)
}

#[cfg(test)]
mod tests;
