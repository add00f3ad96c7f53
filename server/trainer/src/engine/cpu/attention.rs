//! `softmax(q k^T / sqrt(d)) v` per head, heads lying side by side in the channels.
//!
//! The forward keeps `log sum exp(score)` of each query; the backward computes the probabilities again from it, a block of
//! queries at a time, so that no matrix of all queries by all keys is ever held. With `p` the probabilities:
//! `dv = p^T dy`, `dp = dy v^T`, `ds = p (dp - sum_channels dy y) / sqrt(d)`, `dq = ds k`, `dk = ds^T q` (Dao et al.,
//! "FlashAttention", 2022, appendix B).

use rayon::prelude::*;

use super::{
    kernel::{Mat, MatMut, Scratch, Write, product, vectorized},
    math::{exp, sum_by},
};

/// `q` `[rows, queries, heads * d]`, `k` and `v` `[rows, keys, heads * d]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub rows: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    /// Channels of a head.
    pub d: usize,
    /// Token i sees tokens 0 to i.
    pub causal: bool,
}

impl Sizes {
    fn width(self) -> usize {
        self.heads * self.d
    }

    fn scale(self) -> f32 {
        1. / (self.d as f32).sqrt()
    }

    /// Queries whose scores are held at a time: half a megabyte of them.
    fn block(self) -> usize {
        ((1 << 17) / self.keys).clamp(16, 256)
    }

    /// Start and length of the blocks.
    fn blocks(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.queries)
            .step_by(self.block())
            .map(move |first| (first, self.block().min(self.queries - first)))
    }

    /// Head `head` of row `row` of a `[rows, tokens, width]` tensor.
    fn head<'a>(self, values: &'a [f32], tokens: usize, row: usize, head: usize) -> Mat<'a> {
        let start = row * tokens * self.width() + head * self.d;
        Mat::strided(&values[start..], tokens, self.d, self.width())
    }

    /// How many keys the query sees.
    fn seen(self, query: usize) -> usize {
        if self.causal { query + 1 } else { self.keys }
    }
}

/// `y` like `q`; `stats` `[rows, heads, queries]`.
pub(crate) fn forward(y: &mut [f32], stats: &mut [f32], q: &[f32], k: &[f32], v: &[f32], sizes: Sizes) {
    let Sizes {
        rows,
        queries,
        keys,
        heads,
        d,
        ..
    } = sizes;
    let out = MatMut::new(y, rows * queries, sizes.width());
    stats.par_chunks_mut(queries).enumerate().for_each(|(index, stats)| {
        let (row, head) = (index / heads, index % heads);
        let q = sizes.head(q, queries, row, head);
        let (k, v) = (sizes.head(k, keys, row, head), sizes.head(v, keys, row, head));
        let mut scratch = Scratch::new(sizes.block() * keys);
        for (first, count) in sizes.blocks() {
            let scores = &mut scratch[..count * keys];
            let view = MatMut::new(scores, count, keys);
            product(view, q.rows(first, count), k.t(), sizes.scale(), Write::Replace);
            let mut inverses = [0f32; 256];
            for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
                let (seen, hidden) = scores.split_at_mut(sizes.seen(first + i));
                (stats[first + i], inverses[i]) = exponentials(seen);
                hidden.fill(0.);
            }
            // SAFETY: this block of queries of this head is this task's alone.
            let mut out = unsafe { out.tile((row * queries + first, count), (head * d, d)) };
            product(out, Mat::new(scores, count, keys), v, 1., Write::Replace);
            for (i, inverse) in inverses[..count].iter().enumerate() {
                out.row(i).iter_mut().for_each(|value| *value *= inverse);
            }
        }
    });
}

vectorized! {
    /// Scores to exponentials of their distance from the largest; log of the sum of the scores' exponentials, and
    /// 1 / the sum of what is left in `scores`.
    fn exponentials(scores: &mut [f32]) -> (f32, f32) {
        let mut lanes = [f32::NEG_INFINITY; 16];
        for chunk in scores.chunks(16) {
            for (most, &score) in lanes.iter_mut().zip(chunk) {
                // False for NaN too, which the sum below then shows.
                *most = if score > *most { score } else { *most };
            }
        }
        let most = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        scores.iter_mut().for_each(|score| *score = exp(*score - most));
        let sum = sum_by(scores.len(), |i| scores[i]);
        ((f64::from(most) + sum.ln()) as f32, (1. / sum) as f32)
    }
}

/// What the backward reads.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    pub dy: &'a [f32],
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub y: &'a [f32],
    pub stats: &'a [f32],
}

pub(crate) fn backward(dq: &mut [f32], dk: &mut [f32], dv: &mut [f32], saved: Saved, sizes: Sizes) {
    let Sizes {
        rows,
        queries,
        keys,
        heads,
        d,
        ..
    } = sizes;
    let width = sizes.width();
    let dq = MatMut::new(dq, rows * queries, width);
    let dk = MatMut::new(dk, rows * keys, width);
    let dv = MatMut::new(dv, rows * keys, width);
    saved.stats.par_chunks(queries).enumerate().for_each(|(index, stats)| {
        let (row, head) = (index / heads, index % heads);
        let (dy, q) = (
            sizes.head(saved.dy, queries, row, head),
            sizes.head(saved.q, queries, row, head),
        );
        let (k, v) = (
            sizes.head(saved.k, keys, row, head),
            sizes.head(saved.v, keys, row, head),
        );
        // SAFETY: this head of this row is this task's alone.
        let (dk, dv) = unsafe {
            (
                dk.tile((row * keys, keys), (head * d, d)),
                dv.tile((row * keys, keys), (head * d, d)),
            )
        };
        let mut scratch = Scratch::new(2 * sizes.block() * keys);
        for (first, count) in sizes.blocks() {
            let (p, ds) = scratch.split_at_mut(sizes.block() * keys);
            let (p, ds) = (&mut p[..count * keys], &mut ds[..count * keys]);
            let (q, dy) = (q.rows(first, count), dy.rows(first, count));
            product(MatMut::new(p, count, keys), q, k.t(), sizes.scale(), Write::Replace);
            product(MatMut::new(ds, count, keys), dy, v.t(), 1., Write::Replace);
            let scores = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys));
            for (i, (p, ds)) in scores.enumerate() {
                let seen = sizes.seen(first + i);
                let at = (row * queries + first + i) * width + head * d;
                let mean = dot(&saved.dy[at..at + d], &saved.y[at..at + d]);
                through_softmax(&mut p[..seen], &mut ds[..seen], stats[first + i], mean, sizes.scale());
                p[seen..].fill(0.);
                ds[seen..].fill(0.);
            }
            let (p, ds) = (Mat::new(p, count, keys), Mat::new(ds, count, keys));
            // The first block writes, so that the gradients need not be cleared.
            let write = if first == 0 { Write::Replace } else { Write::Add };
            product(dv, p.t(), dy, 1., write);
            product(dk, ds.t(), q, 1., write);
            // SAFETY: as above.
            let dq = unsafe { dq.tile((row * queries + first, count), (head * d, d)) };
            product(dq, ds, k, 1., Write::Replace);
        }
    });
}

vectorized! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        sum_by(a.len(), |i| a[i] * b[i]) as f32
    }
}

vectorized! {
    /// Scores in `p` become probabilities, gradients of probabilities in `ds` those of unscaled scores.
    fn through_softmax(p: &mut [f32], ds: &mut [f32], log_sum: f32, mean: f32, scale: f32) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp(*p - log_sum);
            *ds = *p * (*ds - mean) * scale;
        }
    }
}
