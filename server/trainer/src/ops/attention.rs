//! `softmax(q k^T / sqrt(d)) v` per head, heads lying side by side in the last dimension.
//!
//! The forward keeps each query's largest score and sum; the backward computes the probabilities again from them, a
//! block of queries at a time, so that no matrix of all queries by all keys is ever held. With `p` the probabilities:
//! `dv = p^T dy`, `dp = dy v^T`, `ds = p (dp - sum_keys p dp) / sqrt(d)`, `dq = ds k`, `dk = ds^T q`.

use candle_core::{D, DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    kernel::{Mat, MatMut, Scratch, Write, output, product, vectorized},
    math::{exp, sum_by},
    node::{Grads, Output, attach, needs, on_host, with_slices},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    None,
    /// Token i sees tokens 0 to i.
    Causal,
}

/// `q` `[rows, queries, heads * d]`, `k` and `v` `[rows, keys, heads * d]`, to q's shape.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    if !on_host(&[q, k, v]) {
        return composed(q, k, v, heads, mask);
    }
    let sizes = Sizes::of(q, k, v, heads, mask)?;
    let (y, statistics) = forward(q, k, v, sizes)?;
    let (query, key, value) = (q.detach(), k.detach(), v.detach());
    let wanted = needs([q, k, v]);
    attach("attention", Output::host(y, q.shape()), &[q, k, v], move |grad| {
        backward(grad, &query, &key, &value, &statistics, sizes, wanted)
    })
}

#[derive(Clone, Copy)]
pub struct Sizes {
    rows: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    d: usize,
    mask: Mask,
}

impl Sizes {
    fn of(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Self> {
        let (rows, queries, width) = q.dims3()?;
        let keys = k.dim(1)?;
        let fit = k.dims() == [rows, keys, width] && v.dims() == k.dims() && heads > 0 && width % heads == 0;
        if !fit || (mask == Mask::Causal && queries != keys) {
            candle_core::bail!(
                "attention: {heads} heads, q {:?}, k {:?}, v {:?}",
                q.dims(),
                k.dims(),
                v.dims()
            );
        }
        Ok(Self {
            rows,
            queries,
            keys,
            heads,
            d: width / heads,
            mask,
        })
    }

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

    /// Head `head` of row `row` of a `[rows, tokens, width]` tensor.
    fn head<'a>(self, values: &'a [f32], tokens: usize, row: usize, head: usize) -> Mat<'a> {
        let start = row * tokens * self.width() + head * self.d;
        Mat::strided(&values[start..], tokens, self.d, self.width())
    }

    /// How many keys the query sees.
    fn seen(self, query: usize) -> usize {
        match self.mask {
            Mask::None => self.keys,
            Mask::Causal => query + 1,
        }
    }
}

/// Of each query of each head: the largest score, and 1 / the sum of the exponentials.
pub type Statistics = Vec<(f32, f32)>;

/// The output's values and what the backward needs; f32 on the CPU.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes) -> Result<(Vec<f32>, Statistics)> {
    let Sizes {
        rows,
        queries,
        keys,
        heads,
        d,
        ..
    } = sizes;
    let mut y = output(rows * queries * sizes.width());
    let mut statistics = vec![(f32::NAN, f32::NAN); rows * heads * queries];
    with_slices([q, k, v], |[q, k, v]| {
        let out = MatMut::new(&mut y, rows * queries, sizes.width());
        let heads_work = statistics.par_chunks_mut(queries).enumerate();
        heads_work.for_each(|(index, statistics)| {
            let (row, head) = (index / heads, index % heads);
            let (q, k, v) = (
                sizes.head(q, queries, row, head),
                sizes.head(k, keys, row, head),
                sizes.head(v, keys, row, head),
            );
            let mut scores = Scratch::new(sizes.block() * keys);
            for (first, count) in blocks(queries, sizes.block()) {
                let scores = &mut scores[..count * keys];
                product(
                    MatMut::new(scores, count, keys),
                    q.rows(first, count),
                    k.t(),
                    sizes.scale(),
                    Write::Replace,
                );
                for (i, scores) in scores.chunks_mut(keys).enumerate() {
                    let (seen, hidden) = scores.split_at_mut(sizes.seen(first + i));
                    statistics[first + i] = exponentials(seen);
                    hidden.fill(0.);
                }
                // SAFETY: this block of queries of this head is this task's alone.
                let mut out = unsafe { out.tile((row * queries + first, count), (head * d, d)) };
                product(out, Mat::new(scores, count, keys), v, 1., Write::Replace);
                for (i, (_, inverse)) in statistics[first..first + count].iter().enumerate() {
                    out.row(i).iter_mut().for_each(|value| *value *= inverse);
                }
            }
        });
    })?;
    Ok((y, statistics))
}

