//! What a program's matrix work costs at least.

use crate::engine::ir::{Op, Program};

/// Multiplications and additions of all matrix products, convolutions and attentions; the backward of an attention counts
/// the product that it computes again.
pub fn flop(program: &Program) -> f64 {
    program.code.iter().map(|op| of(op, program)).sum()
}

fn of(op: &Op, program: &Program) -> f64 {
    let len = |id| program.value(id).len() as f64;
    let channels = |id| program.value(id).channels() as f64;
    match *op {
        Op::Linear { x, y, .. } => 2. * len(y) * channels(x),
        Op::LinearGradX { dy, dx, .. } => 2. * len(dy) * channels(dx),
        Op::LinearGradW { dy, x, .. } => 2. * len(dy) * channels(x),
        Op::Conv { x, y, window, .. } => 2. * len(y) * channels(x) * (window.kernel * window.kernel) as f64,
        Op::ConvGradX { dy, dx, window, .. } => 2. * len(dy) * channels(dx) * (window.kernel * window.kernel) as f64,
        Op::ConvGradW { dy, x, window, .. } => 2. * len(dy) * channels(x) * (window.kernel * window.kernel) as f64,
        Op::Attention { q, k, .. } => 4. * len(q) * program.value(k).dims[1] as f64,
        Op::AttentionGrad { q, k, .. } => 10. * len(q) * program.value(k).dims[1] as f64,
        _ => 0.,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ir::{Kind, ParamId};

    #[test]
    fn a_layer_costs_what_its_shape_says() {
        let mut program = Program::default();
        let x = program.push_value(vec![2, 3, 5], Kind::Activation);
        let y = program.push_value(vec![2, 3, 7], Kind::Activation);
        let w = ParamId(0);
        program.code = vec![
            Op::Linear {
                x,
                w,
                bias: None,
                residual: None,
                y,
            },
            Op::LinearGradX {
                dy: y,
                w,
                plus: None,
                dx: x,
            },
        ];
        assert_eq!(flop(&program), 2. * (2. * 6. * 5. * 7.));
    }
}
