//! Launches of group norm and its gradient (`group_norm.cu`).

use super::super::call::{Address, Argument, Call, Element};
use super::{addresses, vector_of};

/// Of the kernels over maps.
const THREADS: usize = 512;
/// Of the kernel that adds up the bands' sums.
const FINISHERS: usize = 1024;
/// Bands of all rows together that keep a large GPU busy; every band's sums are read again by each block of its row, so not
/// more than [`MOST_BANDS`] a row. Fixed numbers and not the card's, so that sums are made alike on every card.
const ENOUGH_BLOCKS: usize = 264;
const MOST_BANDS: usize = 64;

/// A map `[rows, pixels, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    pub pixels: usize,
    pub channels: usize,
    pub groups: usize,
}

impl Shape {
    fn lanes(&self, vector: usize) -> usize {
        (THREADS / (self.channels / vector)).max(1)
    }

    fn bands(&self, vector: usize) -> usize {
        // Two pixels a thread at least, or summing up costs more than reading.
        let most = self.pixels.div_ceil(2 * self.lanes(vector));
        ENOUGH_BLOCKS.div_ceil(self.rows).min(MOST_BANDS).min(most).max(1)
    }

    fn sizes(&self, bands: usize) -> Vec<Argument> {
        let sizes = [self.pixels, self.channels, self.groups, bands];
        sizes.map(|size| Argument::I32(size as i32)).to_vec()
    }
}

/// What is added before the norm; [`Address::NONE`] where nothing is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shift {
    /// `[rows, channels]`
    pub rows: Address,
    /// `[channels]`
    pub channels: Address,
}

#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub x: Address,
    pub shift: Shift,
    pub w: Address,
    pub b: Address,
    pub y: Address,
    /// F32 `[rows, groups, 2]`
    pub stats: Address,
    /// Of [`forward_workspace`] bytes.
    pub workspace: Address,
}

/// Gradients that are not wanted are [`Address::NONE`].
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub dy: Address,
    pub x: Address,
    pub shift: Shift,
    pub w: Address,
    pub b: Address,
    pub stats: Address,
    pub plus: Address,
    pub dx: Address,
    pub dw: Address,
    pub db: Address,
    pub dshift: Shift,
    /// Of [`backward_workspace`] bytes.
    pub workspace: Address,
}

fn call(name: String, grid: [usize; 2], threads: usize, shared_bytes: usize, arguments: Vec<Argument>) -> Call {
    Call {
        name,
        grid: [grid[0] as u32, grid[1] as u32, 1],
        block: [threads as u32, 1, 1],
        shared_bytes: shared_bytes as u32,
        arguments,
    }
}

pub fn forward_workspace(element: Element, shape: &Shape) -> usize {
    4 * 2 * shape.rows * shape.bands(vector_of(element, shape.channels)) * shape.groups
}

pub fn forward(element: Element, shape: &Shape, eps: f64, silu: bool, at: &Forward) -> Vec<Call> {
    let (vector, suffix) = (vector_of(element, shape.channels), element.suffix());
    let bands = shape.bands(vector);
    let grid = [bands, shape.rows];
    let mut sums = addresses(&[at.x, at.shift.rows, at.shift.channels, at.workspace]);
    sums.extend(shape.sizes(bands));
    let mut apply = addresses(&[
        at.x,
        at.shift.rows,
        at.shift.channels,
        at.w,
        at.b,
        at.workspace,
        at.y,
        at.stats,
    ]);
    apply.extend([Argument::F32(eps as f32), Argument::I32(silu.into())]);
    apply.extend(shape.sizes(bands));
    let lanes_bytes = 4 * 2 * shape.lanes(vector) * shape.channels;
    vec![
        call(
            format!("group_norm_sums_{vector}_{suffix}"),
            grid,
            THREADS,
            lanes_bytes,
            sums,
        ),
        call(
            format!("group_norm_apply_{vector}_{suffix}"),
            grid,
            THREADS,
            4 * 2 * shape.groups,
            apply,
        ),
    ]
}

/// Bytes of the groups' sums, rounded up so that what follows is aligned.
fn group_sums_bytes(shape: &Shape) -> usize {
    (4 * 2 * shape.rows * shape.groups).next_multiple_of(256)
}

pub fn backward_workspace(element: Element, shape: &Shape) -> usize {
    let bands = shape.bands(vector_of(element, shape.channels));
    group_sums_bytes(shape) + 4 * 3 * shape.rows * bands * shape.channels
}

pub fn backward(element: Element, shape: &Shape, silu: bool, add: bool, at: &Backward) -> Vec<Call> {
    let (vector, suffix) = (vector_of(element, shape.channels), element.suffix());
    let bands = shape.bands(vector);
    let grid = [bands, shape.rows];
    let group_sums = at.workspace;
    let parts = at.workspace.offset(group_sums_bytes(shape));
    let operands = [at.dy, at.x, at.shift.rows, at.shift.channels, at.w, at.b, at.stats];
    let silu = Argument::I32(silu.into());

    let mut sums = addresses(&operands);
    sums.extend([Argument::Address(parts), silu]);
    sums.extend(shape.sizes(bands));
    let mut finish = addresses(&[
        at.w,
        at.stats,
        parts,
        group_sums,
        at.dw,
        at.db,
        at.dshift.rows,
        at.dshift.channels,
    ]);
    finish.extend([Argument::I32(shape.rows as i32), Argument::I32(add.into())]);
    finish.extend(shape.sizes(bands));
    let mut apply = addresses(&operands);
    apply.extend(addresses(&[group_sums, at.plus, at.dx]));
    apply.push(silu);
    apply.extend(shape.sizes(bands));
    vec![
        call(
            format!("group_norm_grad_sums_{vector}_{suffix}"),
            grid,
            THREADS,
            4 * 3 * shape.lanes(vector) * shape.channels,
            sums,
        ),
        call(
            format!("group_norm_grad_finish_{suffix}"),
            [shape.groups, 1],
            FINISHERS,
            4 * shape.rows * (3 * shape.channels / shape.groups + 2),
            finish,
        ),
        call(
            format!("group_norm_grad_apply_{vector}_{suffix}"),
            grid,
            THREADS,
            0,
            apply,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_cut_into_enough_bands_and_a_small_one_is_not_cut_up() {
        let shape = |pixels, channels| Shape {
            rows: 2,
            pixels,
            channels,
            groups: 32,
        };
        // 40 vectors of 320 channels: 12 lanes.
        assert_eq!(shape(4096, 320).bands(8), 64);
        // 160 vectors: 3 lanes, 6 pixels a band.
        assert_eq!(shape(64, 1280).bands(8), 11);
        assert_eq!(shape(1, 2560).bands(8), 1);
        let small = Shape {
            groups: 3,
            ..shape(35, 9)
        };
        assert_eq!(vector_of(Element::Bf16, small.channels), 1);
        assert_eq!(backward_workspace(Element::Bf16, &small), 256 + 4 * 3 * 2 * 9);
    }

    #[test]
    fn lanes_fit_shared_memory() {
        for channels in [320, 640, 960, 1280, 1920, 2560] {
            let shape = Shape {
                rows: 2,
                pixels: 4096,
                channels,
                groups: 32,
            };
            assert!(4 * 3 * shape.lanes(8) * channels <= 48 * 1024, "{channels}");
        }
    }
}
