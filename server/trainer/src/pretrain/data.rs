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
use super::captions::{COLOURS, GROUNDS, HELD_OUT, PictureInfo, caption, is_held_out, noun_of, nouns, on, weight};

/// Sides a drawing is kept at, as parts of the whole picture's side. Scaling at every step would cost more than all
/// the rest of composing.
const SCALES: [f32; 4] = [0.64, 0.76, 0.88, 1.0];
/// From one size of a photograph to the next: nearly the square root of two.
const PHOTO_STEP: f32 = 0.71;

#[derive(Deserialize)]
struct Index {
    pictures: Vec<PictureInfo>,
    photos: Vec<String>,
    held_out_photos: Vec<String>,
}

/// The data set in memory, scaled ahead: about 180 KiB a drawing at 128 px.
pub struct StarterData {
    drawings: Vec<Drawing>,
    /// Sums of the drawings' weights so far, to draw one by its weight.
    weights: Vec<f32>,
    photos: Vec<Photo>,
    held_out_photos: Vec<Photo>,
    /// Which drawings are called by each of [`nouns`].
    named: Vec<Vec<usize>>,
    side_px: u32,
    seed: u64,
}

struct Drawing {
    info: PictureInfo,
    /// One for each of [`SCALES`], colours multiplied by alpha.
    sizes: Vec<RgbaImage>,
}

