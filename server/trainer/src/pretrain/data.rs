//! Pictures with captions for the starter model, composed anew for every step: an emoji on a background, or a crop of
//! a photograph. What a step sees is a pure function of (seed, step, row).

use std::path::Path;

use image::imageops::{self, FilterType};
use image::{RgbImage, Rgba, RgbaImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Deserialize;

use super::PretrainError;

/// Named background colours; the names go into captions.
const COLOURS: [(&str, [u8; 3]); 12] = [
    ("white", [250, 250, 248]),
    ("black", [18, 18, 20]),
    ("grey", [128, 130, 134]),
    ("red", [204, 52, 48]),
    ("orange", [240, 140, 40]),
    ("yellow", [246, 214, 72]),
    ("green", [72, 160, 82]),
    ("blue", [58, 110, 210]),
    ("purple", [130, 84, 180]),
    ("pink", [240, 160, 190]),
    ("brown", [120, 82, 54]),
    ("beige", [226, 208, 176]),
];

/// One drawing of a thing; `index.json` of the data set holds a list of these.
#[derive(Clone, Debug, Deserialize)]
pub struct PictureInfo {
    file: String,
    /// Such as `dog face`.
    pub label: String,
    /// `3d`, `emoji`, `cartoon` or `flat`.
    pub style: String,
}

#[derive(Deserialize)]
struct Index {
    pictures: Vec<PictureInfo>,
    photos: Vec<String>,
}

/// The data set in memory: about 64 KiB a picture.
pub struct StarterData {
    pictures: Vec<(PictureInfo, RgbaImage)>,
    photos: Vec<RgbImage>,
    side_px: u32,
    seed: u64,
}

/// Rows of one step.
pub struct Batch {
    /// `[rows, 3, side, side]`, in -1..1.
    pub pixels: Vec<f32>,
    pub captions: Vec<String>,
}

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// For the autoencoder: photographs and drawings in equal parts.
    PhotosAndDrawings,
    /// For the captions: drawings only.
    Drawings,
}

