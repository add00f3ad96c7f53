//! The CPU kernels: the input unrolled into columns (a column per output pixel, a row per input channel and tap), a
//! band of columns at a time so that they stay in the cache, and a matrix product per band.
//!
//! Gradient of x: with stride 1 the forward itself, on the gradient with the flipped kernel; else `w^T dy`, folded
//! back. Gradient of w: `dy columns^T`, summed over bands in their order. Gradient of b: sums over pixels.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    super::{
        elementwise::sum,
        kernel::{Mat, MatMut, Scratch, Write, output, par_product, product},
        node::{Grads, with_slices},
    },
    Conv2dShape,
};

/// Columns of a band: as many as keep it below this many values.
const BAND_VALUES: usize = 1 << 18;
/// Pictures smaller than this many pixels share a band, or the products would be too thin.
const SHARED_PIXELS: usize = 64;

#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    out_height: usize,
    out_width: usize,
    shape: Conv2dShape,
}

/// Output lines `first..first + lines` of all rows' lines one below the other.
#[derive(Clone, Copy)]
struct Band {
    first: usize,
    lines: usize,
}

impl Sizes {
    fn of(x: &Tensor, weight: &Tensor, shape: Conv2dShape) -> Result<Self> {
        let (rows, inputs, height, width) = x.dims4()?;
        let outputs = weight.dim(0)?;
        let (out_height, out_width) = (shape.output(height), shape.output(width));
        Ok(Self {
            rows,
            inputs,
            outputs,
            height,
            width,
            out_height,
            out_width,
            shape,
        })
    }

    fn taps(self) -> usize {
        self.inputs * self.shape.kernel * self.shape.kernel
    }

    fn pixels(self) -> usize {
        self.height * self.width
    }

    fn out_pixels(self) -> usize {
        self.out_height * self.out_width
    }

    /// A band lies within one row of the batch, or holds whole rows.
    fn bands(self) -> Vec<Band> {
        let most = (BAND_VALUES / (self.taps() * self.out_width)).max(1);
        if self.out_pixels() < SHARED_PIXELS {
            let lines = (most / self.out_height).max(1) * self.out_height;
            let all = self.rows * self.out_height;
            return (0..all)
                .step_by(lines)
                .map(|first| Band {
                    first,
                    lines: lines.min(all - first),
                })
                .collect();
        }
        let lines = self.out_height.div_ceil(self.out_height.div_ceil(most));
        let of_row = |row: usize| {
            let (start, end) = (row * self.out_height, (row + 1) * self.out_height);
            (start..end).step_by(lines).map(move |first| Band {
                first,
                lines: lines.min(end - first),
            })
        };
        (0..self.rows).flat_map(of_row).collect()
    }

    fn columns_of(self, band: Band) -> usize {
        band.lines * self.out_width
    }

    /// A 1x1 convolution of large pictures: the input is its own columns.
    fn is_plain(self) -> bool {
        self.shape == Conv2dShape::same(1) && self.out_pixels() >= SHARED_PIXELS
    }
}

/// The output's values; f32 on the CPU.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, shape: Conv2dShape) -> Result<Vec<f32>> {
    let sizes = Sizes::of(x, weight, shape)?;
    let bias = bias.map(|bias| bias.to_vec1::<f32>()).transpose()?;
    with_slices([x, weight], |[x, weight]| convolve(x, weight, bias.as_deref(), sizes))
}

