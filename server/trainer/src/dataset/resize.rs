//! PIL's 8-bit antialiased bilinear resize (`Resample.c`): horizontal pass, rounded to 8 bits, then the vertical one,
//! both in fixed point.

use image::RgbImage;

/// Bits after the point of a weight: 32, less 8 for the pixel and 2 for the sum's sign and overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Size after the shorter side became `side_px`; the longer one is truncated, as torchvision does.
pub(super) fn resized_size(width: u32, height: u32, side_px: u32) -> (u32, u32) {
    let longer = |short: u32, long: u32| (u64::from(side_px) * u64::from(long) / u64::from(short.max(1))) as u32;
    if width <= height {
        (side_px, longer(width, height))
    } else {
        (longer(height, width), side_px)
    }
}

/// torchvision's `Resize(side_px, BILINEAR)` on a PIL picture.
pub fn resize_shorter_side(rgb: &RgbImage, side_px: u32) -> RgbImage {
    let (width, height) = resized_size(rgb.width(), rgb.height(), side_px);
    let wide = if width == rgb.width() {
        rgb.clone()
    } else {
        horizontal(rgb, width)
    };
    if height == rgb.height() {
        wide
    } else {
        vertical(&wide, height)
    }
}

/// Which source pixels make one output pixel.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// Windows of a triangle filter, widened when shrinking.
fn windows(from: u32, to: u32) -> Vec<Window> {
    let scale = f64::from(from) / f64::from(to);
    let support = scale.max(1.0);
    let one = f64::from(1u32 << PRECISION_BITS);
    (0..to)
        .map(|out| {
            let center = (f64::from(out) + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from as usize);
            let weight = |i: usize| (1.0 - ((i as f64 - center + 0.5) / support).abs()).max(0.0);
            let raw: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = raw.iter().sum();
            // Weights are not negative, so adding a half and truncating rounds.
            let weights = raw.iter().map(|w| (0.5 + w / sum * one) as i32).collect();
            Window { first, weights }
        })
        .collect()
}

/// Weighted sum of the pixels `pixel(first + i)`, rounded and clipped to 8 bits.
fn blend(window: &Window, pixel: impl Fn(usize) -> [u8; 3]) -> [u8; 3] {
    let mut sums = [1i32 << (PRECISION_BITS - 1); 3];
    for (i, weight) in window.weights.iter().enumerate() {
        let values = pixel(window.first + i);
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += i32::from(value) * weight;
        }
    }
    sums.map(|sum| (sum >> PRECISION_BITS).clamp(0, 255) as u8)
}

fn horizontal(rgb: &RgbImage, width: u32) -> RgbImage {
    let windows = windows(rgb.width(), width);
    let row_bytes = rgb.width() as usize * 3;
    let source = rgb.as_raw();
    RgbImage::from_fn(width, rgb.height(), |x, y| {
        let row = &source[y as usize * row_bytes..][..row_bytes];
        image::Rgb(blend(&windows[x as usize], |i| {
            [row[3 * i], row[3 * i + 1], row[3 * i + 2]]
        }))
    })
}

fn vertical(rgb: &RgbImage, height: u32) -> RgbImage {
    let windows = windows(rgb.height(), height);
    let row_bytes = rgb.width() as usize * 3;
    let source = rgb.as_raw();
    RgbImage::from_fn(rgb.width(), height, |x, y| {
        let at = x as usize * 3;
        image::Rgb(blend(&windows[y as usize], |i| {
            let start = i * row_bytes + at;
            [source[start], source[start + 1], source[start + 2]]
        }))
    })
}
