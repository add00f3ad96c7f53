//! SiLU, GELU (exact), quick GELU, GEGLU: value by value.

use candle_core::{D, DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    kernel::{output, vectorized},
    math::{erf, exp, sigmoid},
    node::{Output, attach, on_host, with_slices},
};

/// Values a task takes.
const CHUNK: usize = 1 << 14;

/// `x sigmoid(x)`; slope `s + x s (1 - s)`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if on_host(&[x]) {
        by_value("silu", x, silu_forward, silu_backward)
    } else {
        wide(x, |x| x * sigmoid_of(x)?)
    }
}

/// `x Phi(x)`, with the error function, not its tanh approximation, which shifts a U-Net's output by 1e-4.
/// Slope `Phi(x) + x phi(x)`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if on_host(&[x]) {
        by_value("gelu", x, gelu_forward, gelu_backward)
    } else {
        composed_gelu(x)
    }
}

/// `x sigmoid(1.702 x)`, CLIP's; slope `s + 1.702 x s (1 - s)`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if on_host(&[x]) {
        return by_value("quick_gelu", x, quick_gelu_forward, quick_gelu_backward);
    }
    wide(x, |x| x * sigmoid_of(&(x * QUICK)?)?)
}

/// First half of the last dimension times [`gelu`] of the second.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    if !on_host(&[x]) {
        return composed_geglu(x);
    }
    let width = x.dim(D::Minus1)?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width / 2;
    }
    let mut y = output(x.elem_count() / 2);
    with_slices([x], |[x]| {
        y.par_chunks_mut(width / 2)
            .zip(x.par_chunks(width))
            .with_min_len(16)
            .for_each(|(y, x)| geglu_forward(y, x));
    })?;
    let input = x.detach();
    attach("geglu", Output::host(y, shape), &[x], move |grad| {
        let mut dx = output(input.elem_count());
        with_slices([&input, grad], |[x, dy]| {
            let rows = dx
                .par_chunks_mut(width)
                .zip(x.par_chunks(width))
                .zip(dy.par_chunks(width / 2));
            rows.with_min_len(16)
                .for_each(|((dx, x), dy)| geglu_backward(dx, x, dy));
        })?;
        Ok(vec![Some(Tensor::from_vec(dx, input.shape(), &Device::Cpu)?)])
    })
}

/// `forward(y, x)` and `backward(dx, x, dy)` on chunks.
fn by_value(
    name: &'static str,
    x: &Tensor,
    forward: fn(&mut [f32], &[f32]),
    backward: fn(&mut [f32], &[f32], &[f32]),
) -> Result<Tensor> {
    let mut y = output(x.elem_count());
    with_slices([x], |[x]| {
        y.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .for_each(|(y, x)| forward(y, x))
    })?;
    let input = x.detach();
    attach(name, Output::host(y, x.shape()), &[x], move |grad| {
        let mut dx = output(input.elem_count());
        with_slices([&input, grad], |[x, dy]| {
            let chunks = dx
                .par_chunks_mut(CHUNK)
                .zip(x.par_chunks(CHUNK))
                .zip(dy.par_chunks(CHUNK));
            chunks.for_each(|((dx, x), dy)| backward(dx, x, dy));
        })?;
        Ok(vec![Some(Tensor::from_vec(dx, input.shape(), &Device::Cpu)?)])
    })
}

const QUICK: f64 = 1.702;
/// 1 / sqrt(2 pi)
const NORMAL: f32 = 0.398_942_3;

#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s + x * s * (1. - s)
}

#[inline(always)]
fn phi(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    phi(x) + x * NORMAL * exp(-0.5 * x * x)
}