fn convolve(x: &[f32], weight: &[f32], bias: Option<&[f32]>, sizes: Sizes) -> Vec<f32> {
    let Sizes { rows, outputs, .. } = sizes;
    let pixels = sizes.out_pixels();
    let mut y = output(rows * outputs * pixels);
    let out = MatMut::new(&mut y, rows * outputs, pixels);
    let bands = sizes.bands();
    let weight = Mat::new(weight, outputs, sizes.taps());
    // Few bands: the threads share each band's product instead.
    let multiply = if bands.len() < 8 { par_product } else { product };
    bands.par_iter().for_each(|&band| {
        let columns = sizes.columns_of(band);
        let unrolled = Unrolled::new(x, sizes, band);
        let first_row = band.first / sizes.out_height;
        if columns < pixels || sizes.rows_in(band) == 1 {
            let first_pixel = band.first % sizes.out_height * sizes.out_width;
            // SAFETY: bands do not share output pixels.
            let mut out = unsafe { out.tile((first_row * outputs, outputs), (first_pixel, columns)) };
            (0..outputs).for_each(|o| out.row(o).fill(bias.map_or(0., |bias| bias[o])));
            multiply(out, weight, unrolled.mat(), 1., Write::Add);
            return;
        }
        let mut product = Scratch::new(outputs * columns);
        multiply(
            MatMut::new(&mut product, outputs, columns),
            weight,
            unrolled.mat(),
            1.,
            Write::Replace,
        );
        for row in 0..sizes.rows_in(band) {
            // SAFETY: as above.
            let mut out = unsafe { out.tile(((first_row + row) * outputs, outputs), (0, pixels)) };
            for o in 0..outputs {
                let bias = bias.map_or(0., |bias| bias[o]);
                let values = &product[o * columns + row * pixels..][..pixels];
                out.row(o)
                    .iter_mut()
                    .zip(values)
                    .for_each(|(y, value)| *y = value + bias);
            }
        }
    });
    y
}

impl Sizes {
    /// Rows of the batch in a band that holds whole ones.
    fn rows_in(self, band: Band) -> usize {
        band.lines / self.out_height
    }
}

/// The columns of a band, `[taps, columns]`.
enum Unrolled<'a> {
    Plain(Mat<'a>),
    Copied {
        values: Scratch,
        taps: usize,
        columns: usize,
    },
}

impl<'a> Unrolled<'a> {
    fn new(x: &'a [f32], sizes: Sizes, band: Band) -> Self {
        let (taps, columns) = (sizes.taps(), sizes.columns_of(band));
        if sizes.is_plain() {
            let row = band.first / sizes.out_height;
            let start = row * sizes.inputs * sizes.pixels() + band.first % sizes.out_height * sizes.out_width;
            return Self::Plain(Mat::strided(&x[start..], taps, columns, sizes.pixels()));
        }
        let mut values = Scratch::new(taps * columns);
        let per_channel = sizes.shape.kernel * sizes.shape.kernel * columns;
        let channels = values.par_chunks_mut(per_channel).enumerate().with_min_len(8);
        channels.for_each(|(channel, values)| unroll_channel(values, x, channel, sizes, band));
        Self::Copied { values, taps, columns }
    }

    fn mat(&self) -> Mat<'_> {
        match self {
            Self::Plain(mat) => *mat,
            Self::Copied { values, taps, columns } => Mat::new(values, *taps, *columns),
        }
    }
}

/// All taps of one input channel, `[kernel * kernel, columns]`.
fn unroll_channel(out: &mut [f32], x: &[f32], channel: usize, sizes: Sizes, band: Band) {
    let Sizes {
        inputs,
        height,
        width,
        out_height,
        out_width,
        shape,
        ..
    } = sizes;
    let Conv2dShape {
        kernel, stride, before, ..
    } = shape;
    for (tap, out) in out.chunks_mut(sizes.columns_of(band)).enumerate() {
        let (a, b) = (tap / kernel, tap % kernel);
        for (line, out) in out.chunks_mut(out_width).enumerate() {
            let (row, oy) = ((band.first + line) / out_height, (band.first + line) % out_height);
            let Some(iy) = (oy * stride + a).checked_sub(before).filter(|&iy| iy < height) else {
                out.fill(0.);
                continue;
            };
            let source = &x[((row * inputs + channel) * height + iy) * width..][..width];
            let (start, end) = inside(b, sizes);
            out[..start].fill(0.);
            out[end..].fill(0.);
            let first = start * stride + b - before.min(start * stride + b);
            if stride == 1 {
                out[start..end].copy_from_slice(&source[first..][..end - start]);
            } else {
                let taken = source[first.min(width)..].iter().step_by(stride);
                out[start..end]
                    .iter_mut()
                    .zip(taken)
                    .for_each(|(out, value)| *out = *value);
            }
        }
    }
}

