//! Group normalisation: mean 0, variance 1 over a group of channels and all pixels of a row, then scale and shift by
//! channel; SiLU after it where asked.

use candle_core::{DType, Result, Tensor};

/// What follows the norm in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    Nothing,
    Silu,
}

/// `x` `[rows, channels, ..]`, `weight` and `bias` `[channels]`.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, fused: Fused) -> Result<Tensor> {
    composed(x, weight, bias, groups, eps, fused)
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
        Fused::Silu => y.silu(),
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
