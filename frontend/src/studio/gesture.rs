//! Fingers, mouse and wheel on the crop frame, in photo pixels: plain arithmetic without a browser in it.

use app::crop::Crop;

/// A pointer, in photo pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pointer {
    id: i32,
    x: f64,
    y: f64,
}

/// What one pointer does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Grip {
    /// The frame goes with the pointer.
    Move,
    /// A corner goes with the pointer; the opposite one, given here, stays.
    Corner { anchor_x: f64, anchor_y: f64 },
}

/// The pointers that are down. One moves the frame or a corner; two stretch it.
#[derive(Clone, Debug, Default)]
pub struct Gesture {
    pointers: Vec<Pointer>,
    grip: Option<Grip>,
}

impl Gesture {
    /// A pointer comes down. Within `reach` of a corner it takes the corner.
    pub fn down(&mut self, crop: &Crop, id: i32, x: f64, y: f64, reach: f64) {
        self.pointers.retain(|pointer| pointer.id != id);
        self.pointers.push(Pointer { id, x, y });
        self.grip = Some(grip_at(crop, x, y, reach));
    }

    /// A pointer moves; gives the crop that follows it.
    pub fn moved(&mut self, crop: &Crop, id: i32, x: f64, y: f64) -> Option<Crop> {
        let before = self.pointers.clone();
        let pointer = self.pointers.iter_mut().find(|pointer| pointer.id == id)?;
        let (dx, dy) = (x - pointer.x, y - pointer.y);
        (pointer.x, pointer.y) = (x, y);
        if let ([a0, b0], [a1, b1]) = (&before[..], &self.pointers[..]) {
            let (from, to) = (distance(a0, b0).max(1.0), distance(a1, b1).max(1.0));
            let (middle0, middle1) = (middle(a0, b0), middle(a1, b1));
            let moved = crop.moved(middle1.0 - middle0.0, middle1.1 - middle0.1);
            return Some(moved.zoomed(to / from, middle1.0, middle1.1));
        }
        match self.grip? {
            Grip::Move => Some(crop.moved(dx, dy)),
            Grip::Corner { anchor_x, anchor_y } => {
                let side = (x - anchor_x).abs().max((y - anchor_y).abs());
                Some(crop.zoomed(side / f64::from(crop.side_px()).max(1.0), anchor_x, anchor_y))
            }
        }
    }

    /// A pointer goes up or is taken away.
    pub fn up(&mut self, id: i32) {
        self.pointers.retain(|pointer| pointer.id != id);
        // After a pinch the finger that stays moves the frame.
        self.grip = (!self.pointers.is_empty()).then_some(Grip::Move);
    }

    pub fn is_active(&self) -> bool {
        !self.pointers.is_empty()
    }
}

fn grip_at(crop: &Crop, x: f64, y: f64, reach: f64) -> Grip {
    let square = crop.square();
    let (left, top, right, bottom) = (square.x, square.y, square.x + square.side, square.y + square.side);
    let near = |a: f64, b: f64| (a - b).abs() <= reach;
    // The opposite corner of the one that is near.
    for (corner_x, anchor_x) in [(left, right), (right, left)] {
        for (corner_y, anchor_y) in [(top, bottom), (bottom, top)] {
            if near(x, corner_x) && near(y, corner_y) {
                return Grip::Corner { anchor_x, anchor_y };
            }
        }
    }
    Grip::Move
}

/// A turn of the wheel: towards the person is wider. `delta_px` as the browser gives it, in pixels.
pub fn wheel(crop: &Crop, delta_px: f64, x: f64, y: f64) -> Crop {
    // One notch, about 100 px, is 10%.
    crop.zoomed((delta_px.clamp(-300.0, 300.0) * 0.001).exp(), x, y)
}

fn distance(a: &Pointer, b: &Pointer) -> f64 {
    (a.x - b.x).hypot(a.y - b.y)
}

fn middle(a: &Pointer, b: &Pointer) -> (f64, f64) {
    ((a.x + b.x) / 2.0, (a.y + b.y) / 2.0)
}
