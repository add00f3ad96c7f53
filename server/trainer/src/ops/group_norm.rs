//! Group normalisation: mean 0, variance 1 over a group of channels and all pixels of a row, then scale and shift by
//! channel; SiLU after it where asked.
//!
//! With `n = (x - mean) r`, `r = 1 / sqrt(variance + eps)`, `z = w n + b`, m values in a group and `dz` the gradient:
//! `dw = sum dz n`, `db = sum dz`, `dx = r (w dz - (sum w dz + n sum w dz n) / m)`, the last sums over the group.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    activation::silu_slope,
    kernel::{output, vectorized},
    linear::sum_rows,
    math::{sigmoid, sum_by},
    node::{Grads, Output, attach, needs, on_host, with_slices},
};

/// What follows the norm in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    Nothing,
    Silu,
}

/// Mean and `1 / sqrt(variance + eps)` of each group.
pub type Statistics = Vec<(f32, f32)>;

/// `x` `[rows, channels, ..]`, `weight` and `bias` `[channels]`.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, fused: Fused) -> Result<Tensor> {
    if !on_host(&[x, weight, bias]) {
        return composed(x, weight, bias, groups, eps, fused);
    }
    let (y, statistics) = forward(x, weight, bias, groups, eps, fused)?;
    let (input, scale, shift) = (x.detach(), weight.detach(), bias.detach());
    let wanted = needs([x, weight, bias]);
    attach(
        "group_norm",
        Output::host(y, x.shape()),
        &[x, weight, bias],
        move |grad| backward(grad, &input, &scale, &shift, &statistics, fused, wanted),
    )
}

/// The output's values and what the backward needs; f32 on the CPU.
pub fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    fused: Fused,
) -> Result<(Vec<f32>, Statistics)> {
    let (rows, channels) = (x.dim(0)?, x.dim(1)?);
    if groups == 0 || channels % groups != 0 || weight.dims() != [channels] || bias.dims() != [channels] {
        candle_core::bail!(
            "group_norm: {groups} groups of {:?}, weight {:?}",
            x.dims(),
            weight.dims()
        );
    }
    let pixels = x.elem_count() / (rows * channels);
    let (per_group, channels_per_group) = (pixels * channels / groups, channels / groups);
    let mut y = output(x.elem_count());
    let statistics = with_slices([x, weight, bias], |[x, weight, bias]| {
        let work = y.par_chunks_mut(per_group).zip(x.par_chunks(per_group)).enumerate();
        let normalise = |(group, (y, x)): (usize, (&mut [f32], &[f32]))| {
            let (mean, r) = statistics(x, eps);
            let first = group % groups * channels_per_group;
            for (channel, (y, x)) in y.chunks_mut(pixels).zip(x.chunks(pixels)).enumerate() {
                let (weight, bias) = (weight[first + channel], bias[first + channel]);
                match fused {
                    Fused::Nothing => affine(y, x, mean, r * weight, bias),
                    Fused::Silu => affine_silu(y, x, mean, r * weight, bias),
                }
            }
            (mean, r)
        };
        work.map(normalise).collect()
    })?;
    Ok((y, statistics))
}

vectorized! {
    /// In two passes: the difference of squares would lose the variance of values far from zero.
    pub(super) fn statistics(x: &[f32], eps: f64) -> (f32, f32) {
        let count = x.len() as f64;
        let mean = sum_by(x.len(), |i| x[i]) / count;
        let centre = mean as f32;
        let squares = sum_by(x.len(), |i| (x[i] - centre) * (x[i] - centre));
        (centre, (1. / (squares / count + eps).sqrt()) as f32)
    }
}

vectorized! {
    fn affine(y: &mut [f32], x: &[f32], mean: f32, scale: f32, bias: f32) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * scale + bias);
    }
}

vectorized! {
    fn affine_silu(y: &mut [f32], x: &[f32], mean: f32, scale: f32, bias: f32) {
        y.iter_mut().zip(x).for_each(|(y, x)| {
            let z = (x - mean) * scale + bias;
            *y = z * sigmoid(z);
        });
    }
}

