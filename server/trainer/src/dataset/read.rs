//! A photo's file becomes pixels, as PIL reads it, and its caption becomes a prompt.

use std::path::Path;

use app::background::AlphaBackground;
use app::recipe::RecipeDraft;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};

use super::DatasetError;
use super::listing::caption_paths;

/// Most memory one picture may take while it is decoded.
const DECODE_LIMIT_BYTES: u64 = 1 << 30;

/// How photos are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Turned as the camera says in its EXIF block. The tutorial's script leaves them as they lie.
    pub upright: bool,
    pub background: AlphaBackground,
}

impl Reading {
    /// As `convert("RGB")` does and no more.
    pub const SCRIPT: Self = Self {
        upright: false,
        background: AlphaBackground::Drop,
    };

    pub fn of(recipe: &RecipeDraft) -> Self {
        match recipe.strict_tutorial {
            true => Self::SCRIPT,
            false => Self {
                upright: true,
                background: recipe.alpha_background,
            },
        }
    }
}

/// A photo in 8-bit RGB.
#[derive(Debug)]
pub struct Photo {
    pub rgb: RgbImage,
    /// It had transparent parts, which are now on the background or show what lay below them.
    pub had_alpha: bool,
}

/// Reads a photo the way PIL's `exif_transpose` and `convert("RGB")` do.
///
/// # Errors
/// When the file is missing, damaged or unreasonably large.
pub fn read_photo(path: &Path, reading: Reading) -> Result<Photo, DatasetError> {
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
    if reading.upright {
        picture.apply_orientation(orientation);
    }
    let had_alpha = has_transparency(&picture);
    Ok(Photo {
        rgb: to_rgb(picture, reading.background),
        had_alpha,
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

/// PIL's conversions: 16-bit grey is clipped at 255, 16-bit colour keeps its high byte. Then the background.
fn to_rgb(picture: DynamicImage, background: AlphaBackground) -> RgbImage {
    let (width, height) = (picture.width(), picture.height());
    let high = |value: u16| (value >> 8) as u8;
    let laid = |[r, g, b, a]: [u8; 4]| image::Rgb(background.under([r, g, b], a));
    match picture {
        DynamicImage::ImageLuma16(grey) => {
            let value = |x, y| grey.get_pixel(x, y).0[0].min(255) as u8;
            RgbImage::from_fn(width, height, |x, y| image::Rgb([value(x, y); 3]))
        }
        DynamicImage::ImageRgb16(rgb) => {
            RgbImage::from_fn(width, height, |x, y| image::Rgb(rgb.get_pixel(x, y).0.map(high)))
        }
        DynamicImage::ImageRgba16(rgba) => {
            RgbImage::from_fn(width, height, |x, y| laid(rgba.get_pixel(x, y).0.map(high)))
        }
        other if other.color().has_alpha() => {
            let rgba = other.into_rgba8();
            RgbImage::from_fn(width, height, |x, y| laid(rgba.get_pixel(x, y).0))
        }
        other => other.into_rgb8(),
    }
}

/// The caption beside a photo, as `--read_prompts_from_txts` asks for: `NAME.EXT.txt`, or else, unless `script_names`,
/// `NAME.txt`.
///
/// # Errors
/// When it is missing or no text.
pub fn read_caption(photo: &Path, script_names: bool) -> Result<String, DatasetError> {
    let [script, common] = caption_paths(photo);
    let path = if script_names || script.exists() {
        &script
    } else {
        &common
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => Err(DatasetError::NoCaption {
            photo: photo.into(),
            looked_for: if script_names {
                script.display().to_string()
            } else {
                format!("{} and {}", script.display(), common.display())
            },
        }),
        Err(source) => Err(DatasetError::Caption {
            path: path.into(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparent_parts_are_laid_on_the_background_or_dropped() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.png");
        let mut picture = image::RgbaImage::new(2, 1);
        picture.put_pixel(0, 0, image::Rgba([10, 20, 30, 0]));
        picture.put_pixel(1, 0, image::Rgba([10, 20, 30, 255]));
        picture.save(&path).expect("saves");
        let first = |background: &str| {
            let reading = Reading {
                upright: true,
                background: background.parse().expect("a background"),
            };
            let photo = read_photo(&path, reading).expect("reads");
            assert!(photo.had_alpha);
            assert_eq!(photo.rgb.get_pixel(1, 0).0, [10, 20, 30]);
            photo.rgb.get_pixel(0, 0).0
        };
        assert_eq!(first("white"), [255; 3]);
        assert_eq!(first("#00ff00"), [0, 255, 0]);
        assert_eq!(first("drop"), [10, 20, 30]);
    }

    #[test]
    fn a_caption_has_the_scripts_name_or_the_common_one() {
        let folder = tempfile::tempdir().expect("folder");
        let photo = folder.path().join("a.png");
        let missing = read_caption(&photo, false).expect_err("none").to_string();
        assert!(missing.contains("a.png.txt") && missing.contains("a.txt"), "{missing}");
        std::fs::write(folder.path().join("a.txt"), "  photo of zwx dog\n").expect("writes");
        assert_eq!(read_caption(&photo, false).expect("reads"), "photo of zwx dog");
        assert!(read_caption(&photo, true).is_err(), "the script looks for one name");
        std::fs::write(folder.path().join("a.png.txt"), "zwx dog asleep").expect("writes");
        assert_eq!(read_caption(&photo, false).expect("reads"), "zwx dog asleep");
    }
}