/// The output columns whose tap `b` lies inside the picture.
fn inside(b: usize, sizes: Sizes) -> (usize, usize) {
    let Conv2dShape { stride, before, .. } = sizes.shape;
    let start = before.saturating_sub(b).div_ceil(stride).min(sizes.out_width);
    let end = (sizes.width + before)
        .saturating_sub(b)
        .div_ceil(stride)
        .min(sizes.out_width);
    (start, end.max(start))
}

/// Gradients of x, weight and bias, where wanted.
pub fn backward(grad: &Tensor, x: &Tensor, weight: &Tensor, shape: Conv2dShape, wanted: [bool; 3]) -> Result<Grads> {
    let sizes = Sizes::of(x, weight, shape)?;
    let [of_x, of_weight, of_bias] = wanted;
    with_slices([grad, x, weight], |[dy, x_values, weight_values]| {
        let dx = of_x.then(|| {
            let dx = if shape.stride == 1 {
                convolve_back(dy, weight_values, sizes)
            } else {
                fold_back(dy, weight_values, sizes)
            };
            Tensor::from_vec(dx, x.shape(), &Device::Cpu)
        });
        let dw =
            of_weight.then(|| Tensor::from_vec(weight_gradient(dy, x_values, sizes), weight.shape(), &Device::Cpu));
        let db = of_bias.then(|| Tensor::from_vec(bias_gradient(dy, sizes), sizes.outputs, &Device::Cpu));
        Ok(vec![dx.transpose()?, dw.transpose()?, db.transpose()?])
    })?
}

/// With stride 1: a convolution of `dy` with the kernel turned by 180 degrees, inputs and outputs swapped.
fn convolve_back(dy: &[f32], weight: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes {
        inputs,
        outputs,
        height,
        width,
        out_height,
        out_width,
        shape,
        ..
    } = sizes;
    let square = shape.kernel * shape.kernel;
    let mut flipped = Scratch::new(weight.len());
    flipped
        .par_chunks_mut(outputs * square)
        .enumerate()
        .with_min_len(8)
        .for_each(|(input, flipped)| {
            for (o, flipped) in flipped.chunks_mut(square).enumerate() {
                let taps = &weight[(o * inputs + input) * square..][..square];
                flipped
                    .iter_mut()
                    .zip(taps.iter().rev())
                    .for_each(|(out, value)| *out = *value);
            }
        });
    let back = Conv2dShape {
        before: shape.kernel - 1 - shape.before,
        after: height + shape.before - out_height,
        ..shape
    };
    let sizes = Sizes {
        inputs: outputs,
        outputs: inputs,
        height: out_height,
        width: out_width,
        out_height: height,
        out_width: width,
        shape: back,
        ..sizes
    };
    convolve(dy, &flipped, None, sizes)
}

/// Input channels of a task of [`fold_back`].
const FOLD_CHANNELS: usize = 16;

/// With any stride: the columns' gradient, added up where columns overlap. A task owns some channels of a row.
fn fold_back(dy: &[f32], weight: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes {
        rows,
        inputs,
        outputs,
        height,
        width,
        out_width,
        shape,
        ..
    } = sizes;
    let Conv2dShape {
        kernel, stride, before, ..
    } = shape;
    let (square, pixels, out_pixels) = (kernel * kernel, sizes.pixels(), sizes.out_pixels());
    let mut dx = vec![0f32; rows * inputs * pixels];
    let parts = dx.par_chunks_mut(inputs * pixels).enumerate().flat_map(|(row, dx)| {
        let parts = dx.par_chunks_mut(FOLD_CHANNELS * pixels).enumerate();
        parts.map(move |(part, dx)| (row, part * FOLD_CHANNELS, dx))
    });
    parts.for_each(|(row, first, dx)| {
        let channels = dx.len() / pixels;
        let mut columns = Scratch::new(channels * square * out_pixels);
        let weight = Mat::strided(&weight[first * square..], outputs, channels * square, inputs * square);
        let dy = Mat::new(&dy[row * outputs * out_pixels..], outputs, out_pixels);
        let view = MatMut::new(&mut columns, channels * square, out_pixels);
        product(view, weight.t(), dy, 1., Write::Replace);
        for (tap, columns) in columns.chunks(out_pixels).enumerate() {
            let (channel, a, b) = (tap / square, tap / kernel % kernel, tap % kernel);
            let (start, end) = inside(b, sizes);
            for (oy, line) in columns.chunks(out_width).enumerate() {
                let Some(iy) = (oy * stride + a).checked_sub(before).filter(|&iy| iy < height) else {
                    continue;
                };
                let target = &mut dx[(channel * height + iy) * width..][..width];
                for ox in start..end {
                    target[ox * stride + b - before] += line[ox];
                }
            }
        }
    });
    dx
}