struct Photo {
    /// The phrase of [`GROUNDS`], where the photograph is one of them.
    place: Option<&'static str>,
    /// From the largest to one whose shorter side is just enough.
    sizes: Vec<RgbImage>,
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
        let drawings = index.pictures.into_par_iter().map(|info| {
            let picture = decode(&folder.join(&info.file))?.to_rgba8();
            Ok(Drawing::new(info, picture, side_px))
        });
        let photos = |files: &[String]| {
            let photos = files.par_iter().map(|file| {
                let photo = decode(&folder.join(file))?.to_rgb8();
                Ok(Photo::new(Path::new(file), photo, side_px))
            });
            photos.collect::<Result<Vec<_>, PretrainError>>()
        };
        let drawings = drawings.collect::<Result<Vec<_>, PretrainError>>()?;
        let (photos, held_out) = (photos(&index.photos)?, photos(&index.held_out_photos)?);
        if drawings.is_empty() || photos.is_empty() || held_out.is_empty() {
            return Err(PretrainError::Empty { path: folder.into() });
        }
        Ok(Self::new(drawings, photos, held_out, side_px, seed))
    }

    fn new(drawings: Vec<Drawing>, photos: Vec<Photo>, held_out_photos: Vec<Photo>, side_px: u32, seed: u64) -> Self {
        let mut named = vec![Vec::new(); nouns().len()];
        for (index, drawing) in drawings.iter().enumerate() {
            if let Some(noun) = noun_of(&drawing.info) {
                named[noun].push(index);
            }
        }
        let mut sum = 0.0;
        let weights = drawings.iter().map(|drawing| {
            sum += weight(&drawing.info);
            sum
        });
        Self {
            weights: weights.collect(),
            drawings,
            photos,
            held_out_photos,
            named,
            side_px,
            seed,
        }
    }

    /// Pictures and captions of a step.
    pub fn batch(&self, step: u64, rows: usize, mix: Mix) -> Batch {
        let (pixels, captions) = self.rows(step, rows, |_, rng| match mix {
            Mix::PhotosAndDrawings if rng.random_bool(0.5) => {
                let photo = any(&self.photos, rng);
                (self.photo_crop(photo, true, rng), String::new())
            }
            _ => self.drawing(self.any_drawing(rng), None, rng),
        });
        Batch { pixels, captions }
    }

    /// Drawings of the evaluation's nouns, each as often as the others, as training may see them: pixels as in
    /// [`Batch`], and which of [`nouns`] they show.
    pub fn named(&self, step: u64, rows: usize) -> (Vec<f32>, Vec<usize>) {
        self.rows(step, rows, |_, rng| {
            let mut noun = rng.random_range(0..self.named.len());
            // A small data set may lack one.
            while self.named[noun].is_empty() {
                noun = (noun + 1) % self.named.len();
            }
            let drawing = &self.drawings[*any(&self.named[noun], rng)];
            (self.drawing(drawing, None, rng).0, noun)
        })
    }

    /// The forty combinations that training never sees, each composed once.
    pub fn held_out(&self, step: u64) -> (Vec<f32>, Vec<usize>) {
        let drawn = HELD_OUT.map(|held| {
            let is = |drawing: &&Drawing| drawing.info.label == held.0 && drawing.info.style == held.1;
            self.drawings.iter().find(is).zip(Some(held.2))
        });
        let drawn: Vec<(&Drawing, &str)> = drawn.into_iter().flatten().collect();
        self.rows(step, drawn.len(), |row, rng| {
            let (drawing, colour) = drawn[row];
            let (picture, _) = self.drawing(drawing, Some(colour), rng);
            (picture, noun_of(&drawing.info).unwrap_or_default())
        })
    }

    /// Crops of photographs that training never sees.
    pub fn held_out_photos(&self, rows: usize) -> Vec<f32> {
        let crops = self.rows(0, rows, |_, rng| {
            (self.photo_crop(any(&self.held_out_photos, rng), false, rng), ())
        });
        crops.0
    }

    /// `[rows, 3, side, side]` in -1..1, and what comes with each.
    fn rows<T: Send>(
        &self,
        step: u64,
        rows: usize,
        compose: impl Fn(usize, &mut ChaCha8Rng) -> (RgbImage, T) + Sync,
    ) -> (Vec<f32>, Vec<T>) {
        let area = (self.side_px * self.side_px) as usize;
        let mut pixels = vec![0f32; rows * 3 * area];
        let composed = pixels.par_chunks_mut(3 * area).enumerate().map(|(row, out)| {
            let (picture, with) = compose(row, &mut self.rng(step, row as u64));
            for (at, pixel) in picture.pixels().enumerate() {
                for (channel, value) in pixel.0.iter().enumerate() {
                    out[channel * area + at] = f32::from(*value) / 127.5 - 1.0;
                }
            }
            with
        });
        let with = composed.collect();
        (pixels, with)
    }

    fn rng(&self, step: u64, row: u64) -> ChaCha8Rng {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&step.to_le_bytes());
        key[16..24].copy_from_slice(&row.to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// A square part of a photograph, mirrored; `bright` also changes its colours.
    fn photo_crop(&self, photo: &Photo, bright: bool, rng: &mut ChaCha8Rng) -> RgbImage {
        let side = self.side_px;
        let photo = &photo.sizes[rng.random_range(0..photo.sizes.len())];
        let x = rng.random_range(0..=photo.width() - side);
        let y = rng.random_range(0..=photo.height() - side);
        let mut part = imageops::crop_imm(photo, x, y, side, side).to_image();
        if rng.random_bool(0.5) {
            imageops::flip_horizontal_in_place(&mut part);
        }
        if bright {
            recolour(&mut part, rng);
        }
        part
    }

    fn any_drawing(&self, rng: &mut ChaCha8Rng) -> &Drawing {
        let most = self.weights.last().copied().unwrap_or_default();
        let at = rng.random_range(0.0..most);
        &self.drawings[self.weights.partition_point(|sum| *sum <= at)]
    }

    /// On any background, or on that `colour`.
    fn drawing(&self, drawing: &Drawing, colour: Option<&str>, rng: &mut ChaCha8Rng) -> (RgbImage, String) {
        let colour = COLOURS.into_iter().find(|(name, _)| Some(*name) == colour);
        let (mut canvas, place) = match colour {
            Some(colour) => self.plain(colour, rng),
            None => self.background(&drawing.info, rng),
        };
        let picture = &drawing.sizes[rng.random_range(0..drawing.sizes.len())];
        let free = self.side_px - picture.width();
        let x0 = rng.random_range(0..=free);
        let y0 = rng.random_range(0..=free);
        let mirrored = rng.random_bool(0.5);
        for (x, y, Rgba([r, g, b, alpha])) in picture.enumerate_pixels().map(|(x, y, p)| (x, y, *p)) {
            let x = if mirrored { picture.width() - 1 - x } else { x };
            let under = canvas.get_pixel_mut(x + x0, y + y0);
            for (value, over) in under.0.iter_mut().zip([r, g, b]) {
                *value = over.saturating_add((u16::from(*value) * u16::from(255 - alpha) / 255) as u8);
            }
        }
        let words = caption(&drawing.info, place.as_deref(), rng);
        (canvas, words)
    }

    /// About one colour all over.
    fn plain(&self, (name, colour): (&str, [u8; 3]), rng: &mut ChaCha8Rng) -> (RgbImage, Option<String>) {
        let near = |rng: &mut ChaCha8Rng| colour.map(|v| v.saturating_add_signed(rng.random_range(-14..=14)));
        let canvas = gradient(self.side_px, near(rng), near(rng), rng.random_bool(0.5));
        (canvas, Some(on(name)))
    }

    /// A background and the phrase that names it: never one that is kept for the evaluation.
    fn background(&self, info: &PictureInfo, rng: &mut ChaCha8Rng) -> (RgbImage, Option<String>) {
        let side = self.side_px;
        match rng.random_range(0..20) {
            0..11 => self.plain(free_colour(info, rng), rng),
            11..14 => {
                let white = RgbImage::from_pixel(side, side, image::Rgb([255; 3]));
                (white, Some(on("white")))
            }
            14..16 => {
                let ((first, from), (second, to)) = (free_colour(info, rng), free_colour(info, rng));
                let place = (first != second).then(|| on(&format!("{first} and {second}")));
                (gradient(side, from, to, rng.random_bool(0.5)), place)
            }
            _ => {
                let photo = any(&self.photos, rng);
                // A photograph that captions name keeps its colours: grass is green.
                let canvas = self.photo_crop(photo, photo.place.is_none(), rng);
                (canvas, photo.place.map(str::to_owned))
            }
        }
    }
}