impl StarterData {
    /// Reads a folder that the example `starter_data` made.
    ///
    /// # Errors
    /// When a file is missing or is not what `index.json` says.
    pub fn open(folder: &Path, side_px: u32, seed: u64) -> Result<Self, PretrainError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| PretrainError::Read {
                path: path.into(),
                source,
            })
        };
        let decode = |path: &Path| {
            image::load_from_memory(&read(path)?).map_err(|source| PretrainError::Picture {
                path: path.into(),
                source,
            })
        };
        let index_path = folder.join("index.json");
        let index: Index = serde_json::from_slice(&read(&index_path)?).map_err(|source| PretrainError::Index {
            path: index_path,
            source,
        })?;
        let pictures = index.pictures.into_par_iter();
        let pictures = pictures
            .map(|info| {
                let picture = decode(&folder.join(&info.file))?.to_rgba8();
                Ok((info, picture))
            })
            .collect::<Result<Vec<_>, PretrainError>>()?;
        let photos = index
            .photos
            .par_iter()
            .map(|file| Ok(decode(&folder.join(file))?.to_rgb8()));
        Ok(Self {
            pictures,
            photos: photos.collect::<Result<Vec<_>, PretrainError>>()?,
            side_px,
            seed,
        })
    }

    pub fn batch(&self, step: u64, rows: usize, mix: Mix) -> Batch {
        let area = (self.side_px * self.side_px) as usize;
        let mut pixels = vec![0f32; rows * 3 * area];
        let captions = pixels
            .par_chunks_mut(3 * area)
            .enumerate()
            .map(|(row, out)| {
                let mut rng = self.rng(step, row as u64);
                let (picture, caption) = match mix {
                    Mix::PhotosAndDrawings if rng.random_bool(0.5) => (self.photo_crop(&mut rng), String::new()),
                    _ => self.drawing(&mut rng),
                };
                for (at, pixel) in picture.pixels().enumerate() {
                    for (channel, value) in pixel.0.iter().enumerate() {
                        out[channel * area + at] = f32::from(*value) / 127.5 - 1.0;
                    }
                }
                caption
            })
            .collect();
        Batch { pixels, captions }
    }

    fn rng(&self, step: u64, row: u64) -> ChaCha8Rng {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&step.to_le_bytes());
        key[16..24].copy_from_slice(&row.to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// A square part of a photograph, mirrored and brightened at random.
    fn photo_crop(&self, rng: &mut ChaCha8Rng) -> RgbImage {
        let photo = &self.photos[rng.random_range(0..self.photos.len())];
        let most = photo.width().min(photo.height());
        let side = rng.random_range(self.side_px.min(most)..=most);
        let x = rng.random_range(0..=photo.width() - side);
        let y = rng.random_range(0..=photo.height() - side);
        let part = imageops::crop_imm(photo, x, y, side, side).to_image();
        let mut small = imageops::resize(&part, self.side_px, self.side_px, FilterType::Triangle);
        if rng.random_bool(0.5) {
            imageops::flip_horizontal_in_place(&mut small);
        }
        // Hue, saturation and light vary, or the few photographs would teach the autoencoder their colours.
        let gains: [f32; 3] = std::array::from_fn(|_| rng.random_range(0.7..1.3));
        let lift = rng.random_range(-30.0..30.0f32);
        let swap = rng.random_range(0..3usize);
        for pixel in small.pixels_mut() {
            let old = pixel.0;
            for (channel, value) in pixel.0.iter_mut().enumerate() {
                *value = (f32::from(old[(channel + swap) % 3]) * gains[channel] + lift).clamp(0.0, 255.0) as u8;
            }
        }
        small
    }

    fn drawing(&self, rng: &mut ChaCha8Rng) -> (RgbImage, String) {
        let (info, picture) = &self.pictures[rng.random_range(0..self.pictures.len())];
        let side = self.side_px;
        let (mut canvas, background) = self.background(rng);
        let scale = rng.random_range(0.62..1.0f32);
        let size = ((side as f32 * scale) as u32).max(8);
        let mut small = imageops::resize(picture, size, size, FilterType::Triangle);
        if rng.random_bool(0.5) {
            imageops::flip_horizontal_in_place(&mut small);
        }
        let free = side - size;
        let x0 = rng.random_range(0..=free);
        let y0 = rng.random_range(0..=free);
        for (x, y, Rgba([r, g, b, a])) in small.enumerate_pixels().map(|(x, y, p)| (x, y, *p)) {
            let under = canvas.get_pixel_mut(x + x0, y + y0);
            let alpha = f32::from(a) / 255.0;
            for (value, over) in under.0.iter_mut().zip([r, g, b]) {
                *value = (f32::from(*value) * (1.0 - alpha) + f32::from(over) * alpha).round() as u8;
            }
        }
        (canvas, caption(info, background, rng))
    }

    fn background(&self, rng: &mut ChaCha8Rng) -> (RgbImage, Option<&'static str>) {
        let side = self.side_px;
        let (name, colour) = COLOURS[rng.random_range(0..COLOURS.len())];
        let near = |rng: &mut ChaCha8Rng| colour.map(|v| v.saturating_add_signed(rng.random_range(-14..=14)));
        match rng.random_range(0..10) {
            0..6 => {
                let top = near(rng);
                let bottom = near(rng);
                let canvas = RgbImage::from_fn(side, side, |_, y| {
                    let t = y as f32 / side as f32;
                    image::Rgb(std::array::from_fn(|c| {
                        (f32::from(top[c]) * (1.0 - t) + f32::from(bottom[c]) * t) as u8
                    }))
                });
                (canvas, Some(name))
            }
            6..8 => (self.photo_crop(rng), None),
            _ => (
                RgbImage::from_pixel(side, side, image::Rgb([255, 255, 255])),
                Some("white"),
            ),
        }
    }
}

/// Ways to say a style; `{}` stands for the article and the thing. Renders are what comes nearest to a photo here.
const STYLES: [(&str, &[&str]); 4] = [
    ("3d", &["photo of {}", "photo of {}", "a 3d render of {}", "{}"]),
    ("emoji", &["an emoji of {}", "{}"]),
    ("cartoon", &["a cartoon of {}", "a cartoon of {}"]),
    ("flat", &["a flat drawing of {}", "a flat drawing of {}"]),
];

fn caption(info: &PictureInfo, background: Option<&str>, rng: &mut ChaCha8Rng) -> String {
    // Captions are left out at times, so that guidance has an unconditional model to lean on.
    if rng.random_bool(0.1) {
        return String::new();
    }
    let forms = STYLES
        .iter()
        .find(|(style, _)| *style == info.style)
        .map_or(&["{}"][..], |(_, forms)| forms);
    let form = forms[rng.random_range(0..forms.len())];
    // `dog face` is what a person means by `dog`.
    let label = match info.label.strip_suffix(" face") {
        Some(short) if rng.random_bool(0.6) => short,
        _ => &info.label,
    };
    let thing = format!("{} {label}", app::recipe::article(label));
    match background {
        Some(name) if rng.random_bool(0.6) => format!("{} on a {name} background", form.replace("{}", &thing)),
        _ => form.replace("{}", &thing),
    }
}