/// Gradients of x, weight and bias.
pub fn backward(
    grad: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    statistics: &Statistics,
    fused: Fused,
    wanted: [bool; 3],
) -> Result<Grads> {
    let (rows, channels) = (x.dim(0)?, x.dim(1)?);
    let groups = statistics.len() / rows;
    let pixels = x.elem_count() / (rows * channels);
    let (per_group, channels_per_group) = (pixels * channels / groups, channels / groups);
    let mut dx = output(x.elem_count());
    let mut dweight = vec![vec![0f32; channels]; rows];
    let mut dbias = vec![vec![0f32; channels]; rows];
    with_slices([grad, x, weight, bias], |[dy, x, weight, bias]| {
        let of_channels = dweight.par_iter_mut().zip(&mut dbias).flat_map(|(dweight, dbias)| {
            dweight
                .par_chunks_mut(channels_per_group)
                .zip(dbias.par_chunks_mut(channels_per_group))
        });
        // `flat_map` gives up the order that `zip` needs, so the groups carry their number themselves.
        let jobs: Vec<_> = of_channels.collect();
        let values = dx
            .par_chunks_mut(per_group)
            .zip(x.par_chunks(per_group))
            .zip(dy.par_chunks(per_group));
        values
            .zip(jobs)
            .enumerate()
            .for_each(|(group, (((dx, x), dy), (dweight, dbias)))| {
                let (mean, r) = statistics[group];
                let first = group % groups * channels_per_group;
                let (mut of_mean, mut of_variance) = (0f64, 0f64);
                let planes = dx.chunks_mut(pixels).zip(x.chunks(pixels)).zip(dy.chunks(pixels));
                for (channel, ((dz, x), dy)) in planes.enumerate() {
                    let (weight, bias) = (weight[first + channel], bias[first + channel]);
                    match fused {
                        Fused::Nothing => dz.copy_from_slice(dy),
                        Fused::Silu => through_silu(dz, x, dy, mean, r * weight, bias),
                    }
                    let (sum, product) = (plain_sum(dz), normed_sum(dz, x, mean, r));
                    (dweight[channel], dbias[channel]) = (product as f32, sum as f32);
                    of_mean += f64::from(weight) * sum;
                    of_variance += f64::from(weight) * product;
                }
                let (of_mean, of_variance) = (of_mean / per_group as f64, of_variance / per_group as f64);
                for (channel, (dz, x)) in dx.chunks_mut(pixels).zip(x.chunks(pixels)).enumerate() {
                    to_input(
                        dz,
                        x,
                        mean,
                        r,
                        weight[first + channel],
                        of_mean as f32,
                        of_variance as f32,
                    );
                }
            });
    })?;
    let [of_x, of_weight, of_bias] = wanted;
    let parameter = |parts: &[Vec<f32>]| Tensor::from_vec(sum_rows(parts, channels), channels, &Device::Cpu);
    Ok(vec![
        of_x.then(|| Tensor::from_vec(dx, x.shape(), &Device::Cpu))
            .transpose()?,
        of_weight.then(|| parameter(&dweight)).transpose()?,
        of_bias.then(|| parameter(&dbias)).transpose()?,
    ])
}

vectorized! {
    fn through_silu(dz: &mut [f32], x: &[f32], dy: &[f32], mean: f32, scale: f32, bias: f32) {
        for ((dz, x), dy) in dz.iter_mut().zip(x).zip(dy) {
            *dz = dy * silu_slope((x - mean) * scale + bias);
        }
    }
}

vectorized! {
    fn plain_sum(dz: &[f32]) -> f64 {
        sum_by(dz.len(), |i| dz[i])
    }
}

vectorized! {
    fn normed_sum(dz: &[f32], x: &[f32], mean: f32, r: f32) -> f64 {
        let x = &x[..dz.len()];
        sum_by(dz.len(), |i| dz[i] * ((x[i] - mean) * r))
    }
}

vectorized! {
    fn to_input(dz: &mut [f32], x: &[f32], mean: f32, r: f32, weight: f32, of_mean: f32, of_variance: f32) {
        for (dz, x) in dz.iter_mut().zip(x) {
            let normed = (x - mean) * r;
            *dz = r * (weight * *dz - (of_mean + normed * of_variance));
        }
    }
}

fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, fused: Fused) -> Result<Tensor> {
    let (rows, channels) = (x.dim(0)?, x.dim(1)?);
    let grouped = x.to_dtype(statistics_dtype(x))?.reshape((rows, groups, ()))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
    let variance = centred.sqr()?.mean_keepdim(2)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(x.dtype())?;
    let normed = normed.reshape((rows, channels, ()))?;
    let by_channel = |t: &Tensor| t.reshape((1, channels, 1));
    let y = normed
        .broadcast_mul(&by_channel(weight)?)?
        .broadcast_add(&by_channel(bias)?)?
        .reshape(x.shape())?;
    match fused {
        Fused::Nothing => Ok(y),
        Fused::Silu => super::silu(&y),
    }
}

/// Sums in 16 bits would lose the statistics.
pub(super) fn statistics_dtype(x: &Tensor) -> DType {
    if x.dtype() == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{check, input},
        *,
    };

    const EPS: f64 = 1e-3;

    fn reference(v: &[Vec<f64>], channels: usize, groups: usize, fused: Fused) -> Vec<f64> {
        let pixels = v[0].len() / (2 * channels);
        let per_group = pixels * channels / groups;
        let mut y = Vec::new();
        for group in v[0].chunks(per_group) {
            let mean = group.iter().sum::<f64>() / per_group as f64;
            let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / per_group as f64;
            for x in group {
                let channel = y.len() / pixels % channels;
                let z = (x - mean) / (variance + EPS).sqrt() * v[1][channel] + v[2][channel];
                y.push(if fused == Fused::Silu { z / (1. + (-z).exp()) } else { z });
            }
        }
        y
    }

    #[test]
    fn with_and_without_silu_at_odd_sizes() {
        for (channels, groups, (h, w)) in [(6, 3, (5, 7)), (4, 4, (3, 3)), (6, 2, (1, 1)), (3, 1, (9, 4))] {
            for fused in [Fused::Nothing, Fused::Silu] {
                let inputs = [
                    input(&[2, channels, h, w], 1),
                    input(&[channels], 2),
                    input(&[channels], 3),
                ];
                check(
                    &inputs,
                    |v| reference(v, channels, groups, fused),
                    |t| group_norm(&t[0], &t[1], &t[2], groups, EPS, fused),
                    |t| composed(&t[0], &t[1], &t[2], groups, EPS, fused),
                );
            }
        }
    }

    #[test]
    fn a_large_mean_does_not_hide_the_variance() {
        let x: Vec<f32> = (0..4096).map(|i| 1000. + (i % 2) as f32).collect();
        let (mean, r) = statistics(&x, 0.);
        assert!((mean - 1000.5).abs() < 1e-3 && (r - 2.).abs() < 1e-3, "{mean} {r}");
    }
}
