//! Adding and moving values.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    kernel::{output, vectorized},
    math::sum_by,
    node::{Output, attach, needs, on_host, with_slices},
};

/// `x` `[rows, channels, h, w]` plus `e` `[rows, channels]` at every pixel. The gradient of `e` is the sum over pixels.
pub fn add_per_channel(x: &Tensor, e: &Tensor) -> Result<Tensor> {
    if !on_host(&[x, e]) {
        return composed_add_per_channel(x, e);
    }
    let (rows, channels, height, width) = x.dims4()?;
    if e.dims() != [rows, channels] {
        candle_core::bail!("add_per_channel: {:?} to {:?}", e.dims(), x.dims());
    }
    let pixels = height * width;
    let mut y = output(x.elem_count());
    with_slices([x, e], |[x, e]| {
        let planes = y.par_chunks_mut(pixels).zip(x.par_chunks(pixels)).zip(e);
        planes.for_each(|((y, x), &e)| add_scalar(y, x, e));
    })?;
    let [_, of_e] = needs([x, e]);
    attach("add_per_channel", Output::host(y, x.shape()), &[x, e], move |grad| {
        let de = of_e
            .then(|| plane_sums(grad, pixels)?.reshape((rows, channels)))
            .transpose()?;
        Ok(vec![Some(grad.clone()), de])
    })
}

vectorized! {
    fn add_scalar(y: &mut [f32], x: &[f32], e: f32) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x + e);
    }
}

vectorized! {
    pub(super) fn sum(values: &[f32]) -> f64 {
        sum_by(values.len(), |i| values[i])
    }
}

/// Sums over each plane of `pixels` values.
pub(super) fn plane_sums(x: &Tensor, pixels: usize) -> Result<Tensor> {
    let sums: Vec<f32> = with_slices([x], |[x]| x.par_chunks(pixels).map(|plane| sum(plane) as f32).collect())?;
    let count = sums.len();
    Tensor::from_vec(sums, count, &Device::Cpu)
}

fn composed_add_per_channel(x: &Tensor, e: &Tensor) -> Result<Tensor> {
    x.broadcast_add(&e.unsqueeze(2)?.unsqueeze(3)?)
}

/// `[rows, a, b]` to `[rows, b, a]`, contiguous.
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    if !on_host(&[x]) {
        return x.transpose(1, 2)?.contiguous();
    }
    let (rows, a, b) = x.dims3()?;
    let y = Output::host(transposed(x)?, (rows, b, a));
    attach("transpose", y, &[x], move |grad| {
        Ok(vec![Some(Tensor::from_vec(
            transposed(grad)?,
            (rows, a, b),
            &Device::Cpu,
        )?)])
    })
}

/// Side of the squares that are turned one at a time, so that reads and writes stay in the cache.
const TILE: usize = 16;

fn transposed(x: &Tensor) -> Result<Vec<f32>> {
    let (_, a, b) = x.dims3()?;
    let mut y = output(x.elem_count());
    with_slices([x], |[x]| {
        // A task owns TILE rows of the output of one row of the batch.
        let strips = y.par_chunks_mut(a * b).zip(x.par_chunks(a * b)).flat_map(|(y, x)| {
            y.par_chunks_mut(TILE * a)
                .enumerate()
                .map(move |(strip, y)| (strip * TILE, y, x))
        });
        strips.for_each(|(first, y, x)| {
            for start in (0..a).step_by(TILE) {
                for (j, row) in y.chunks_mut(a).enumerate() {
                    let end = (start + TILE).min(a);
                    for (i, value) in row[start..end].iter_mut().enumerate() {
                        *value = x[(start + i) * b + first + j];
                    }
                }
            }
        });
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{check, input},
        *,
    };

    #[test]
    fn a_value_per_channel() {
        let inputs = [input(&[2, 3, 5, 4], 1), input(&[2, 3], 2)];
        let reference = |v: &[Vec<f64>]| v[0].iter().enumerate().map(|(i, x)| x + v[1][i / 20]).collect();
        let op = |t: &[Tensor]| add_per_channel(&t[0], &t[1]);
        check(&inputs, reference, op, |t| composed_add_per_channel(&t[0], &t[1]));
    }

    #[test]
    fn transposing_odd_sizes() {
        let (a, b) = (37, 18);
        let reference = |v: &[Vec<f64>]| {
            let at = |r: usize, i: usize, j: usize| v[0][(r * a + i) * b + j];
            (0..2)
                .flat_map(|r| (0..b).flat_map(move |j| (0..a).map(move |i| at(r, i, j))))
                .collect()
        };
        let op = |t: &[Tensor]| transpose(&t[0]);
        check(&[input(&[2, a, b], 1)], reference, op, op);
    }
}
