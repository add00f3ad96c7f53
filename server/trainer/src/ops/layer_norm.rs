//! Layer normalisation over the last dimension. Gradients as in group normalisation, with a group per row.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    group_norm::{Statistics, statistics, statistics_dtype},
    kernel::{output, vectorized},
    linear::sum_rows,
    math::sum_by,
    node::{Grads, Output, attach, needs, on_host, with_slices},
};

/// `x` `[.., width]`, `weight` and `bias` `[width]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if !on_host(&[x, weight, bias]) {
        return composed(x, weight, bias, eps);
    }
    let (y, statistics) = forward(x, weight, bias, eps)?;
    let (input, scale) = (x.detach(), weight.detach());
    let wanted = needs([x, weight, bias]);
    attach(
        "layer_norm",
        Output::host(y, x.shape()),
        &[x, weight, bias],
        move |grad| backward(grad, &input, &scale, &statistics, wanted),
    )
}

/// The output's values and what the backward needs; f32 on the CPU.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<(Vec<f32>, Statistics)> {
    let width = x.dim(D::Minus1)?;
    if weight.dims() != [width] || bias.dims() != [width] {
        candle_core::bail!("layer_norm: {:?} with a weight of {:?}", x.dims(), weight.dims());
    }
    let mut y = output(x.elem_count());
    let statistics = with_slices([x, weight, bias], |[x, weight, bias]| {
        let rows = y.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(16);
        rows.map(|(y, x)| {
            let (mean, r) = statistics(x, eps);
            affine(y, x, weight, bias, mean, r);
            (mean, r)
        })
        .collect()
    })?;
    Ok((y, statistics))
}

vectorized! {
    fn affine(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], mean: f32, r: f32) {
        for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * r * weight + bias;
        }
    }
}

/// Rows whose share of the parameters' gradients is summed by one task.
const BLOCK_ROWS: usize = 64;

/// Gradients of x, weight and bias.
pub fn backward(
    grad: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    statistics: &Statistics,
    wanted: [bool; 3],
) -> Result<Grads> {
    let width = x.dim(D::Minus1)?;
    let block = BLOCK_ROWS * width;
    let mut dx = output(x.elem_count());
    let (dweight, dbias): (Vec<_>, Vec<_>) = with_slices([grad, x, weight], |[dy, x, weight]| {
        let blocks = dx
            .par_chunks_mut(block)
            .zip(x.par_chunks(block))
            .zip(dy.par_chunks(block));
        blocks
            .zip(statistics.par_chunks(BLOCK_ROWS))
            .map(|(((dx, x), dy), statistics)| {
                let (mut dweight, mut dbias) = (vec![0f32; width], vec![0f32; width]);
                let rows = dx
                    .chunks_mut(width)
                    .zip(x.chunks(width))
                    .zip(dy.chunks(width))
                    .zip(statistics);
                for (((dx, x), dy), &(mean, r)) in rows {
                    row_backward(dx, x, dy, weight, &mut dweight, &mut dbias, mean, r);
                }
                (dweight, dbias)
            })
            .unzip()
    })?;
    let [of_x, of_weight, of_bias] = wanted;
    let parameter = |parts: &[Vec<f32>]| Tensor::from_vec(sum_rows(parts, width), width, &Device::Cpu);
    Ok(vec![
        of_x.then(|| Tensor::from_vec(dx, x.shape(), &Device::Cpu))
            .transpose()?,
        of_weight.then(|| parameter(&dweight)).transpose()?,
        of_bias.then(|| parameter(&dbias)).transpose()?,
    ])
}

vectorized! {
    #[expect(clippy::too_many_arguments, reason = "one row of everything that takes part")]
    fn row_backward(
        dx: &mut [f32],
        x: &[f32],
        dy: &[f32],
        weight: &[f32],
        dweight: &mut [f32],
        dbias: &mut [f32],
        mean: f32,
        r: f32,
    ) {
        let width = dx.len();
        let (x, dy, weight) = (&x[..width], &dy[..width], &weight[..width]);
        let of_mean = (sum_by(width, |i| weight[i] * dy[i]) / width as f64) as f32;
        let of_variance = (sum_by(width, |i| weight[i] * dy[i] * ((x[i] - mean) * r)) / width as f64) as f32;
        let (dweight, dbias) = (&mut dweight[..width], &mut dbias[..width]);
        for i in 0..width {
            let normed = (x[i] - mean) * r;
            dweight[i] += dy[i] * normed;
            dbias[i] += dy[i];
            dx[i] = r * (weight[i] * dy[i] - (of_mean + normed * of_variance));
        }
    }
}

fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(statistics_dtype(x))?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(x.dtype())?;
    normed.broadcast_mul(weight)?.broadcast_add(bias)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{check, input},
        *,
    };

    const EPS: f64 = 1e-3;

    #[test]
    fn more_rows_than_a_block_and_an_odd_width() {
        let reference = |v: &[Vec<f64>]| {
            let row = |x: &[f64]| {
                let mean = x.iter().sum::<f64>() / 11.;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 11.;
                let normed = x.iter().map(move |x| (x - mean) / (variance + EPS).sqrt());
                normed
                    .zip(&v[1])
                    .zip(&v[2])
                    .map(|((n, w), b)| n * w + b)
                    .collect::<Vec<_>>()
            };
            v[0].chunks(11).flat_map(row).collect()
        };
        let inputs = [input(&[3, 31, 11], 1), input(&[11], 2), input(&[11], 3)];
        let op = |t: &[Tensor]| layer_norm(&t[0], &t[1], &t[2], EPS);
        check(&inputs, reference, op, |t| composed(&t[0], &t[1], &t[2], EPS));
    }
}
