//! Rows of a table by number; the gradient adds up where a number occurs more than once.

use candle_core::{DType, Device, Result, Tensor};

use super::{
    kernel::output,
    linear::add,
    node::{Output, attach, on_host, with_slices},
};

/// `table` `[entries, width]`, `ids` u32 of any shape, to `[..ids, width]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    if !on_host(&[table]) {
        return composed(table, ids);
    }
    let (entries, width) = table.dims2()?;
    let mut shape = ids.dims().to_vec();
    shape.push(width);
    let ids: Vec<u32> = ids.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= entries) {
        candle_core::bail!("embedding: the id {id} is not in a table of {entries}");
    }
    let mut y = output(ids.len() * width);
    with_slices([table], |[table]| {
        for (row, &id) in y.chunks_mut(width).zip(&ids) {
            row.copy_from_slice(&table[id as usize * width..][..width]);
        }
    })?;
    attach("embedding", Output::host(y, shape), &[table], move |grad| {
        let mut dtable = vec![0f32; entries * width];
        with_slices([grad], |[dy]| {
            for (row, &id) in dy.chunks(width).zip(&ids) {
                add(&mut dtable[id as usize * width..][..width], row);
            }
        })?;
        Ok(vec![Some(Tensor::from_vec(dtable, (entries, width), &Device::Cpu)?)])
    })
}

fn composed(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let mut shape = ids.dims().to_vec();
    shape.push(table.dim(1)?);
    table.index_select(&ids.flatten_all()?, 0)?.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{check, input},
        *,
    };

    #[test]
    fn rows_that_occur_twice_and_never() {
        let numbers = [4u32, 0, 4, 2, 1, 4];
        let ids = Tensor::new(&numbers, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
        let reference = |v: &[Vec<f64>]| {
            numbers
                .iter()
                .flat_map(|&id| v[0][id as usize * 3..][..3].to_vec())
                .collect::<Vec<_>>()
        };
        check(
            &[input(&[6, 3], 1)],
            reference,
            |t| embedding(&t[0], &ids),
            |t| composed(&t[0], &ids),
        );
        let wrong = Tensor::new(&[6u32], &Device::Cpu).unwrap();
        let table = Tensor::zeros((6, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(embedding(&table, &wrong).is_err());
    }
}