impl Drawing {
    fn new(info: PictureInfo, mut picture: RgbaImage, side_px: u32) -> Self {
        // Scaling colours that are not multiplied by alpha would draw dark edges from what cannot be seen.
        for Rgba([r, g, b, alpha]) in picture.pixels_mut() {
            for value in [r, g, b] {
                *value = (u16::from(*value) * u16::from(*alpha) / 255) as u8;
            }
        }
        let sizes = SCALES.map(|scale| {
            let size = ((side_px as f32 * scale) as u32).max(1);
            imageops::resize(&picture, size, size, FilterType::Triangle)
        });
        Self {
            info,
            sizes: sizes.into(),
        }
    }
}

impl Photo {
    fn new(file: &Path, mut photo: RgbImage, side_px: u32) -> Self {
        let stem = file.file_stem().unwrap_or_default();
        let ground = GROUNDS.iter().find(|ground| stem == ground.file);
        if let Some(ground) = ground {
            for pixel in photo.pixels_mut() {
                for (value, gain) in pixel.0.iter_mut().zip(ground.tint) {
                    *value = (f32::from(*value) * gain).min(255.0) as u8;
                }
            }
        }
        let shorter = photo.width().min(photo.height()) as f32;
        let least = side_px as f32 / shorter;
        let mut sizes = Vec::new();
        // A photograph that is too small is made just large enough.
        let mut scale = least.max(1.0);
        while scale >= least {
            let [width, height] =
                [photo.width(), photo.height()].map(|px| ((px as f32 * scale).round() as u32).max(side_px));
            sizes.push(imageops::resize(&photo, width, height, FilterType::Triangle));
            scale *= PHOTO_STEP;
        }
        Self {
            place: ground.map(|ground| ground.place),
            sizes,
        }
    }
}

fn any<'a, T>(of: &'a [T], rng: &mut ChaCha8Rng) -> &'a T {
    &of[rng.random_range(0..of.len())]
}

/// A colour whose combination with this drawing training may see.
fn free_colour(info: &PictureInfo, rng: &mut ChaCha8Rng) -> (&'static str, [u8; 3]) {
    loop {
        let (name, colour) = COLOURS[rng.random_range(0..COLOURS.len())];
        if !is_held_out(info, name) {
            return (name, colour);
        }
    }
}

/// From one colour to another, downwards or (`across`) to the right.
fn gradient(side: u32, from: [u8; 3], to: [u8; 3], across: bool) -> RgbImage {
    let line: Vec<image::Rgb<u8>> = (0..side)
        .map(|at| {
            let t = at as f32 / side as f32;
            image::Rgb(std::array::from_fn(|c| {
                (f32::from(from[c]) * (1.0 - t) + f32::from(to[c]) * t) as u8
            }))
        })
        .collect();
    RgbImage::from_fn(side, side, |x, y| line[if across { x } else { y } as usize])
}