vectorized! {
    fn silu_forward(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid(x));
    }
}
vectorized! {
    fn silu_backward(dx: &mut [f32], x: &[f32], dy: &[f32]) {
        dx.iter_mut().zip(x).zip(dy).for_each(|((dx, &x), dy)| *dx = dy * silu_slope(x));
    }
}
vectorized! {
    fn gelu_forward(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * phi(x));
    }
}
vectorized! {
    fn gelu_backward(dx: &mut [f32], x: &[f32], dy: &[f32]) {
        dx.iter_mut().zip(x).zip(dy).for_each(|((dx, &x), dy)| *dx = dy * gelu_slope(x));
    }
}
vectorized! {
    fn quick_gelu_forward(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid(QUICK as f32 * x));
    }
}
vectorized! {
    fn quick_gelu_backward(dx: &mut [f32], x: &[f32], dy: &[f32]) {
        dx.iter_mut().zip(x).zip(dy).for_each(|((dx, &x), dy)| {
            let s = sigmoid(QUICK as f32 * x);
            *dx = dy * (s + QUICK as f32 * x * s * (1. - s));
        });
    }
}
vectorized! {
    fn geglu_forward(y: &mut [f32], x: &[f32]) {
        let (value, gate) = x.split_at(y.len());
        y.iter_mut().zip(value).zip(gate).for_each(|((y, value), &gate)| *y = value * (gate * phi(gate)));
    }
}
vectorized! {
    fn geglu_backward(dx: &mut [f32], x: &[f32], dy: &[f32]) {
        let (value, gate) = x.split_at(dy.len());
        let (dvalue, dgate) = dx.split_at_mut(dy.len());
        for (i, dy) in dy.iter().enumerate() {
            dvalue[i] = dy * (gate[i] * phi(gate[i]));
            dgate[i] = dy * value[i] * gelu_slope(gate[i]);
        }
    }
}

fn composed_gelu(x: &Tensor) -> Result<Tensor> {
    wide(x, Tensor::gelu_erf)
}

fn composed_geglu(x: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    x.narrow(D::Minus1, 0, half)? * composed_gelu(&x.narrow(D::Minus1, half, half)?.contiguous()?)?
}

fn sigmoid_of(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.)?.recip()
}

/// Computes 16-bit types in f32.
fn wide(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => f(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype()),
        _ => f(x),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Input, check, check_own, exact_erf, input},
        *,
    };

    fn spread(shape: &[usize]) -> Input {
        let Input { values, shape } = input(shape, 1);
        Input {
            values: values.into_iter().map(|v| 6. * v).collect(),
            shape,
        }
    }

    fn exact_gelu(x: f64) -> f64 {
        x * 0.5 * (1. + exact_erf(x / 2f64.sqrt()))
    }

    fn check_value(f: fn(f64) -> f64, op: fn(&Tensor) -> Result<Tensor>) {
        let reference = |v: &[Vec<f64>]| v[0].iter().map(|&x| f(x)).collect();
        check(&[spread(&[3, 67])], reference, |t| op(&t[0]), |t| op(&t[0]));
    }

    #[test]
    fn silu_and_both_gelus() {
        check_value(|x| x / (1. + (-x).exp()), silu);
        check_value(|x| x / (1. + (-QUICK * x).exp()), quick_gelu);
    }

    #[test]
    fn exact_gelu_and_geglu() {
        // candle's own slope has a constant of six digits: the composed form is not held to 1e-6.
        let reference = |v: &[Vec<f64>]| v[0].iter().map(|&x| exact_gelu(x)).collect();
        let op = |t: &[Tensor]| gelu(&t[0].to_dtype(DType::F32)?)?.to_dtype(t[0].dtype());
        check_own(&[spread(&[3, 67])], reference, op);
        let reference = |v: &[Vec<f64>]| {
            let rows = v[0].chunks(14);
            rows.flat_map(|row| (0..7).map(|i| row[i] * exact_gelu(row[7 + i])).collect::<Vec<_>>())
                .collect()
        };
        check_own(&[spread(&[2, 5, 14])], reference, |t| geglu(&t[0]));
    }
}
