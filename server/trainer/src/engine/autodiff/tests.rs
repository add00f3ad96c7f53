//! Every instruction's gradient, and how gradients meet, against central differences of the forward.

use super::*;
use crate::engine::adapter::Adapter;
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{Activation, Group, Kind, Shift, Window};
use crate::engine::plan::plan;
use crate::engine::testing::Case;

fn scope() -> Scope {
    Scope::new("unet", Group::UNet, true)
}

/// An activation that wants a gradient.
fn wanted(b: &mut Builder, wanted: &mut Vec<(&'static str, ValueId)>, name: &'static str, dims: &[usize]) -> ValueId {
    let id = b.input(name.trim_start_matches("d "), dims, Kind::Activation);
    wanted.push((name, id));
    id
}

#[test]
fn linear_with_residual() {
    Case::new(|b, w| {
        let (x, r) = (wanted(b, w, "d x", &[2, 3, 5]), wanted(b, w, "d r", &[2, 3, 4]));
        b.linear(x, &scope(), 4, Bias::Own, Some(r))
    })
    .check(9);
}

#[test]
fn convolutions_of_all_windows() {
    for (kernel, stride, before, after) in [(3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (1, 1, 0, 0)] {
        Case::new(|b, w| {
            let window = Window {
                kernel,
                stride,
                before,
                after,
            };
            let x = wanted(b, w, "d x", &[2, 5, 4, 3]);
            let r = b.conv(x, &scope().at("first"), 4, window, Bias::Own, None);
            b.conv(x, &scope().at("second"), 4, window, Bias::None, Some(r))
        })
        .check(9);
    }
}

#[test]
fn group_norm_with_shift() {
    for silu in [false, true] {
        Case::new(|b, w| {
            let (x, rows) = (wanted(b, w, "d x", &[2, 3, 3, 6]), wanted(b, w, "d rows", &[2, 6]));
            let channels = Some(b.weight(&scope().at("conv"), "bias", &[6]));
            let rows = Some(rows);
            b.group_norm(x, Shift { rows, channels }, &scope(), (2, 1e-3), silu)
        })
        .check(12);
    }
}

#[test]
fn layer_norm() {
    Case::new(|b, w| {
        let x = wanted(b, w, "d x", &[2, 3, 7]);
        b.layer_norm(x, &scope(), 1e-3)
    })
    .check(20);
}

#[test]
fn attention_to_itself_and_to_others() {
    for (keys, causal) in [(5, true), (3, false)] {
        Case::new(|b, w| {
            let q = wanted(b, w, "d q", &[2, 5, 6]);
            let (k, v) = (wanted(b, w, "d k", &[2, keys, 6]), wanted(b, w, "d v", &[2, keys, 6]));
            b.attention([q, k, v], 2, causal)
        })
        .check(20);
    }
}

#[test]
fn one_value_as_query_key_and_value() {
    Case::new(|b, w| {
        let x = wanted(b, w, "d x", &[1, 4, 6]);
        b.attention([x, x, x], 3, false)
    })
    .check(24);
}

#[test]
fn activations() {
    for kind in [Activation::Silu, Activation::QuickGelu, Activation::Gelu] {
        Case::new(|b, w| {
            let x = wanted(b, w, "d x", &[2, 9]);
            b.activate(kind, x)
        })
        .check(20);
    }
    Case::new(|b, w| {
        let x = wanted(b, w, "d x", &[2, 3, 8]);
        b.geglu(x)
    })
    .check(20);
}

#[test]
fn upsampling_to_odd_sizes_and_concatenation() {
    Case::new(|b, w| {
        let (x, y) = (wanted(b, w, "d x", &[2, 3, 2, 3]), wanted(b, w, "d y", &[2, 5, 4, 2]));
        let x = b.upsample(x, 5, 4);
        b.concat(x, y)
    })
    .check(20);
}

#[test]
fn casts_and_the_embedding() {
    Case::new(|b, w| {
        let ids = b.input("ids", &[2, 3], Kind::Ids);
        let (table, positions) = (
            b.weight(&scope(), "table", &[7, 4]),
            b.weight(&scope(), "positions", &[5, 4]),
        );
        let x = b.input("x", &[2, 3, 4], Kind::F32);
        w.push(("d x", x));
        let x = b.cast(x, Kind::Activation);
        let y = b.embedding(ids, table, positions);
        b.add(x, y)
    })
    .check(30);
}

/// A gradient that is handed on stands for several values; adding to one of them must not change the others.
#[test]
fn gradients_meet_in_every_order() {
    Case::new(|b, w| {
        let x = wanted(b, w, "d x", &[2, 3, 4]);
        let y = b.linear(x, &scope().at("a"), 4, Bias::Own, Some(x));
        // y's gradient is pending for y, z and x at once.
        let z = b.add(y, x);
        let z = b.add(z, y);
        let u = b.activate(Activation::Silu, z);
        let v = b.linear(z, &scope().at("b"), 4, Bias::None, Some(u));
        let v = b.add(v, v);
        let tokens = b.reshape(v, &[6, 4]);
        let tokens = b.layer_norm(tokens, &scope().at("norm"), 1e-3);
        let back = b.reshape(tokens, &[2, 3, 4]);
        let back = b.add(back, y);
        b.concat(back, v)
    })
    .check(30);
}

#[test]
fn an_adapter_trains_on_a_frozen_layer() {
    let case = Case::new(|b, w| {
        let x = wanted(b, w, "d x", &[2, 3, 5]);
        let adapter = Some(Adapter { rank: 2, alpha: 2. });
        let frozen = Scope::new("unet", Group::UNet, false).with_adapter(adapter);
        b.adapted(x, &frozen.at("to_q"), 4, Bias::Own, None)
    });
    case.check(10);
    let names: Vec<_> = case.gradients(&case.program(false, false)).into_keys().collect();
    assert_eq!(names, ["d x", "unet.to_q.lora_A.weight", "unet.to_q.lora_B.weight"]);
}

#[test]
fn nothing_is_computed_for_what_is_frozen() {
    let case = Case::new(|b, _| {
        let x = b.input("x", &[2, 3, 4], Kind::Activation);
        let frozen = Scope::new("text_encoder", Group::TextEncoder, false);
        let x = b.linear(x, &frozen.at("a"), 4, Bias::Own, None);
        let x = b.layer_norm(x, &frozen.at("b"), 1e-5);
        let x = b.linear(x, &scope().at("c"), 4, Bias::Own, None);
        b.linear(x, &frozen.at("d"), 3, Bias::Own, None)
    });
    let program = case.program(false, false);
    let added: Vec<_> = program.code[case.forward.program.code.len()..]
        .iter()
        .map(Op::name)
        .collect();
    // The norm once more, for the weight behind it.
    assert_eq!(added, ["LinearGradX", "LayerNorm", "LinearGradW"]);
}

#[test]
fn the_result_of_a_gate_is_not_kept() {
    let case = Case::new(|b, w| {
        let x = wanted(b, w, "d x", &[2, 3, 4]);
        let inner = b.linear(x, &scope().at("up"), 10, Bias::Own, None);
        let inner = b.geglu(inner);
        b.linear(inner, &scope().at("down"), 4, Bias::Own, Some(x))
    });
    case.check(12);
    let program = case.program(false, false);
    let (forward, backward) = program.code.split_at(case.forward.program.code.len());
    let names: Vec<_> = backward.iter().map(Op::name).collect();
    let wanted = [
        "Geglu",
        "LinearGradW",
        "LinearGradX",
        "GegluGrad",
        "LinearGradW",
        "LinearGradX",
    ];
    assert_eq!(names, wanted);
    let Some(Op::Geglu { y, .. }) = forward.iter().find(|op| op.name() == "Geglu") else {
        panic!("there is a gate")
    };
    let reads = |op: &Op| operands(op).reads.iter().any(|id| program.root(*id) == *y);
    assert!(!backward.iter().any(reads), "the forward's own is not read again");
}

#[test]
fn the_result_of_a_layer_norm_is_computed_again_once() {
    let case = Case::new(|b, w| {
        let x = wanted(b, w, "d x", &[2, 3, 4]);
        let normed = b.layer_norm(x, &scope().at("norm"), 1e-3);
        let [q, k, v] = ["q", "k", "v"].map(|name| b.linear(normed, &scope().at(name), 4, Bias::None, None));
        b.attention([q, k, v], 2, false)
    });
    case.check(12);
    let program = case.program(false, false);
    let norms: Vec<&Op> = program.code.iter().filter(|op| op.name() == "LayerNorm").collect();
    let [
        Op::LayerNorm { y: first, stats, .. },
        Op::LayerNorm {
            y: again,
            stats: scratch,
            ..
        },
    ] = norms[..]
    else {
        panic!("{norms:?}")
    };
    assert!(first != again && stats != scratch);
    let forward = case.forward.program.code.len();
    let read = |y: &ValueId| {
        let reads = |op: &&Op| operands(op).reads.iter().any(|id| program.root(*id) == *y);
        program.code[forward..].iter().filter(reads).count()
    };
    assert_eq!((read(first), read(again)), (0, 3));
}

#[test]
fn a_trained_weight_without_a_gradient_is_named() {
    let case = Case::new(|b, _| {
        let x = b.input("x", &[2, 4], Kind::Activation);
        b.linear(x, &scope().at("forgotten"), 4, Bias::None, None);
        b.linear(x, &scope().at("used"), 4, Bias::None, None)
    });
    let seeds: [(ValueId, ValueId); 0] = [];
    let error = backward(case.forward.clone(), &case.table, &seeds, Backward::default()).unwrap_err();
    assert!(error.to_string().starts_with("2 trained weights"), "{error}");
    let error = case.try_program().unwrap_err().to_string();
    assert!(
        error.contains("1 trained") && error.contains("`unet.forgotten.weight`"),
        "{error}"
    );
}

fn small_network() -> Case {
    Case::new(|b, w| {
        let mut x = wanted(b, w, "d x", &[2, 3, 4]);
        for index in 0..3 {
            let scope = scope().at(index);
            x = b.segment(|b| {
                let normed = b.layer_norm(x, &scope.at("norm"), 1e-3);
                let qkv = ["q", "k", "v"].map(|name| b.linear(normed, &scope.at(name), 4, Bias::None, None));
                let attended = b.attention(qkv, 2, false);
                let x = b.linear(attended, &scope.at("out"), 4, Bias::Own, Some(x));
                let inner = b.linear(x, &scope.at("up"), 8, Bias::Own, None);
                let inner = b.activate(Activation::Gelu, inner);
                b.linear(inner, &scope.at("down"), 4, Bias::Own, Some(x))
            });
        }
        x
    })
}

#[test]
fn recomputed_segments_give_the_same_gradients_in_less_memory() {
    let case = small_network();
    case.check(6);
    let (kept, again) = (case.program(false, false), case.program(false, true));
    assert_eq!(case.gradients(&kept), case.gradients(&again));
    let bytes = |program: &Program| plan(program, |_| 1024).arena_bytes;
    assert!(bytes(&again) < bytes(&kept), "{} of {}", bytes(&again), bytes(&kept));
    let count = |program: &Program| program.code.iter().filter(|op| op.name() == "Attention").count();
    // The results that the next segment reads are still there, so the last layers are not run again.
    assert_eq!((count(&kept), count(&again)), (3, 6));
    assert_eq!(again.code.iter().filter(|op| op.name() == "Linear").count(), 18 + 15);
}

#[test]
fn accumulated_gradients_are_added_to_what_is_there() {
    let case = small_network();
    let alone = case.gradients(&case.program(false, false));
    for (name, added) in case.gradients_after(&case.program(true, false), 3.) {
        let start = if name.starts_with("d ") { 0. } else { 3. };
        let worst = added
            .iter()
            .zip(&alone[&name])
            .map(|(a, b)| (a - b - start).abs())
            .fold(0., f64::max);
        assert!(worst < 1e-12, "{name}: {worst}");
    }
}