/// Hue, saturation and light vary, or the few photographs would teach the autoencoder their colours.
fn recolour(picture: &mut RgbImage, rng: &mut ChaCha8Rng) {
    let gains: [f32; 3] = std::array::from_fn(|_| rng.random_range(0.7..1.3));
    let lift = rng.random_range(-30.0..30.0f32);
    let swap = rng.random_range(0..3usize);
    for pixel in picture.pixels_mut() {
        let old = pixel.0;
        for (channel, value) in pixel.0.iter_mut().enumerate() {
            *value = (f32::from(old[(channel + swap) % 3]) * gains[channel] + lift).clamp(0.0, 255.0) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE_PX: u32 = 32;

    /// One half-transparent red square by each name, and a small grey photograph of grass.
    fn data(infos: &[(&str, &str, &str)]) -> StarterData {
        let drawings = infos.iter().map(|(label, style, group)| {
            let info = PictureInfo {
                label: (*label).into(),
                style: (*style).into(),
                group: (*group).into(),
                ..PictureInfo::default()
            };
            let picture = RgbaImage::from_pixel(50, 50, Rgba([200, 0, 0, 128]));
            Drawing::new(info, picture, SIDE_PX)
        });
        let photo = RgbImage::from_pixel(130, 21, image::Rgb([90; 3]));
        let photo = Photo::new(Path::new("photos/grass.jpg"), photo, SIDE_PX);
        StarterData::new(drawings.collect(), vec![photo], Vec::new(), SIDE_PX, 7)
    }

    #[test]
    fn a_batch_is_a_function_of_seed_and_step() {
        let data = data(&[("fox", "3d", "animals-nature")]);
        let (first, again, next) = (
            data.batch(3, 9, Mix::PhotosAndDrawings),
            data.batch(3, 9, Mix::PhotosAndDrawings),
            data.batch(4, 9, Mix::PhotosAndDrawings),
        );
        assert_eq!(first.pixels, again.pixels);
        assert_eq!(first.captions, again.captions);
        assert_ne!(first.pixels, next.pixels);
        assert_eq!(first.pixels.len(), 9 * 3 * 32 * 32);
        assert!(first.pixels.iter().all(|value| (-1.0..=1.0).contains(value)));
    }

    #[test]
    fn training_never_shows_what_the_evaluation_asks_for() {
        let (label, style, colour) = HELD_OUT[0];
        let data = data(&[(label, style, "animals-nature")]);
        let captions = data.batch(0, 3000, Mix::Drawings).captions;
        assert!(captions.iter().any(|words| words.contains("blue background")));
        assert!(captions.iter().any(|words| words.contains("on grass")));
        let shown = captions.iter().find(|words| words.contains(&format!("{colour} ")));
        assert_eq!(shown, None);
    }

    #[test]
    fn people_are_shown_less_often_than_animals() {
        let data = data(&[("judge", "flat", "people-body"), ("bat", "flat", "animals-nature")]);
        let captions = data.batch(0, 2000, Mix::Drawings).captions;
        let count = |word: &str| captions.iter().filter(|words| words.contains(word)).count() as f32;
        // Weights 3 and 1/4; a tenth of 2000 has no words. The judge's count has a deviation of 12.
        let share = count("judge") / (count("judge") + count("bat"));
        assert!((share - 1.0 / 13.0).abs() < 0.035, "{share}");
    }

    #[test]
    fn edges_keep_their_colour_when_scaled() {
        let mut picture = RgbaImage::from_pixel(64, 64, Rgba([0, 0, 0, 0]));
        for (x, _, pixel) in picture.enumerate_pixels_mut() {
            if x % 3 == 0 {
                *pixel = Rgba([255, 255, 255, 255]);
            }
        }
        let drawing = Drawing::new(PictureInfo::default(), picture, SIDE_PX);
        // White on nothing stays white however thin: its colour times alpha is its alpha.
        for size in &drawing.sizes {
            assert!(size.pixels().all(|p| p.0[0].abs_diff(p.0[3]) <= 1));
        }
    }
}
