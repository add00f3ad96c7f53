//! Convolution. The input is unrolled into patches, a row per output pixel that holds the `kernel * kernel * inputs` values
//! under its window (runs of `kernel * inputs` lie side by side in the input), a band of pixels at a time so that they
//! stay in the cache, and a matrix product per band.
//!
//! Gradient of x: with stride 1 the forward itself, on the gradient with the kernel turned round; else `dy w`, folded
//! back. Gradient of w: `dy^T patches`, summed over bands in their order. Gradient of the bias: sums over pixels.

use rayon::prelude::*;

use super::{
    super::ir::Window,
    kernel::{Mat, MatMut, Onto, Plus, Scratch, Write, add, column_sums, par_product, product},
    linear,
};

/// Pixels of a band: as many as keep its patches below this many values.
const BAND_VALUES: usize = 1 << 17;
/// Fewer pixels than this make the products too thin.
const BAND_PIXELS: usize = 64;
/// Bands that keep enough threads busy; fewer of them share the threads in each product.
const BANDS: usize = 4;

/// `x` `[rows, height, width, inputs]`, `y` `[rows, out_height, out_width, outputs]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub height: usize,
    pub width: usize,
    pub out_height: usize,
    pub out_width: usize,
    pub window: Window,
}

impl Sizes {
    pub fn of(x: &[usize], y: &[usize], window: Window) -> Self {
        let (&[rows, height, width, inputs], &[_, out_height, out_width, outputs]) = (x, y) else {
            unreachable!("a convolution is of maps: {x:?} to {y:?}")
        };
        Self {
            rows,
            inputs,
            outputs,
            height,
            width,
            out_height,
            out_width,
            window,
        }
    }

    fn patch(self) -> usize {
        self.window.kernel * self.window.kernel * self.inputs
    }

    /// Output pixels of all rows together.
    fn pixels(self) -> usize {
        self.rows * self.out_height * self.out_width
    }

    /// The input is its own patches.
    fn is_plain(self) -> bool {
        let Window {
            kernel,
            stride,
            before,
            after,
        } = self.window;
        (kernel, stride, before, after) == (1, 1, 0, 0)
    }

    /// First pixel and count.
    fn bands(self) -> Vec<(usize, usize)> {
        let pixels = self.pixels();
        let shared = pixels.div_ceil(2 * BANDS).next_multiple_of(16);
        let size = (BAND_VALUES / self.patch()).min(shared).max(BAND_PIXELS);
        (0..pixels)
            .step_by(size)
            .map(|first| (first, size.min(pixels - first)))
            .collect()
    }

    /// The taps of a window's row or column at output `o` that lie inside `size` values: `start..end`, and the input
    /// under the first of them.
    fn inside(self, o: usize, size: usize) -> (usize, usize, usize) {
        let Window {
            kernel, stride, before, ..
        } = self.window;
        let start = before.saturating_sub(o * stride);
        let end = (size + before).saturating_sub(o * stride).min(kernel).max(start);
        (start, end, o * stride + start - before)
    }
}

pub(crate) fn forward(y: &mut [f32], x: &[f32], w: &[f32], onto: Onto, sizes: Sizes) {
    if sizes.is_plain() {
        return linear::forward(y, x, w, sizes.outputs, onto);
    }
    convolve(y, x, Mat::new(w, sizes.outputs, sizes.patch()).t(), onto, sizes);
}

/// `w` `[patch, outputs]`.
fn convolve(y: &mut [f32], x: &[f32], w: Mat, onto: Onto, sizes: Sizes) {
    let (outputs, patch) = (sizes.outputs, sizes.patch());
    let out = MatMut::new(y, sizes.pixels(), outputs);
    let bands = sizes.bands();
    let multiply = if bands.len() < BANDS { par_product } else { product };
    bands.par_iter().for_each(|&(first, count)| {
        let patches = Patches::of(x, first, count, sizes);
        // SAFETY: bands do not share pixels.
        let part = unsafe { out.tile((first, count), (0, outputs)) };
        let write = onto.lay(part, (first, 0), outputs);
        multiply(part, Mat::new(&patches.0, count, patch), w, 1., write);
    });
}

