//! Adding and moving values.

use candle_core::{Result, Tensor};

/// `x` `[rows, channels, h, w]` plus `e` `[rows, channels]` at every pixel.
pub fn add_per_channel(x: &Tensor, e: &Tensor) -> Result<Tensor> {
    x.broadcast_add(&e.unsqueeze(2)?.unsqueeze(3)?)
}

/// `[rows, a, b]` to `[rows, b, a]`, contiguous.
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.contiguous()
}
