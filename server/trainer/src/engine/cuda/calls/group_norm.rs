//! Group norm with its shift and SiLU, and its gradient (`group_norm.cu`).
//!
//! Where a group of a row is small, one block computes it whole and reads it twice, the second time from cache. Larger maps
//! are cut into chunks of pixels that blocks walk with all channels side by side, once for the sums and once to apply
//! them.

use super::{
    super::call::{Address, Call, Element},
    Launch, vector, widest,
};

/// `[rows, pixels, channels]`, channels in `groups`; with `silu` an activation after the norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    pub pixels: usize,
    pub channels: usize,
    pub groups: usize,
    pub silu: bool,
}

/// Operands of [`group_norm`], as `Op::GroupNorm` names them; the shifts may be absent.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub x: Address,
    pub shift_rows: Address,
    pub shift_channels: Address,
    pub w: Address,
    pub b: Address,
    pub y: Address,
    pub stats: Address,
    /// Of [`group_norm_workspace`] bytes.
    pub workspace: Address,
}

/// Operands of [`group_norm_grad`], as `Op::GroupNormGrad` names them. The shifts, `plus`, which may be `dx`, and the results but
/// `dx` may be absent; `dchannels` is the gradient of `shift.channels`.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub dy: Address,
    pub x: Address,
    pub shift_rows: Address,
    pub shift_channels: Address,
    pub w: Address,
    pub b: Address,
    pub stats: Address,
    pub plus: Address,
    pub dx: Address,
    pub dshift: Address,
    pub dw: Address,
    pub db: Address,
    pub dchannels: Address,
    /// Of [`group_norm_grad_workspace`] bytes.
    pub workspace: Address,
}

/// Threads of a block, at most.
const THREADS: usize = 512;
/// Up to so many values in a group of a row, one block is quicker than two launches.
const SMALL: usize = 24 << 10;
/// Blocks that fill a large GPU. Not the card's own number, so that sums are made alike on every card.
const BLOCKS: usize = 132;

/// How a map is cut: all channels in vectors side by side, several pixels at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunks {
    threads: usize,
    count: usize,
    pixels: usize,
}

impl Shape {
    fn of_a_group(&self) -> usize {
        self.channels / self.groups
    }

    /// `None` when blocks take whole groups.
    fn chunks(&self, element: Element, blocks: usize) -> Option<Chunks> {
        let columns = self.channels / vector(element);
        let small = self.pixels * self.of_a_group() <= SMALL;
        if small || !self.channels.is_multiple_of(vector(element)) || columns > THREADS {
            return None;
        }
        let lanes = THREADS / columns;
        // At least two pixels for each thread.
        let most = self.pixels.div_ceil(2 * lanes);
        let pixels = self.pixels.div_ceil((blocks / self.rows).clamp(1, most));
        Some(Chunks {
            threads: columns * lanes,
            count: self.pixels.div_ceil(pixels),
            pixels,
        })
    }

    /// Vector width and threads of a block that takes a whole group.
    fn whole(&self, element: Element) -> (usize, usize) {
        let width = widest(element, &[self.of_a_group()]);
        let columns = self.of_a_group() / width;
        // Each thread keeps to its columns, so the threads are whole pixels. More columns than threads are walked.
        (
            width,
            if columns > THREADS {
                THREADS
            } else {
                THREADS / columns * columns
            },
        )
    }

    fn sizes(&self) -> [usize; 3] {
        [self.pixels, self.channels, self.groups]
    }

    fn sum_bytes(&self) -> usize {
        self.rows * self.groups * 2 * 4
    }
}

/// Bytes that [`group_norm`] needs besides its operands.
pub fn group_norm_workspace(element: Element, shape: &Shape) -> usize {
    shape
        .chunks(element, BLOCKS)
        .map_or(0, |chunks| chunks.count * shape.sum_bytes())
}