struct Patches(Scratch);

impl Patches {
    fn of(x: &[f32], first: usize, count: usize, sizes: Sizes) -> Self {
        let patch = sizes.patch();
        let mut values = Scratch::new(count * patch);
        let pixels = values.par_chunks_mut(patch).enumerate().with_min_len(BAND_PIXELS);
        pixels.for_each(|(i, values)| unroll(values, x, first + i, sizes));
        Self(values)
    }
}

/// The values under the window of one output pixel, zeros where it stands over the edge.
fn unroll(patch: &mut [f32], x: &[f32], pixel: usize, sizes: Sizes) {
    let Sizes {
        inputs,
        height,
        width,
        out_height,
        out_width,
        window,
        ..
    } = sizes;
    let (line, column) = (pixel / out_width, pixel % out_width);
    let (row, line) = (line / out_height, line % out_height);
    let (top, bottom, y) = sizes.inside(line, height);
    let (left, right, x_first) = sizes.inside(column, width);
    let run = window.kernel * inputs;
    patch[..top * run].fill(0.);
    patch[bottom * run..].fill(0.);
    for (i, run) in patch[top * run..bottom * run].chunks_exact_mut(run).enumerate() {
        let source = &x[((row * height + y + i) * width + x_first) * inputs..];
        let inner = (right - left) * inputs;
        run[..left * inputs].fill(0.);
        run[left * inputs..right * inputs].copy_from_slice(&source[..inner]);
        run[right * inputs..].fill(0.);
    }
}

pub(crate) fn grad_x(dx: &mut [f32], dy: &[f32], w: &[f32], plus: Plus, sizes: Sizes) {
    if sizes.is_plain() {
        linear::grad_x(dx, dy, w, sizes.outputs, plus);
    } else if sizes.window.stride == 1 {
        convolve_back(dx, dy, w, plus, sizes);
    } else {
        fold_back(dx, dy, w, plus, sizes);
    }
}

/// With stride 1: a convolution of `dy` with the kernel turned by 180 degrees, inputs and outputs swapped.
fn convolve_back(dx: &mut [f32], dy: &[f32], w: &[f32], plus: Plus, sizes: Sizes) {
    let Sizes {
        inputs,
        outputs,
        height,
        width,
        out_height,
        out_width,
        window,
        ..
    } = sizes;
    let square = window.kernel * window.kernel;
    // [kernel, kernel, outputs, inputs], taps in reverse.
    let mut turned = Scratch::new(w.len());
    turned
        .par_chunks_mut(inputs)
        .enumerate()
        .with_min_len(256)
        .for_each(|(index, turned)| {
            let (tap, output) = (index / outputs, index % outputs);
            turned.copy_from_slice(&w[(output * square + square - 1 - tap) * inputs..][..inputs]);
        });
    let back = Sizes {
        inputs: outputs,
        outputs: inputs,
        height: out_height,
        width: out_width,
        out_height: height,
        out_width: width,
        window: Window {
            before: window.kernel - 1 - window.before,
            after: window.kernel - 1 - window.after,
            ..window
        },
        ..sizes
    };
    let w = Mat::new(&turned, square * outputs, inputs);
    convolve(dx, dy, w, Onto { bias: None, plus }, back);
}

/// Gradients of patches that are held at a time.
const FOLD_VALUES: usize = 1 << 22;

