//! Value by value: SiLU, GELU with the error function, quick GELU, GEGLU, sums.

use rayon::prelude::*;

use super::{
    super::ir::Activation,
    kernel::{CHUNK, Plus, vectorized},
    math::{gelu_slope, phi, sigmoid, silu_slope},
};

pub(crate) fn copy(y: &mut [f32], x: &[f32]) {
    let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(y, x)| y.copy_from_slice(x));
}

/// `y = plus + x`.
pub(crate) fn add(y: &mut [f32], plus: Plus, x: &[f32]) {
    let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate();
    chunks.for_each(|(i, (y, x))| plus.part(i * CHUNK, y.len()).with(y, x));
}

pub(crate) fn activate(kind: Activation, y: &mut [f32], x: &[f32]) {
    let forward = match kind {
        Activation::Silu => silu,
        Activation::QuickGelu => quick_gelu,
        Activation::Gelu => gelu,
    };
    let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(y, x)| forward(y, x));
}

/// `dx = dy f'(x) + plus`.
pub(crate) fn activate_grad(kind: Activation, dx: &mut [f32], dy: &[f32], x: &[f32], plus: Plus) {
    let backward = match kind {
        Activation::Silu => add_silu_grad,
        Activation::QuickGelu => add_quick_gelu_grad,
        Activation::Gelu => add_gelu_grad,
    };
    let chunks = (dx.par_chunks_mut(CHUNK))
        .zip(dy.par_chunks(CHUNK))
        .zip(x.par_chunks(CHUNK));
    chunks.enumerate().for_each(|(i, ((dx, dy), x))| {
        plus.part(i * CHUNK, dx.len()).lay(dx);
        backward(dx, dy, x);
    });
}

const QUICK: f32 = 1.702;

vectorized! {
    fn silu(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid(x));
    }
}
vectorized! {
    fn quick_gelu(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid(QUICK * x));
    }
}
vectorized! {
    fn gelu(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * phi(x));
    }
}
vectorized! {
    fn add_silu_grad(dx: &mut [f32], dy: &[f32], x: &[f32]) {
        dx.iter_mut().zip(dy).zip(x).for_each(|((dx, dy), &x)| *dx += dy * silu_slope(x));
    }
}
vectorized! {
    fn add_quick_gelu_grad(dx: &mut [f32], dy: &[f32], x: &[f32]) {
        dx.iter_mut().zip(dy).zip(x).for_each(|((dx, dy), &x)| {
            let s = sigmoid(QUICK * x);
            *dx += dy * (s + QUICK * x * s * (1. - s));
        });
    }
}
vectorized! {
    fn add_gelu_grad(dx: &mut [f32], dy: &[f32], x: &[f32]) {
        dx.iter_mut().zip(dy).zip(x).for_each(|((dx, dy), &x)| *dx += dy * gelu_slope(x));
    }
}

/// `x` `[tokens, 2 * width]`, `y` `[tokens, width]`.
pub(crate) fn geglu(y: &mut [f32], x: &[f32], width: usize) {
    y.par_chunks_mut(width)
        .zip(x.par_chunks(2 * width))
        .with_min_len(TOKENS)
        .for_each(|(y, x)| geglu_token(y, x));
}

/// `dx` `[tokens, 2 * width]`, `dy` `[tokens, width]`.
pub(crate) fn geglu_grad(dx: &mut [f32], dy: &[f32], x: &[f32], width: usize) {
    dx.par_chunks_mut(2 * width)
        .zip(dy.par_chunks(width))
        .zip(x.par_chunks(2 * width))
        .with_min_len(TOKENS)
        .for_each(|((dx, dy), x)| geglu_token_grad(dx, dy, x));
}

/// Tokens that are worth a task.
const TOKENS: usize = 16;

vectorized! {
    fn geglu_token(y: &mut [f32], x: &[f32]) {
        let (value, gate) = x.split_at(y.len());
        y.iter_mut().zip(value).zip(gate).for_each(|((y, value), &gate)| *y = value * (gate * phi(gate)));
    }
}
vectorized! {
    fn geglu_token_grad(dx: &mut [f32], dy: &[f32], x: &[f32]) {
        let width = dy.len();
        let (value, gate) = x.split_at(width);
        let gate = &gate[..width];
        let (dvalue, dgate) = dx.split_at_mut(width);
        let dgate = &mut dgate[..width];
        for (i, dy) in dy.iter().enumerate() {
            dvalue[i] = dy * (gate[i] * phi(gate[i]));
            dgate[i] = dy * value[i] * gelu_slope(gate[i]);
        }
    }
}
