//! SiLU, GELU (exact), quick GELU, GEGLU.

use candle_core::{D, Result, Tensor};

/// `x sigmoid(x)`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.silu()
}

/// `x Phi(x)`, with the error function, not its tanh approximation, which shifts a U-Net's output by 1e-4.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// `x sigmoid(1.702 x)`, CLIP's.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    x * candle_nn::ops::sigmoid(&(x * 1.702)?)?
}

/// First half of the last dimension times [`gelu`] of the second.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    x.narrow(D::Minus1, 0, half)? * gelu(&x.narrow(D::Minus1, half, half)?.contiguous()?)?
}
