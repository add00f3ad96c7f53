//! Mean squared error.

use candle_core::{Result, Tensor};

use super::group_norm::statistics_dtype;

/// Mean over all elements of `(a - b)^2`, a scalar of at least f32.
pub fn mse(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = statistics_dtype(a);
    (a.to_dtype(dtype)? - b.to_dtype(dtype)?)?.sqr()?.mean_all()
}
