//! `y = x w^T + bias + residual`, `w` `[outputs, inputs]`. Gradients: `dx = dy w`, `dw = dy^T x`, `dbias` the column sums
//! of `dy`.

use super::kernel::{Mat, MatMut, Onto, Plus, Write, column_sums, par_affine, par_product};

/// `x` `[tokens, inputs]` to `[tokens, outputs]`.
pub(crate) fn forward(y: &mut [f32], x: &[f32], w: &[f32], outputs: usize, onto: Onto) {
    let inputs = w.len() / outputs;
    let (x, w) = (Mat::new(x, x.len() / inputs, inputs), Mat::new(w, outputs, inputs));
    par_affine(y, x, w.t(), onto);
}

pub(crate) fn grad_x(dx: &mut [f32], dy: &[f32], w: &[f32], outputs: usize, plus: Plus) {
    let inputs = w.len() / outputs;
    let (dy, w) = (Mat::new(dy, dy.len() / outputs, outputs), Mat::new(w, outputs, inputs));
    par_affine(dx, dy, w, Onto { bias: None, plus });
}

/// The gradients that are wanted; `x` has `inputs` channels, `dy` `outputs`.
pub(crate) fn grad_w(
    dw: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    (inputs, outputs): (usize, usize),
    write: Write,
) {
    if let Some(dw) = dw {
        let tokens = x.len() / inputs;
        let (dy, x) = (Mat::new(dy, tokens, outputs), Mat::new(x, tokens, inputs));
        par_product(MatMut::new(dw, outputs, inputs), dy.t(), x, 1., write);
    }
    if let Some(dbias) = dbias {
        column_sums(dbias, dy, write);
    }
}
