//! `y = x w^T + b`, `w` `[outputs, inputs]`. Gradients: `dx = dy w`, `dw = dy^T x`, `db` the column sums of `dy`.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    kernel::{Mat, MatMut, Write, output, par_product, vectorized},
    node::{Grads, Output, attach, needs, on_host, with_slices},
};

/// `x` `[.., inputs]` to `[.., outputs]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !on_host(&[x, weight]) {
        return composed(x, weight, bias);
    }
    let y = Output::host(forward(x, weight, bias)?, output_shape(x, weight)?);
    let (input, kernel) = (x.detach(), weight.detach());
    let [of_x, of_weight] = needs([x, weight]);
    match bias {
        Some(bias) => {
            let of_bias = bias.track_op();
            attach("linear", y, &[x, weight, bias], move |grad| {
                backward(grad, &input, &kernel, [of_x, of_weight, of_bias])
            })
        }
        None => attach("linear", y, &[x, weight], move |grad| {
            backward(grad, &input, &kernel, [of_x, of_weight, false])
        }),
    }
}

fn output_shape(x: &Tensor, weight: &Tensor) -> Result<Vec<usize>> {
    let mut shape = x.dims().to_vec();
    let (outputs, inputs) = weight.dims2()?;
    match shape.last_mut() {
        Some(last) if *last == inputs => *last = outputs,
        _ => candle_core::bail!(
            "linear: an input of shape {:?} for a weight of {:?}",
            x.dims(),
            weight.dims()
        ),
    }
    Ok(shape)
}

/// The output's values; f32 on the CPU.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Vec<f32>> {
    let (outputs, inputs) = weight.dims2()?;
    let tokens = x.elem_count() / inputs;
    let mut y = output(tokens * outputs);
    let write = match bias {
        Some(bias) => {
            with_slices([bias], |[bias]| {
                y.par_chunks_mut(outputs).for_each(|row| row.copy_from_slice(bias))
            })?;
            Write::Add
        }
        None => Write::Replace,
    };
    with_slices([x, weight], |[x, weight]| {
        let (x, weight) = (Mat::new(x, tokens, inputs), Mat::new(weight, outputs, inputs));
        par_product(MatMut::new(&mut y, tokens, outputs), x, weight.t(), 1., write);
    })?;
    Ok(y)
}

/// Gradients of x, weight and bias, where wanted.
pub fn backward(grad: &Tensor, x: &Tensor, weight: &Tensor, wanted: [bool; 3]) -> Result<Grads> {
    let (outputs, inputs) = weight.dims2()?;
    let tokens = x.elem_count() / inputs;
    let [of_x, of_weight, of_bias] = wanted;
    with_slices([grad, x, weight], |[grad, x_values, weight]| {
        let dy = Mat::new(grad, tokens, outputs);
        let dx = of_x.then(|| {
            let mut dx = output(tokens * inputs);
            let view = MatMut::new(&mut dx, tokens, inputs);
            par_product(view, dy, Mat::new(weight, outputs, inputs), 1., Write::Replace);
            Tensor::from_vec(dx, x.shape(), &Device::Cpu)
        });
        let dw = of_weight.then(|| {
            let mut dw = output(outputs * inputs);
            let view = MatMut::new(&mut dw, outputs, inputs);
            par_product(view, dy.t(), Mat::new(x_values, tokens, inputs), 1., Write::Replace);
            Tensor::from_vec(dw, (outputs, inputs), &Device::Cpu)
        });
        let db = of_bias.then(|| Tensor::from_vec(column_sums(grad, outputs), outputs, &Device::Cpu));
        Ok(vec![dx.transpose()?, dw.transpose()?, db.transpose()?])
    })?
}

/// Rows summed in f32 before they go into f64.
const BLOCK_ROWS: usize = 256;

/// Sums over the rows of a matrix of `width` columns.
pub(super) fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let blocks: Vec<Vec<f32>> = values
        .par_chunks(BLOCK_ROWS * width)
        .map(|block| {
            let mut sums = vec![0f32; width];
            block.chunks_exact(width).for_each(|row| add(&mut sums, row));
            sums
        })
        .collect();
    sum_rows(&blocks, width)
}

/// Adds up partial sums in their order.
pub(super) fn sum_rows(parts: &[Vec<f32>], width: usize) -> Vec<f32> {
    (0..width)
        .map(|i| parts.iter().map(|part| f64::from(part[i])).sum::<f64>() as f32)
        .collect()
}

vectorized! {
    pub(super) fn add(sums: &mut [f32], row: &[f32]) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, inputs) = weight.dims2()?;
    let y = x.reshape(((), inputs))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(output_shape(x, weight)?)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{check, input},
        *,
    };

    fn reference(values: &[Vec<f64>], outputs: usize, inputs: usize) -> Vec<f64> {
        let (x, w) = (&values[0], &values[1]);
        let bias = |o: usize| values.get(2).map_or(0., |b| b[o]);
        let row =
            |n: usize, o: usize| (0..inputs).map(|i| x[n * inputs + i] * w[o * inputs + i]).sum::<f64>() + bias(o);
        (0..x.len() / inputs)
            .flat_map(|n| (0..outputs).map(move |o| (n, o)))
            .map(|(n, o)| row(n, o))
            .collect()
    }

    #[test]
    fn linear_with_and_without_bias() {
        let inputs = [input(&[2, 3, 5], 1), input(&[7, 5], 2), input(&[7], 3)];
        let with = |t: &[Tensor]| linear(&t[0], &t[1], Some(&t[2]));
        check(
            &inputs,
            |v| reference(v, 7, 5),
            with,
            |t| composed(&t[0], &t[1], Some(&t[2])),
        );
        let without = |t: &[Tensor]| linear(&t[0], &t[1], None);
        check(
            &inputs[..2],
            |v| reference(v, 7, 5),
            without,
            |t| composed(&t[0], &t[1], None),
        );
    }

    #[test]
    fn column_sums_of_many_rows() {
        let values: Vec<f32> = (0..3 * 1000).map(|i| (i % 3) as f32).collect();
        assert_eq!(column_sums(&values, 3), [0., 1000., 2000.]);
    }
}
