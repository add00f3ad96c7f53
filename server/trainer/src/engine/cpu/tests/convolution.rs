//! Convolutions with every kind of window.

use super::Case;
use crate::engine::ir::{Op, Window};

fn window(kernel: usize, stride: usize, before: usize, after: usize) -> Window {
    Window {
        kernel,
        stride,
        before,
        after,
    }
}

#[test]
fn convolution_with_any_window_at_odd_sizes() {
    let same = window(3, 1, 1, 1);
    let shapes = [
        ((2, 3, 5), (5, 7), same),
        ((2, 4, 3), (7, 5), window(3, 2, 1, 1)),
        ((2, 4, 3), (8, 6), window(3, 2, 0, 1)),
        ((3, 2, 4), (4, 4), window(1, 1, 0, 0)),
        ((2, 2, 4), (5, 4), window(1, 2, 0, 0)),
        ((1, 1, 1), (1, 1), same),
        ((2, 3, 2), (4, 5), window(3, 1, 0, 1)),
        ((1, 2, 3), (6, 5), window(2, 1, 0, 1)),
        // Several bands, gradients of w in parts, and whole.
        ((2, 24, 20), (31, 29), same),
        ((1, 20, 40), (37, 33), window(3, 2, 0, 1)),
        ((1, 170, 180), (17, 19), same),
    ];
    for (rows, (height, width), window) in shapes {
        for how in 0..3 {
            let (rows, inputs, outputs) = rows;
            let mut case = Case::default();
            let w = case.param(&[outputs, window.kernel, window.kernel, inputs]);
            let bias = (how != 1).then(|| case.param(&[outputs]));
            let x_dims = [rows, height, width, inputs];
            let size = |size: usize| (size + window.before + window.after - window.kernel) / window.stride + 1;
            let y_dims = [rows, size(height), size(width), outputs];
            let x = case.input(&x_dims);
            let (residual, y) = case.plus(how, &y_dims);
            case.op(Op::Conv {
                x,
                w,
                bias,
                residual,
                window,
                y,
            });
            let dy = case.input(&y_dims);
            let (plus, dx) = case.plus(how, &x_dims);
            case.op(Op::ConvGradX {
                dy,
                w,
                window,
                plus,
                dx,
            });
            for add in [false, true] {
                case.op(Op::ConvGradW {
                    dy,
                    x,
                    w,
                    bias,
                    window,
                    add,
                });
            }
            case.check(&format!("convolution {x_dims:?} {outputs} {window:?}, {how}"));
        }
    }
}