/// Weights larger than this are summed in place, smaller ones in several parts at a time.
const PARTS_BELOW: usize = 1 << 18;
const PARTS: usize = 8;

fn weight_gradient(dy: &[f32], x: &[f32], sizes: Sizes) -> Vec<f32> {
    let (outputs, taps) = (sizes.outputs, sizes.taps());
    let bands = sizes.bands();
    let parts = if outputs * taps < PARTS_BELOW {
        PARTS.min(bands.len())
    } else {
        1
    };
    let bands_of: Vec<&[Band]> = bands.chunks(bands.len().div_ceil(parts)).collect();
    let multiply = if bands_of.len() < 4 { par_product } else { product };
    let mut sums: Vec<Scratch> = bands_of
        .par_iter()
        .map(|bands| {
            let mut sum = Scratch::new(outputs * taps);
            for (index, &band) in bands.iter().enumerate() {
                let unrolled = Unrolled::new(x, sizes, band);
                let gathered = GradientBand::new(dy, sizes, band);
                let write = if index == 0 { Write::Replace } else { Write::Add };
                let view = MatMut::new(&mut sum, outputs, taps);
                multiply(view, gathered.mat(sizes.outputs), unrolled.mat().t(), 1., write);
            }
            sum
        })
        .collect();
    let mut total = output(outputs * taps);
    let first = sums.remove(0);
    total.par_chunks_mut(1 << 14).enumerate().for_each(|(chunk, total)| {
        let range = chunk << 14..(chunk << 14) + total.len();
        total.copy_from_slice(&first[range.clone()]);
        for sum in &sums {
            super::super::linear::add(total, &sum[range.clone()]);
        }
    });
    total
}

/// The gradient at a band's pixels, `[outputs, columns]`.
enum GradientBand<'a> {
    Plain {
        dy: &'a [f32],
        columns: usize,
        pixels: usize,
    },
    Gathered {
        dy: Scratch,
        columns: usize,
    },
}

impl<'a> GradientBand<'a> {
    fn new(dy: &'a [f32], sizes: Sizes, band: Band) -> Self {
        let (columns, pixels, outputs) = (sizes.columns_of(band), sizes.out_pixels(), sizes.outputs);
        let row = band.first / sizes.out_height;
        if columns < pixels || sizes.rows_in(band) == 1 {
            let start = row * outputs * pixels + band.first % sizes.out_height * sizes.out_width;
            return Self::Plain {
                dy: &dy[start..],
                columns,
                pixels,
            };
        }
        let mut gathered = Scratch::new(outputs * columns);
        for (o, line) in gathered.chunks_mut(columns).enumerate() {
            for (i, out) in line.chunks_mut(pixels).enumerate() {
                out.copy_from_slice(&dy[((row + i) * outputs + o) * pixels..][..pixels]);
            }
        }
        Self::Gathered { dy: gathered, columns }
    }

    fn mat(&self, outputs: usize) -> Mat<'_> {
        match self {
            Self::Plain { dy, columns, pixels } => Mat::strided(dy, outputs, *columns, *pixels),
            Self::Gathered { dy, columns } => Mat::new(dy, outputs, *columns),
        }
    }
}

fn bias_gradient(dy: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes { rows, outputs, .. } = sizes;
    let pixels = sizes.out_pixels();
    let of = |o: usize| {
        (0..rows)
            .map(|row| sum(&dy[(row * outputs + o) * pixels..][..pixels]))
            .sum::<f64>() as f32
    };
    (0..outputs).into_par_iter().with_min_len(8).map(of).collect()
}
