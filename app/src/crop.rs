//! The square of a photo that is trained on, in pixels of the upright photo, and every way to move it.
//!
//! A `Crop` always lies inside its photo: there is no way to make one that does not, and every move clamps.

use crate::api::CropSquare;
use crate::pixels::Rgb;

/// No crop is smaller than this, unless the photo is: below it nothing could be seen or grabbed.
pub const MIN_SIDE_PX: f64 = 32.0;
/// Long side of the thumbnail that `suggest` looks at: enough to find a subject, cheap enough to do for every photo.
pub const SUGGEST_PX: u32 = 128;

/// A square inside a photo of known size. Coordinates may be fractions while a gesture runs; `square` gives whole
/// pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crop {
    photo_px: (u32, u32),
    x: f64,
    y: f64,
    side: f64,
}

/// Why a square is not a crop of a photo.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum CropError {
    #[error("the crop has a side of {side}; it must be a number of pixels above 0")]
    NotASquare { side: f64 },
    #[error("the crop at {x}, {y} with side {side} px reaches outside the photo of {width}x{height} px")]
    Outside {
        x: f64,
        y: f64,
        side: f64,
        width: u32,
        height: u32,
    },
}

/// A key of the crop editor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Left,
    Right,
    Up,
    Down,
    /// The square gets smaller: closer to the subject.
    In,
    Out,
}

impl Crop {
    /// Checks that `square` lies inside a photo of `width` x `height` upright pixels.
    ///
    /// # Errors
    /// A side that is not positive, or any part outside.
    pub fn new(square: CropSquare, width: u32, height: u32) -> Result<Self, CropError> {
        let CropSquare { x, y, side } = square;
        if !(side.is_finite() && side >= 1.0) {
            return Err(CropError::NotASquare { side });
        }
        // Half a pixel of slack for what was rounded on the way; NaN is outside.
        let inside =
            x >= -0.5 && y >= -0.5 && x + side <= f64::from(width) + 0.5 && y + side <= f64::from(height) + 0.5;
        if !inside {
            return Err(CropError::Outside {
                x,
                y,
                side,
                width,
                height,
            });
        }
        Ok(Self::clamped(x, y, side, (width, height)))
    }

    /// The largest square, in the middle.
    pub fn centred(width: u32, height: u32) -> Self {
        let side = f64::from(width.min(height));
        let (x, y) = ((f64::from(width) - side) / 2.0, (f64::from(height) - side) / 2.0);
        Self::clamped(x, y, side, (width, height))
    }

    fn clamped(x: f64, y: f64, side: f64, photo_px: (u32, u32)) -> Self {
        let (width, height) = (f64::from(photo_px.0.max(1)), f64::from(photo_px.1.max(1)));
        let largest = width.min(height);
        let side = side.clamp(MIN_SIDE_PX.min(largest), largest);
        Self {
            photo_px,
            x: x.clamp(0.0, width - side),
            y: y.clamp(0.0, height - side),
            side,
        }
    }

    /// Where it lies, in whole pixels: what is cut, shown and uploaded.
    pub fn square(&self) -> CropSquare {
        let side = self.side.round();
        let limit = |photo: u32| (f64::from(photo) - side).max(0.0);
        CropSquare {
            x: self.x.round().min(limit(self.photo_px.0)),
            y: self.y.round().min(limit(self.photo_px.1)),
            side,
        }
    }

    /// Side in whole pixels.
    pub fn side_px(&self) -> u32 {
        // In range: between 1 and the photo's shorter side.
        self.side.round() as u32
    }

    pub fn photo_px(&self) -> (u32, u32) {
        self.photo_px
    }

    /// Left, top and side as fractions of the photo's width, height and width: for drawing the frame.
    pub fn fractions(&self) -> (f64, f64, f64) {
        let (width, height) = (f64::from(self.photo_px.0.max(1)), f64::from(self.photo_px.1.max(1)));
        (self.x / width, self.y / height, self.side / width)
    }

    /// Shifted by photo pixels, stopping at the edges.
    #[must_use]
    pub fn moved(&self, dx_px: f64, dy_px: f64) -> Self {
        let finite = |d: f64| if d.is_finite() { d } else { 0.0 };
        Self::clamped(self.x + finite(dx_px), self.y + finite(dy_px), self.side, self.photo_px)
    }

