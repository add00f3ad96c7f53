//! Mean squared error.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    group_norm::statistics_dtype,
    kernel::{output, vectorized},
    math::sum_by,
    node::{Output, attach, needs, on_host, with_slices},
};

/// Values a task takes.
const CHUNK: usize = 1 << 14;

/// Mean over all elements of `(a - b)^2`, a scalar of at least f32. Gradient of a: `2 (a - b) / count`.
pub fn mse(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        candle_core::bail!("mse: {:?} and {:?}", a.dims(), b.dims());
    }
    if !on_host(&[a, b]) {
        return composed(a, b);
    }
    let count = a.elem_count();
    let sum: f64 = with_slices([a, b], |[a, b]| {
        let parts: Vec<f64> = a
            .par_chunks(CHUNK)
            .zip(b.par_chunks(CHUNK))
            .map(|(a, b)| squares(a, b))
            .collect();
        parts.iter().sum()
    })?;
    let (first, second) = (a.detach(), b.detach());
    let [of_a, of_b] = needs([a, b]);
    attach(
        "mse",
        Output::host(vec![(sum / count as f64) as f32], ()),
        &[a, b],
        move |grad| {
            let factor = 2. * grad.to_scalar::<f32>()? / count as f32;
            let gradient = |x: &Tensor, y: &Tensor| {
                let mut dx = output(count);
                with_slices([x, y], |[x, y]| {
                    let chunks = dx
                        .par_chunks_mut(CHUNK)
                        .zip(x.par_chunks(CHUNK))
                        .zip(y.par_chunks(CHUNK));
                    chunks.for_each(|((dx, x), y)| difference(dx, x, y, factor));
                })?;
                Tensor::from_vec(dx, x.shape(), &Device::Cpu)
            };
            Ok(vec![
                of_a.then(|| gradient(&first, &second)).transpose()?,
                of_b.then(|| gradient(&second, &first)).transpose()?,
            ])
        },
    )
}

vectorized! {
    fn squares(a: &[f32], b: &[f32]) -> f64 {
        let b = &b[..a.len()];
        sum_by(a.len(), |i| (a[i] - b[i]) * (a[i] - b[i]))
    }
}

vectorized! {
    fn difference(dx: &mut [f32], x: &[f32], y: &[f32], factor: f32) {
        dx.iter_mut().zip(x).zip(y).for_each(|((dx, x), y)| *dx = factor * (x - y));
    }
}

fn composed(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = statistics_dtype(a);
    (a.to_dtype(dtype)? - b.to_dtype(dtype)?)?.sqr()?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{check, input},
        *,
    };

    #[test]
    fn both_sides_get_their_gradient() {
        let inputs = [input(&[3, 5, 2], 1), input(&[3, 5, 2], 2)];
        let reference = |v: &[Vec<f64>]| vec![v[0].iter().zip(&v[1]).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / 30.];
        check(&inputs, reference, |t| mse(&t[0], &t[1]), |t| composed(&t[0], &t[1]));
    }
}