/// Start and length of the blocks of `size`.
fn blocks(count: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count)
        .step_by(size)
        .map(move |first| (first, size.min(count - first)))
}

vectorized! {
    /// Scores to exponentials of their distance from the largest; that, and 1 / their sum.
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
        (most, (1. / sum_by(scores.len(), |i| scores[i])) as f32)
    }
}

/// Gradients of q, k and v.
pub fn backward(
    grad: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    statistics: &Statistics,
    sizes: Sizes,
    wanted: [bool; 3],
) -> Result<Grads> {
    let Sizes {
        rows,
        queries,
        keys,
        heads,
        d,
        ..
    } = sizes;
    let width = sizes.width();
    let mut dq = output(rows * queries * width);
    let (mut dk, mut dv) = (output(rows * keys * width), output(rows * keys * width));
    with_slices([grad, q, k, v], |[dy, q, k, v]| {
        let dq = MatMut::new(&mut dq, rows * queries, width);
        let dk = MatMut::new(&mut dk, rows * keys, width);
        let dv = MatMut::new(&mut dv, rows * keys, width);
        statistics
            .par_chunks(queries)
            .enumerate()
            .for_each(|(index, statistics)| {
                let (row, head) = (index / heads, index % heads);
                let of = |values, tokens| sizes.head(values, tokens, row, head);
                let (dy, q, k, v) = (of(dy, queries), of(q, queries), of(k, keys), of(v, keys));
                // SAFETY: this head of this row is this task's alone.
                let (dk, dv) = unsafe {
                    (
                        dk.tile((row * keys, keys), (head * d, d)),
                        dv.tile((row * keys, keys), (head * d, d)),
                    )
                };
                let mut scratch = Scratch::new(2 * sizes.block() * keys);
                for (first, count) in blocks(queries, sizes.block()) {
                    let (p, ds) = scratch.split_at_mut(sizes.block() * keys);
                    let (p, ds) = (&mut p[..count * keys], &mut ds[..count * keys]);
                    let (q, dy) = (q.rows(first, count), dy.rows(first, count));
                    product(MatMut::new(p, count, keys), q, k.t(), sizes.scale(), Write::Replace);
                    product(MatMut::new(ds, count, keys), dy, v.t(), 1., Write::Replace);
                    for (i, (p, ds)) in p.chunks_mut(keys).zip(ds.chunks_mut(keys)).enumerate() {
                        let seen = sizes.seen(first + i);
                        let (most, inverse) = statistics[first + i];
                        through_softmax(&mut p[..seen], &mut ds[..seen], most, inverse, sizes.scale());
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
    })?;
    let [of_q, of_k, of_v] = wanted;
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
    Ok(vec![
        of_q.then(|| tensor(dq, q)).transpose()?,
        of_k.then(|| tensor(dk, k)).transpose()?,
        of_v.then(|| tensor(dv, v)).transpose()?,
    ])
}

vectorized! {
    /// Scores in `p` become probabilities, gradients of probabilities in `ds` those of scaled scores.
    fn through_softmax(p: &mut [f32], ds: &mut [f32], most: f32, inverse: f32, scale: f32) {
        p.iter_mut().for_each(|p| *p = exp(*p - most) * inverse);
        let len = p.len();
        let ds = &mut ds[..len];
        let mean = sum_by(len, |i| p[i] * ds[i]) as f32;
        for (ds, p) in ds.iter_mut().zip(p.iter()) {
            *ds = p * (*ds - mean) * scale;
        }
    }
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let Sizes {
        rows, queries, keys, d, ..
    } = Sizes::of(q, k, v, heads, mask)?;
    let split = |x: &Tensor, tokens| x.reshape((rows, tokens, heads, d))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (d as f64).sqrt())?;
    let scores = if scores.dtype() == DType::F64 {
        scores
    } else {
        scores.to_dtype(DType::F32)?
    };
    let scores = match mask {
        Mask::None => scores,
        Mask::Causal => scores.broadcast_add(&causal(queries, &scores)?)?,
    };
    let probabilities = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
    probabilities
        .matmul(&v)?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((rows, queries, heads * d))
}

fn causal(tokens: usize, like: &Tensor) -> Result<Tensor> {
    let hidden = |i, j| if j > i { f32::NEG_INFINITY } else { 0. };
    let mask: Vec<f32> = (0..tokens)
        .flat_map(|i| (0..tokens).map(move |j| hidden(i, j)))
        .collect();
    Tensor::from_vec(mask, (tokens, tokens), like.device())?.to_dtype(like.dtype())
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{check, input, noise},
        *,
    };

    const D: usize = 5;

    fn reference(v: &[Vec<f64>], queries: usize, keys: usize, heads: usize, mask: Mask) -> Vec<f64> {
        let width = heads * D;
        let mut y = Vec::new();
        for (row, query) in (0..2).flat_map(|row| (0..queries).map(move |query| (row, query))) {
            for column in 0..width {
                let head = column / D * D;
                let seen = if mask == Mask::Causal { query + 1 } else { keys };
                let score = |key: usize| {
                    let of = |d| {
                        v[0][(row * queries + query) * width + head + d] * v[1][(row * keys + key) * width + head + d]
                    };
                    (0..D).map(of).sum::<f64>() / (D as f64).sqrt()
                };
                let weights: Vec<f64> = (0..seen).map(|key| score(key).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let values = (0..seen).map(|key| weights[key] * v[2][(row * keys + key) * width + column]);
                y.push(values.sum::<f64>() / sum);
            }
        }
        y
    }

    #[test]
    fn self_cross_and_causal_attention() {
        for (queries, keys, heads, mask) in [
            (7, 7, 2, Mask::None),
            (6, 3, 3, Mask::None),
            (9, 9, 2, Mask::Causal),
            (1, 1, 1, Mask::Causal),
        ] {
            let width = heads * D;
            let inputs = [
                input(&[2, queries, width], 1),
                input(&[2, keys, width], 2),
                input(&[2, keys, width], 3),
            ];
            check(
                &inputs,
                |v| reference(v, queries, keys, heads, mask),
                |t| attention(&t[0], &t[1], &t[2], heads, mask),
                |t| composed(&t[0], &t[1], &t[2], heads, mask),
            );
        }
    }

    #[test]
    fn more_queries_than_a_block() {
        let (tokens, heads, d) = (700, 2, 8);
        let tensor =
            |seed| Tensor::from_vec(noise(tokens * heads * d, seed), (1, tokens, heads * d), &Device::Cpu).unwrap();
        for mask in [Mask::None, Mask::Causal] {
            let vars = [1, 2, 3].map(|seed| candle_core::Var::from_tensor(&tensor(seed)).unwrap());
            let run = |op: &dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>| {
                let y = op(&vars[0], &vars[1], &vars[2]).unwrap();
                let grads = (&y * tensor(4)).unwrap().sum_all().unwrap().backward().unwrap();
                let mut all = vec![y.flatten_all().unwrap().to_vec1::<f32>().unwrap()];
                all.extend(
                    vars.iter()
                        .map(|v| grads.get(v).unwrap().flatten_all().unwrap().to_vec1().unwrap()),
                );
                all.concat()
            };
            let own = run(&|q, k, v| attention(q, k, v, heads, mask));
            let slow = run(&|q, k, v| composed(q, k, v, heads, mask));
            assert!(own.iter().zip(&slow).all(|(a, b)| (a - b).abs() < 1e-5), "{mask:?}");
        }
    }
}