pub fn group_norm(element: Element, shape: &Shape, at: &Forward, eps: f64) -> Vec<Call> {
    let (suffix, silu) = (element.suffix(), usize::from(shape.silu));
    let inputs = [at.x, at.shift_rows, at.shift_channels];
    let Some(sums) = shape.chunks(element, BLOCKS) else {
        let (width, threads) = shape.whole(element);
        let launch = Launch::new(
            format!("group_norm_small_{width}_{suffix}"),
            [shape.groups, shape.rows, 1],
            threads,
        );
        let launch = launch.at(inputs).at([at.w, at.b, at.y, at.stats]).ints(shape.sizes());
        return vec![launch.ints([silu]).float(eps).0];
    };
    let apply = shape.chunks(element, 2 * BLOCKS).unwrap_or(sums);
    let first = Launch::new(
        format!("group_norm_sums_{suffix}"),
        [sums.count, shape.rows, 1],
        sums.threads,
    )
    .shared(sums.threads * vector(element) * 4)
    .at(inputs)
    .at([at.workspace])
    .ints(shape.sizes())
    .ints([sums.pixels]);
    // Partial sums in eight lanes, then mean and rstd.
    let second = Launch::new(
        format!("group_norm_apply_{suffix}"),
        [apply.count, shape.rows, 1],
        apply.threads,
    )
    .shared(shape.groups * (8 + 1) * 2 * 4)
    .at(inputs)
    .at([at.w, at.b, at.workspace, at.y, at.stats])
    .ints(shape.sizes())
    .ints([sums.count, apply.pixels, silu])
    .float(eps);
    vec![first.0, second.0]
}

/// Bytes that [`group_norm_grad`] needs besides its operands.
pub fn group_norm_grad_workspace(element: Element, shape: &Shape) -> usize {
    let parts = shape.chunks(element, BLOCKS).map_or(1, |chunks| chunks.count);
    shape.sum_bytes().next_multiple_of(256) + shape.rows * parts * 3 * shape.channels * 4
}

pub fn group_norm_grad(element: Element, shape: &Shape, at: &Backward, add: bool) -> Vec<Call> {
    let (suffix, silu) = (element.suffix(), usize::from(shape.silu));
    let inputs = [at.dy, at.x, at.shift_rows, at.shift_channels, at.w, at.b, at.stats];
    let (sums, partial) = (
        at.workspace,
        at.workspace.offset(shape.sum_bytes().next_multiple_of(256)),
    );
    let chunks = shape.chunks(element, BLOCKS);
    let finish = Launch::new(format!("group_norm_grad_finish_{suffix}"), [shape.groups, 1, 1], 256)
        .shared((2 * 3 * shape.of_a_group() + 256) * 4)
        .at([partial, at.stats, at.w, sums, at.dshift, at.dw, at.db, at.dchannels])
        .ints([shape.rows])
        .ints(shape.sizes())
        .ints([chunks.map_or(1, |chunks| chunks.count), usize::from(add)]);
    let Some(chunks) = chunks else {
        let (width, threads) = shape.whole(element);
        let trained = [at.dshift, at.dw, at.db, at.dchannels]
            .iter()
            .any(|at| *at != Address::NONE);
        let partial = if trained { partial } else { Address::NONE };
        let name = format!("group_norm_grad_small_{width}_{suffix}");
        let launch = Launch::new(name, [shape.groups, shape.rows, 1], threads)
            .shared((threads * width).max(shape.of_a_group()) * 4)
            .at(inputs)
            .at([at.plus, at.dx, partial])
            .ints(shape.sizes())
            .ints([silu]);
        return [launch.0].into_iter().chain(trained.then_some(finish.0)).collect();
    };
    let apply = shape.chunks(element, 2 * BLOCKS).unwrap_or(chunks);
    let first = Launch::new(
        format!("group_norm_grad_sums_{suffix}"),
        [chunks.count, shape.rows, 1],
        chunks.threads,
    )
    .shared(chunks.threads * vector(element) * 4)
    .at(inputs)
    .at([partial])
    .ints(shape.sizes())
    .ints([chunks.pixels, silu]);
    let last = Launch::new(
        format!("group_norm_grad_apply_{suffix}"),
        [apply.count, shape.rows, 1],
        apply.threads,
    )
    .at(inputs)
    .at([sums, at.plus, at.dx])
    .ints(shape.sizes())
    .ints([apply.pixels, silu]);
    vec![first.0, finish.0, last.0]
}
