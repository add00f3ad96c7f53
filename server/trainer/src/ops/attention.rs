//! `softmax(q k^T / sqrt(d)) v` per head, heads lying side by side in the last dimension.

use candle_core::{D, DType, Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    None,
    /// Token i sees tokens 0 to i.
    Causal,
}

/// `q` `[rows, queries, heads * d]`, `k` and `v` `[rows, keys, heads * d]`, to q's shape.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    composed(q, k, v, heads, mask)
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let (rows, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let d = width / heads;
    let split = |x: &Tensor, tokens| x.reshape((rows, tokens, heads, d))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (d as f64).sqrt())?.to_dtype(DType::F32)?;
    let scores = match mask {
        Mask::None => scores,
        Mask::Causal => scores.broadcast_add(&causal(queries, &scores)?)?,
    };
    let probabilities = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
    probabilities
        .matmul(&v)?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((rows, queries, width))
}

fn causal(tokens: usize, like: &Tensor) -> Result<Tensor> {
    let hidden = |i, j| if j > i { f32::NEG_INFINITY } else { 0. };
    let mask: Vec<f32> = (0..tokens)
        .flat_map(|i| (0..tokens).map(move |j| hidden(i, j)))
        .collect();
    Tensor::from_vec(mask, (tokens, tokens), like.device())
}
