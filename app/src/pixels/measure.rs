//! Figures of a crop that the rules judge: how sharp, how bright, and what it looks like.

use serde::{Deserialize, Serialize};

use super::Rgb;

/// Brightness of a crop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exposure {
    /// Mean luma, 0 to 255.
    pub mean: f32,
    /// Share of pixels that are nearly black (luma below 8).
    pub black: f32,
    /// Share of pixels that are nearly white (luma above 247).
    pub white: f32,
}

/// What a crop looks like, in 256 bits: whether each cell of a 16x16 grid is darker than its right neighbour. Of the
/// crop and of its mirror image (which ties between flat cells keep from being the same bits backwards).
/// Near-duplicates differ in few bits; `dataset` has the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PhotoHash {
    bits: [u64; 4],
    mirrored: [u64; 4],
}

impl PhotoHash {
    /// Bits that differ, from this photo or from its mirror image: a mirrored photo teaches nothing new either.
    pub fn distance(&self, other: &Self) -> u32 {
        let differing = |a: &[u64; 4]| a.iter().zip(other.bits).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        differing(&self.bits).min(differing(&self.mirrored))
    }
}

impl From<PhotoHash> for String {
    fn from(hash: PhotoHash) -> Self {
        let words = hash.bits.iter().chain(&hash.mirrored);
        words.map(|word| format!("{word:016x}")).collect()
    }
}

impl TryFrom<String> for PhotoHash {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("a photo's hash is 128 hex digits, not {text:?}");
        let mut words = [0; 8];
        if text.len() != 128 || !text.is_ascii() {
            return Err(bad());
        }
        for (i, word) in words.iter_mut().enumerate() {
            *word = u64::from_str_radix(&text[i * 16..(i + 1) * 16], 16).map_err(|_| bad())?;
        }
        let [a, b, c, d, e, f, g, h] = words;
        Ok(Self {
            bits: [a, b, c, d],
            mirrored: [e, f, g, h],
        })
    }
}

/// ITU-R BT.601 luma, 0 to 255.
fn luma(image: &Rgb) -> Vec<f32> {
    image
        .pixels()
        .chunks_exact(3)
        .map(|p| 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]))
        .collect()
}

pub fn exposure(image: &Rgb) -> Exposure {
    let luma = luma(image);
    let count = luma.len().max(1) as f32;
    let share = |test: fn(&&f32) -> bool| luma.iter().filter(test).count() as f32 / count;
    Exposure {
        mean: luma.iter().sum::<f32>() / count,
        black: share(|l| **l < 8.0),
        white: share(|l| **l > 247.0),
    }
}

pub fn hash(image: &Rgb) -> PhotoHash {
    // 17 cells across give 16 differences in each of 16 rows.
    let cells = luma(&image.resized(17, 16));
    let mut bits = [0u64; 4];
    let mut mirrored = [0u64; 4];
    for y in 0..16 {
        let row = &cells[y * 17..(y + 1) * 17];
        for x in 0..16 {
            let bit = 1 << ((y % 4) * 16 + x);
            if row[x] < row[x + 1] {
                bits[y / 4] |= bit;
            }
            if row[16 - x] < row[15 - x] {
                mirrored[y / 4] |= bit;
            }
        }
    }
    PhotoHash { bits, mirrored }
}

/// Side of the tiles that are looked at one by one, in pixels.
const TILE_PX: usize = 64;
/// Tiles with less change than this between neighbours, in levels a pixel, say nothing about focus: sky, a wall.
const MIN_GRADIENT: f32 = 4.0;
/// Half width of the box blur.
const REBLUR_PX: usize = 4;

/// How sharp the sharpest parts are: 0 (all smooth) to 1.
///
/// After Crete et al. 2007, "The blur effect": blur again with a 9-pixel box; a sharp picture loses most of its
/// gradient, a blurred one has little left to lose. The share lost does not depend on contrast, as the variance of the
/// Laplacian does (on the same sharp photos that ran from 100 to 5451, and at sigma 1.5 still up to 38). Taken for each
/// tile and direction, so that motion blur counts; of the tiles the mean of the best 15%, so that a subject in focus
/// before a soft background is sharp. `photo` has the measurements and the limits.
pub fn sharpness(image: &Rgb) -> f32 {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let across = lost_gradients(&luma(image), width);
    let down = lost_gradients(&transposed(&luma(image), width), height);
    let mut tiles = Vec::new();
    for top in (0..height).step_by(TILE_PX) {
        for left in (0..width).step_by(TILE_PX) {
            let (right, bottom) = ((left + TILE_PX).min(width), (top + TILE_PX).min(height));
            let (gradient_x, lost_x) = sum(&across, width, left..right, top..bottom);
            let (gradient_y, lost_y) = sum(&down, height, top..bottom, left..right);
            let pixels = ((right - left) * (bottom - top)) as f32;
            if (gradient_x + gradient_y) / pixels > MIN_GRADIENT {
                tiles.push(ratio(lost_x, gradient_x).min(ratio(lost_y, gradient_y)));
            }
        }
    }
    if tiles.is_empty() {
        let (gradient_x, lost_x) = sum(&across, width, 0..width, 0..height);
        let (gradient_y, lost_y) = sum(&down, height, 0..height, 0..width);
        return ratio(lost_x, gradient_x).min(ratio(lost_y, gradient_y));
    }
    tiles.sort_by(|a, b| b.total_cmp(a));
    let best = &tiles[..(tiles.len() * 15).div_ceil(100)];
    best.iter().sum::<f32>() / best.len() as f32
}

fn ratio(part: f32, whole: f32) -> f32 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    let height = values.len() / width;
    (0..values.len())
        .map(|i| values[(i % height) * width + i / height])
        .collect()
}

/// For each value: its difference from the left neighbour, and how much of that a box blur along the row takes away.
fn lost_gradients(values: &[f32], width: usize) -> Vec<(f32, f32)> {
    let mut out = Vec::with_capacity(values.len());
    let mut blurred = vec![0.0; width];
    for row in values.chunks_exact(width) {
        for (x, value) in blurred.iter_mut().enumerate() {
            let (from, to) = (x.saturating_sub(REBLUR_PX), (x + REBLUR_PX + 1).min(width));
            *value = row[from..to].iter().sum::<f32>() / (to - from) as f32;
        }
        out.push((0.0, 0.0));
        for x in 1..width {
            let gradient = (row[x] - row[x - 1]).abs();
            let left = (blurred[x] - blurred[x - 1]).abs();
            out.push((gradient, (gradient - left).max(0.0)));
        }
    }
    out
}

fn sum(
    values: &[(f32, f32)],
    width: usize,
    columns: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
) -> (f32, f32) {
    rows.flat_map(|y| &values[y * width + columns.start..y * width + columns.end])
        .fold((0.0, 0.0), |(a, b), (gradient, lost)| (a + gradient, b + lost))
}