    /// Side multiplied by `factor` while the photo point (`at_x`, `at_y`) keeps its place inside the square.
    #[must_use]
    pub fn zoomed(&self, factor: f64, at_x: f64, at_y: f64) -> Self {
        if !(factor.is_finite() && factor > 0.0 && at_x.is_finite() && at_y.is_finite()) {
            return *self;
        }
        let largest = f64::from(self.photo_px.0.min(self.photo_px.1).max(1));
        let side = (self.side * factor).clamp(MIN_SIDE_PX.min(largest), largest);
        let kept = side / self.side;
        let (x, y) = (at_x - (at_x - self.x) * kept, at_y - (at_y - self.y) * kept);
        Self::clamped(x, y, side, self.photo_px)
    }

    /// The middle of the square in photo pixels.
    pub fn centre(&self) -> (f64, f64) {
        (self.x + self.side / 2.0, self.y + self.side / 2.0)
    }

    /// One press of a key: `px` pixels along, or `px` pixels of side about the middle. Lands on whole pixels.
    #[must_use]
    pub fn stepped(&self, step: Step, px: f64) -> Self {
        let CropSquare { x, y, side } = self.square();
        let here = Self::clamped(x, y, side, self.photo_px);
        let (centre_x, centre_y) = here.centre();
        match step {
            Step::Left => here.moved(-px, 0.0),
            Step::Right => here.moved(px, 0.0),
            Step::Up => here.moved(0.0, -px),
            Step::Down => here.moved(0.0, px),
            Step::In => here.zoomed(((side - px) / side).max(f64::MIN_POSITIVE), centre_x, centre_y),
            Step::Out => here.zoomed((side + px) / side, centre_x, centre_y),
        }
    }
}

/// A good first crop: the largest square, slid along the longer side to where the photo is most interesting.
///
/// `thumbnail` shows the whole upright photo of `width` x `height`, its longer side about `SUGGEST_PX`. Interest of a
/// pixel = edges + colour unlike the photo's mean colour (after Achanta et al. 2009: a subject differs from its
/// surroundings), weighted towards the middle, and in upright photos towards a point above it, where heads are.
pub fn suggest(thumbnail: &Rgb, width: u32, height: u32) -> Crop {
    let centred = Crop::centred(width, height);
    let (w, h) = (thumbnail.width() as usize, thumbnail.height() as usize);
    if width == height || w < 3 || h < 3 {
        return centred;
    }
    let wide = width > height;
    let profile = interest_profile(thumbnail, wide);
    // Window in thumbnail pixels along the longer side.
    let window = if wide { h } else { w }.min(profile.len());
    let free = profile.len() - window;
    let middle = if wide { 0.5 } else { 0.42 };
    let mut best = (f64::NEG_INFINITY, 0.0);
    for offset in 0..=free {
        let inside: f64 = profile[offset..offset + window].iter().sum();
        let at = if free == 0 { 0.5 } else { offset as f64 / free as f64 };
        // The prior decides between near-equals only: 12% from the middle to an end.
        let score = inside * (1.0 - 0.24 * (at - middle).abs());
        if score > best.0 {
            best = (score, at);
        }
    }
    let (x, y) = if wide {
        (best.1 * f64::from(width - height), 0.0)
    } else {
        (0.0, best.1 * f64::from(height - width))
    };
    Crop::clamped(x.round(), y.round(), centred.side, (width, height))
}

