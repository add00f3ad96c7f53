//! Mean squared error by row, and its gradient.

use rayon::prelude::*;

use super::{
    kernel::{CHUNK, vectorized},
    math::sum_by,
};

/// What is compared: `predicted` and `target` `[rows, ..]`, `weights` `[rows]`, `scale` the loss scale.
#[derive(Clone, Copy)]
pub(crate) struct Mse<'a> {
    pub predicted: &'a [f32],
    pub target: &'a [f32],
    pub weights: &'a [f32],
    pub scale: f32,
}

/// `losses[row]` = mean of `(predicted - target)^2`; `dpredicted = scale * weights[row] * d losses[row]`.
pub(crate) fn mse(losses: &mut [f32], dpredicted: &mut [f32], of: Mse) {
    let per_row = of.predicted.len() / losses.len();
    let rows = (losses.iter_mut().zip(of.weights))
        .zip(dpredicted.chunks_exact_mut(per_row))
        .zip(of.predicted.chunks_exact(per_row))
        .zip(of.target.chunks_exact(per_row));
    for ((((loss, weight), dpredicted), predicted), target) in rows {
        let factor = of.scale * weight * 2. / per_row as f32;
        let chunks = (dpredicted.par_chunks_mut(CHUNK))
            .zip(predicted.par_chunks(CHUNK))
            .zip(target.par_chunks(CHUNK));
        let sums: Vec<f64> = chunks
            .map(|((dpredicted, predicted), target)| difference(dpredicted, predicted, target, factor))
            .collect();
        *loss = (sums.iter().sum::<f64>() / per_row as f64) as f32;
    }
}

vectorized! {
    /// `d = factor * (a - b)`; the sum of `(a - b)^2`.
    fn difference(d: &mut [f32], a: &[f32], b: &[f32], factor: f32) -> f64 {
        let (a, b) = (&a[..d.len()], &b[..d.len()]);
        d.iter_mut().zip(a).zip(b).for_each(|((d, a), b)| *d = factor * (a - b));
        sum_by(a.len(), |i| (a[i] - b[i]) * (a[i] - b[i]))
    }
}
