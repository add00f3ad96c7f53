//! Norms over groups and over layers.

use super::Case;
use crate::engine::ir::{Op, Shift};

#[test]
fn group_norm_with_every_shift() {
    for (dims, groups) in [
        ([2, 5, 7, 6], 3),
        ([3, 3, 3, 4], 4),
        ([1, 1, 2, 6], 1),
        ([2, 40, 41, 24], 8),
    ] {
        for (how, silu, with_rows, with_channels) in [
            (0, true, true, true),
            (1, false, true, false),
            (2, true, false, true),
            (0, false, false, false),
        ] {
            let mut case = Case::default();
            let [rows, channels] = [dims[0], dims[3]];
            let (w, b) = (case.param(&[channels]), case.param(&[channels]));
            let shift = Shift {
                rows: with_rows.then(|| case.input(&[rows, channels])),
                channels: with_channels.then(|| case.param(&[channels])),
            };
            let (x, y) = (case.input(&dims), case.result(&dims));
            let stats = case.stats(&[rows, groups, 2]);
            case.op(Op::GroupNorm {
                x,
                shift,
                w,
                b,
                groups,
                eps: 1e-3,
                silu,
                y,
                stats,
            });
            let dy = case.input(&dims);
            for add in [false, true] {
                let (plus, dx) = case.plus(how, &dims);
                let dshift = with_rows.then(|| case.result(&[rows, channels]));
                case.op(Op::GroupNormGrad {
                    dy,
                    x,
                    shift,
                    w,
                    b,
                    groups,
                    silu,
                    stats,
                    plus,
                    dx,
                    dshift,
                    add,
                });
            }
            // In groups of one channel a shift cancels, and so does its gradient, but for rounding.
            let tolerance = if groups == channels { 1e-4 } else { 1e-5 };
            case.check_within(
                &format!("group norm {dims:?} in {groups}, silu {silu}, {shift:?}, {how}"),
                tolerance,
            );
        }
    }
}

#[test]
fn layer_norm_over_more_tokens_than_a_block() {
    for (dims, how) in [([3, 31, 11], 0), ([1, 1, 3], 1), ([2, 70, 24], 2)] {
        let mut case = Case::default();
        let (w, b) = (case.param(&[dims[2]]), case.param(&[dims[2]]));
        let (x, y, dy) = (case.input(&dims), case.result(&dims), case.input(&dims));
        let stats = case.stats(&[dims[0], dims[1], 2]);
        case.op(Op::LayerNorm {
            x,
            w,
            b,
            eps: 1e-3,
            y,
            stats,
        });
        for add in [false, true] {
            let (plus, dx) = case.plus(how, &dims);
            case.op(Op::LayerNormGrad {
                dy,
                x,
                w,
                b,
                stats,
                plus,
                dx,
                add,
            });
        }
        case.check(&format!("layer norm {dims:?}, {how}"));
    }
}