/// With any stride: the gradient of the patches, added up where they overlap; some rows of the batch at a time.
fn fold_back(dx: &mut [f32], dy: &[f32], w: &[f32], plus: Plus, sizes: Sizes) {
    let Sizes {
        inputs,
        outputs,
        height,
        width,
        ..
    } = sizes;
    let (patch, out_pixels) = (sizes.patch(), sizes.out_height * sizes.out_width);
    let rows = (FOLD_VALUES / (patch * out_pixels)).clamp(1, sizes.rows);
    let w = Mat::new(w, outputs, patch);
    let (line, row) = (width * inputs, height * width * inputs);
    let parts = dx.chunks_mut(rows * row).zip(dy.chunks(rows * out_pixels * outputs));
    for (part, (dx, dy)) in parts.enumerate() {
        let pixels = dy.len() / outputs;
        let mut patches = Scratch::new(pixels * patch);
        let view = MatMut::new(&mut patches, pixels, patch);
        par_product(view, Mat::new(dy, pixels, outputs), w, 1., Write::Replace);
        dx.par_chunks_mut(line).enumerate().for_each(|(index, dx)| {
            plus.part((part * rows * height + index) * line, line).lay(dx);
            let patches = &patches[index / height * out_pixels * patch..][..out_pixels * patch];
            fold_line(dx, patches, index % height, sizes);
        });
    }
}

/// Adds what the patches of a row of the batch hold of input line `y`.
fn fold_line(dx: &mut [f32], patches: &[f32], y: usize, sizes: Sizes) {
    let Sizes {
        inputs,
        width,
        out_height,
        out_width,
        window,
        ..
    } = sizes;
    let (run, patch) = (window.kernel * inputs, sizes.patch());
    for tap in 0..window.kernel {
        let Some(from_top) = (y + window.before).checked_sub(tap) else {
            continue;
        };
        let line = from_top / window.stride;
        if from_top % window.stride != 0 || line >= out_height {
            continue;
        }
        for column in 0..out_width {
            let (left, right, x) = sizes.inside(column, width);
            let values = &patches[(line * out_width + column) * patch + tap * run..][..run];
            add(&mut dx[x * inputs..], &values[left * inputs..right * inputs]);
        }
    }
}

/// Weights larger than this are summed in place, smaller ones in several parts at a time.
const PARTS_BELOW: usize = 1 << 18;
const PARTS: usize = 8;

/// The gradients that are wanted.
pub(crate) fn grad_w(
    dw: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    write: Write,
    sizes: Sizes,
) {
    if sizes.is_plain() {
        return linear::grad_w(dw, dbias, dy, x, (sizes.inputs, sizes.outputs), write);
    }
    if let Some(dw) = dw {
        weight_gradient(dw, dy, x, write, sizes);
    }
    if let Some(dbias) = dbias {
        column_sums(dbias, dy, write);
    }
}

fn weight_gradient(dw: &mut [f32], dy: &[f32], x: &[f32], write: Write, sizes: Sizes) {
    let (outputs, patch) = (sizes.outputs, sizes.patch());
    let bands = sizes.bands();
    let in_parts = outputs * patch < PARTS_BELOW && bands.len() >= BANDS;
    let multiply = if in_parts { product } else { par_product };
    let sum_bands = |sum: &mut [f32], bands: &[(usize, usize)], write: Write| {
        for (index, &(first, count)) in bands.iter().enumerate() {
            let patches = Patches::of(x, first, count, sizes);
            let dy = Mat::new(&dy[first * outputs..], count, outputs);
            let write = if index == 0 { write } else { Write::Add };
            let out = MatMut::new(sum, outputs, patch);
            multiply(out, dy.t(), Mat::new(&patches.0, count, patch), 1., write);
        }
    };
    if !in_parts {
        return sum_bands(dw, &bands, write);
    }
    let parts: Vec<Scratch> = bands
        .par_chunks(bands.len().div_ceil(PARTS))
        .map(|bands| {
            let mut sum = Scratch::new(outputs * patch);
            sum_bands(&mut sum, bands, Write::Replace);
            sum
        })
        .collect();
    const RUN: usize = 1 << 12;
    dw.par_chunks_mut(RUN).enumerate().for_each(|(run, dw)| {
        if write == Write::Replace {
            dw.fill(0.);
        }
        for part in &parts {
            add(dw, &part[run * RUN..][..dw.len()]);
        }
    });
}
