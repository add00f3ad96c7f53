//! Rows of a table by number; the gradient adds up where a number occurs more than once.

use candle_core::{Result, Tensor};

/// `table` `[entries, width]`, `ids` u32 of any shape, to `[..ids, width]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let mut shape = ids.dims().to_vec();
    shape.push(table.dim(1)?);
    table.index_select(&ids.flatten_all()?, 0)?.reshape(shape)
}