/// Interest summed over the shorter side, one value for each row or column along the longer.
fn interest_profile(thumbnail: &Rgb, wide: bool) -> Vec<f64> {
    let (w, h) = (thumbnail.width() as usize, thumbnail.height() as usize);
    let pixel = |x: usize, y: usize| -> [f64; 3] {
        let at = (y * w + x) * 3;
        let p = &thumbnail.pixels()[at..at + 3];
        [f64::from(p[0]), f64::from(p[1]), f64::from(p[2])]
    };
    let mut mean = [0.0; 3];
    for p in thumbnail.pixels().chunks_exact(3) {
        for (sum, &value) in mean.iter_mut().zip(p) {
            *sum += f64::from(value) / (w * h) as f64;
        }
    }
    let distance = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let mut profile = vec![0.0; if wide { w } else { h }];
    for y in 1..h - 1 {
        for x in 1..w - 1 {
            let edges = distance(pixel(x + 1, y), pixel(x - 1, y)) + distance(pixel(x, y + 1), pixel(x, y - 1));
            // Edges are capped: a hedge or a brick wall must not outweigh a face.
            let interest = edges.min(80.0) + 0.5 * distance(pixel(x, y), mean);
            profile[if wide { x } else { y }] += interest;
        }
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(x: f64, y: f64, side: f64) -> CropSquare {
        CropSquare { x, y, side }
    }

    #[test]
    fn a_square_outside_its_photo_is_refused() {
        assert!(Crop::new(square(0.0, 0.0, 300.0), 400, 300).is_ok());
        assert!(Crop::new(square(100.0, 0.0, 300.0), 400, 300).is_ok());
        assert!(Crop::new(square(101.0, 0.0, 300.0), 400, 300).is_err());
        assert!(Crop::new(square(-1.0, 0.0, 100.0), 400, 300).is_err());
        assert!(Crop::new(square(0.0, 0.0, 0.0), 400, 300).is_err());
        assert!(Crop::new(square(f64::NAN, 0.0, 10.0), 400, 300).is_err());
        assert!(Crop::new(square(0.0, 0.0, f64::INFINITY), 400, 300).is_err());
    }

    #[test]
    fn moves_stop_at_the_edges() {
        let crop = Crop::new(square(10.0, 10.0, 100.0), 400, 300).expect("inside");
        assert_eq!(crop.moved(-50.0, 500.0).square(), square(0.0, 200.0, 100.0));
        assert_eq!(crop.moved(f64::NAN, 5.0).square(), square(10.0, 15.0, 100.0));
    }

    #[test]
    fn zooming_keeps_the_point_under_the_finger() {
        let crop = Crop::new(square(100.0, 100.0, 100.0), 400, 300).expect("inside");
        // The point is a quarter into the square and stays there.
        let zoomed = crop.zoomed(0.5, 125.0, 125.0);
        assert_eq!(zoomed.square(), square(113.0, 113.0, 50.0));
        // Never outside, never larger than the photo, never smaller than can be seen.
        assert_eq!(crop.zoomed(100.0, 0.0, 0.0).side_px(), 300);
        assert_eq!(crop.zoomed(1e-9, 0.0, 0.0).side_px(), 32);
        assert_eq!(crop.zoomed(f64::NAN, 0.0, 0.0), crop);
    }

    #[test]
    fn small_zooms_add_up_and_are_not_lost_to_rounding() {
        let mut crop = Crop::new(square(0.0, 0.0, 60.0), 400, 300).expect("inside");
        for _ in 0..70 {
            crop = crop.zoomed(1.005, 30.0, 30.0);
        }
        assert_eq!(crop.side_px(), 85); // 60 * 1.005^70
    }

    #[test]
    fn keys_move_by_whole_pixels() {
        let crop = Crop::new(square(10.0, 10.0, 100.0), 400, 300).expect("inside");
        assert_eq!(crop.stepped(Step::Right, 1.0).square(), square(11.0, 10.0, 100.0));
        assert_eq!(crop.stepped(Step::Up, 10.0).square(), square(10.0, 0.0, 100.0));
        assert_eq!(crop.stepped(Step::In, 10.0).square(), square(15.0, 15.0, 90.0));
        assert_eq!(crop.stepped(Step::Out, 10.0).square(), square(5.0, 5.0, 110.0));
        let smallest = Crop::new(square(0.0, 0.0, 32.0), 400, 300).expect("inside");
        assert_eq!(smallest.stepped(Step::In, 100.0).side_px(), 32);
    }

    #[test]
    fn a_tiny_photo_still_has_a_crop() {
        assert_eq!(Crop::centred(1, 1).square(), square(0.0, 0.0, 1.0));
        assert_eq!(Crop::centred(0, 0).side_px(), 1);
        assert_eq!(Crop::centred(20, 30).zoomed(0.1, 0.0, 0.0).side_px(), 20);
    }
}
