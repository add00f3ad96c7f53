//! Layer normalisation over the channels of each token. Formulas as in group normalisation, with a group per token.

use rayon::prelude::*;

use super::{
    kernel::{Plus, Write, sum_parts, vectorized},
    math::sum_by,
};

/// `x` and `y` `[tokens, channels]`, `stats` `[tokens, 2]`: mean and `r = 1 / sqrt(variance + eps)`.
pub(crate) fn forward(y: &mut [f32], stats: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f64) {
    let width = w.len();
    y.par_chunks_mut(width)
        .zip(x.par_chunks(width))
        .zip(stats.par_chunks_mut(2))
        .with_min_len(BLOCK_TOKENS)
        .for_each(|((y, x), stats)| {
            let (mean, r) = statistics(x, eps);
            stats.copy_from_slice(&[mean, r]);
            affine(y, x, w, b, mean, r);
        });
}

vectorized! {
    /// In two passes: the difference of squares would lose the variance of values far from zero.
    fn statistics(x: &[f32], eps: f64) -> (f32, f32) {
        let count = x.len() as f64;
        let centre = (sum_by(x.len(), |i| x[i]) / count) as f32;
        let squares = sum_by(x.len(), |i| (x[i] - centre) * (x[i] - centre));
        (centre, (1. / (squares / count + eps).sqrt()) as f32)
    }
}

vectorized! {
    fn affine(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], mean: f32, r: f32) {
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = (x - mean) * r * w + b;
        }
    }
}

/// Tokens of a task, and those whose share of the weights' gradients is summed in f32.
const BLOCK_TOKENS: usize = 64;

/// Where the backward puts what is wanted.
pub(crate) struct Gradients<'a> {
    pub dx: &'a mut [f32],
    /// `[channels]`, as is `db`; replaced, or added to.
    pub dw: Option<&'a mut [f32]>,
    pub db: Option<&'a mut [f32]>,
    pub write: Write,
}

pub(crate) fn backward(out: Gradients, dy: &[f32], x: &[f32], w: &[f32], stats: &[f32], plus: Plus) {
    let width = w.len();
    let block = BLOCK_TOKENS * width;
    let blocks = (out.dx.par_chunks_mut(block))
        .zip(dy.par_chunks(block))
        .zip(x.par_chunks(block))
        .zip(stats.par_chunks(2 * BLOCK_TOKENS))
        .enumerate();
    let (dw, db): (Vec<_>, Vec<_>) = blocks
        .map(|(index, (((dx, dy), x), stats))| {
            let (mut dw, mut db) = (vec![0f32; width], vec![0f32; width]);
            // Onto what is to be added, so that one loop serves all.
            plus.part(index * block, dx.len()).lay(dx);
            let tokens = (dx.chunks_exact_mut(width))
                .zip(dy.chunks_exact(width))
                .zip(x.chunks_exact(width))
                .zip(stats.chunks_exact(2));
            for (((dx, dy), x), stats) in tokens {
                token_backward(dx, dy, x, w, &mut dw, &mut db, stats);
            }
            (dw, db)
        })
        .unzip();
    if let Some(to) = out.dw {
        sum_parts(to, &dw, out.write);
    }
    if let Some(to) = out.db {
        sum_parts(to, &db, out.write);
    }
}

vectorized! {
    /// Adds to `dx`, `dw` and `db`.
    fn token_backward(
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        w: &[f32],
        dw: &mut [f32],
        db: &mut [f32],
        stats: &[f32],
    ) {
        let width = dx.len();
        let (x, dy, w, dw, db) = (&x[..width], &dy[..width], &w[..width], &mut dw[..width], &mut db[..width]);
        let (mean, r) = (stats[0], stats[1]);
        let of_mean = (sum_by(width, |i| w[i] * dy[i]) / width as f64) as f32;
        let of_variance = (sum_by(width, |i| w[i] * dy[i] * ((x[i] - mean) * r)) / width as f64) as f32;
        for i in 0..width {
            let n = (x[i] - mean) * r;
            dw[i] += dy[i] * n;
            db[i] += dy[i];
            dx[i] += r * (w[i] * dy[i] - (of_mean + n * of_variance));
        }
    }
}
