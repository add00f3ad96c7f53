//! Every instruction against the f64 reference, at odd sizes, into memory that starts as NaN, on one and on three
//! threads.

use std::collections::BTreeMap;

use super::{
    super::{
        ir::{Activation, Group, Kind, Op, Param, ParamId, ParamTable, Program, Shift, Value, ValueId, Window},
        operands::operands,
        reference::Reference,
        session::{Data, Moments, OptimizerSettings, Session, Update},
    },
    CpuSession,
    testing::noise,
};

const SETTINGS: OptimizerSettings = OptimizerSettings {
    moments: Moments::F32,
    beta1: 0.9,
    beta2: 0.999,
    weight_decay: 0.01,
    epsilon: 1e-8,
};

/// A program under construction; all that it writes becomes an output.
#[derive(Default)]
struct Case {
    program: Program,
    params: ParamTable,
}

impl Case {
    fn value(&mut self, dims: &[usize], kind: Kind) -> ValueId {
        self.program.values.push(Value {
            dims: dims.to_vec(),
            kind,
            view_of: None,
        });
        ValueId(self.program.values.len() as u32 - 1)
    }

    /// A value to be written.
    fn new(&mut self, dims: &[usize]) -> ValueId {
        self.value(dims, Kind::Activation)
    }

    fn stats(&mut self, dims: &[usize]) -> ValueId {
        self.value(dims, Kind::F32)
    }

    fn input_of(&mut self, dims: &[usize], kind: Kind) -> ValueId {
        let id = self.value(dims, kind);
        self.program.inputs.insert(format!("in{}", id.0), id);
        id
    }

    fn input(&mut self, dims: &[usize]) -> ValueId {
        self.input_of(dims, Kind::Activation)
    }

    fn param(&mut self, dims: &[usize]) -> ParamId {
        self.params.params.push(Param {
            name: format!("p{}", self.params.params.len()),
            dims: dims.to_vec(),
            trained: true,
            group: Group::UNet,
        });
        ParamId(self.params.params.len() as u32 - 1)
    }

    fn op(&mut self, op: Op) {
        for id in operands(&op).writes {
            self.program.outputs.insert(format!("out{}", id.0), id);
        }
        self.program.code.push(op);
    }

    /// A value that an instruction can add to in place.
    fn started(&mut self, dims: &[usize]) -> ValueId {
        let (a, b, y) = (self.input(dims), self.input(dims), self.new(dims));
        self.op(Op::Add { a, b, y });
        y
    }

    /// What a gradient is added to, in three ways: nothing, another value, the result itself. Returns `plus` and result.
    fn plus(&mut self, how: usize, dims: &[usize]) -> (Option<ValueId>, ValueId) {
        match how {
            0 => (None, self.new(dims)),
            1 => (Some(self.input(dims)), self.new(dims)),
            _ => {
                let started = self.started(dims);
                (Some(started), started)
            }
        }
    }

    fn check(self, what: &str) {
        self.check_within(what, 1e-5);
    }

    fn check_within(self, what: &str, tolerance: f64) {
        let weights: Vec<Vec<f32>> = (self.params.params.iter().zip(1000..))
            .map(|(param, seed)| noise(param.len(), seed))
            .collect();
        let inputs: BTreeMap<&String, Vec<f32>> = (self.program.inputs.iter())
            .map(|(name, &id)| {
                let value = self.program.value(id);
                let mut values = noise(value.len(), u64::from(id.0) + 1);
                if value.kind == Kind::Ids {
                    values.iter_mut().for_each(|v| *v = ((*v + 1.) * 3.).floor().min(5.));
                }
                (name, values)
            })
            .collect();
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let mut reference = Reference::new(&self.params, weights.iter().map(|w| wide(w)).collect()).unwrap();
        let given = inputs
            .iter()
            .map(|(name, values)| ((*name).clone(), wide(values)))
            .collect();
        let expected = reference.run(&self.program, &given).unwrap();

        let run = |threads: usize| {
            let mut session = CpuSession::new(self.params.clone(), SETTINGS).unwrap();
            for (index, weight) in weights.iter().enumerate() {
                session.set_weight(ParamId(index as u32), weight).unwrap();
            }
            let id = session.compile(self.program.clone()).unwrap();
            for (name, values) in &inputs {
                let ids: Vec<u32> = values.iter().map(|v| *v as u32).collect();
                let data = match self.program.value(self.program.inputs[*name]).kind {
                    Kind::Ids => Data::Ids(&ids),
                    _ => Data::F32(values),
                };
                session.write(id, name, data).unwrap();
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| session.run(id)).unwrap();
            let mut all = BTreeMap::new();
            for name in self.program.outputs.keys() {
                all.insert(name.clone(), session.read(id, name).unwrap());
            }
            for op in &self.program.code {
                for param in operands(op).gradients {
                    let name = format!("gradient of {}", self.params.get(param).name);
                    all.insert(name, session.gradient(param).unwrap());
                }
            }
            all
        };
        let got = run(1);
        let bits =
            |all: &BTreeMap<String, Vec<f32>>| -> Vec<u32> { all.values().flatten().map(|v| v.to_bits()).collect() };
        assert_eq!(bits(&got), bits(&run(3)), "{what}: one and three threads differ");
        for (name, got) in &got {
            let want = match name.strip_prefix("gradient of p") {
                Some(index) => &reference.gradients[index.parse::<usize>().unwrap()][..],
                None => expected.output(name).unwrap(),
            };
            close(&format!("{what}: {name}"), got, want, tolerance);
        }
    }
}

/// Errors relative to the largest value, or to 0.01 where everything cancels; written so that NaN fails.
fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-2f64, |most, v| most.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs() / scale;
        let within = error.partial_cmp(&tolerance).is_some_and(|order| order.is_le());
        assert!(within, "{what} [{i}]: {got}, not {want}");
    }
}

#[test]
fn linear_at_odd_and_at_parallel_sizes() {
    for (tokens, inputs, outputs) in [(5, 3, 7), (1, 1, 1), (130, 70, 90), (20, 300, 900)] {
        for how in 0..3 {
            let mut case = Case::default();
            let w = if how == 0 {
                case.param(&[outputs, 1, 1, inputs])
            } else {
                case.param(&[outputs, inputs])
            };
            let bias = (how != 1).then(|| case.param(&[outputs]));
            let x = case.input(&[1, tokens, inputs]);
            let (residual, y) = case.plus(how, &[1, tokens, outputs]);
            case.op(Op::Linear {
                x,
                w,
                bias,
                residual,
                y,
            });
            let dy = case.input(&[1, tokens, outputs]);
            let (plus, dx) = case.plus(how, &[1, tokens, inputs]);
            case.op(Op::LinearGradX { dy, w, plus, dx });
            for add in [false, true] {
                case.op(Op::LinearGradW { dy, x, w, bias, add });
            }
            case.check(&format!("linear {tokens} {inputs} {outputs}, {how}"));
        }
    }
}

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
            let (x, y) = (case.input(&dims), case.new(&dims));
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
                let dshift = with_rows.then(|| case.new(&[rows, channels]));
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
        let (x, y, dy) = (case.input(&dims), case.new(&dims), case.input(&dims));
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

#[test]
fn attention_to_itself_across_and_causal() {
    for (queries, keys, heads, d, causal) in [
        (7, 7, 2, 5, false),
        (6, 3, 3, 4, false),
        (9, 9, 2, 5, true),
        (1, 1, 1, 3, true),
        // More queries than a block.
        (300, 300, 2, 8, false),
        (300, 300, 1, 8, true),
        (290, 1100, 1, 4, false),
    ] {
        let mut case = Case::default();
        let (of_q, of_k) = ([2, queries, heads * d], [2, keys, heads * d]);
        let (q, k, v, dy) = (
            case.input(&of_q),
            case.input(&of_k),
            case.input(&of_k),
            case.input(&of_q),
        );
        let (y, stats) = (case.new(&of_q), case.stats(&[2, heads, queries]));
        case.op(Op::Attention {
            q,
            k,
            v,
            heads,
            causal,
            y,
            stats,
        });
        let (dq, dk, dv) = (case.new(&of_q), case.new(&of_k), case.new(&of_k));
        case.op(Op::AttentionGrad {
            dy,
            q,
            k,
            v,
            y,
            stats,
            heads,
            causal,
            dq,
            dk,
            dv,
        });
        case.check(&format!("attention {queries} {keys} {heads} {d}, causal {causal}"));
    }
}

#[test]
fn gates_and_sums() {
    let dims = [3, 5, 14];
    for kind in [Activation::Silu, Activation::QuickGelu, Activation::Gelu] {
        for how in 0..3 {
            // Longer than a task.
            let dims = [3, 31, 200];
            let mut case = Case::default();
            let (x, y, dy) = (case.started(&dims), case.new(&dims), case.input(&dims));
            case.op(Op::Activate { kind, x, y });
            let (plus, dx) = case.plus(how, &dims);
            case.op(Op::ActivateGrad { kind, dy, x, plus, dx });
            case.check(&format!("{kind:?}, {how}"));
        }
    }
    let mut case = Case::default();
    let (x, y) = (case.input(&dims), case.new(&[3, 5, 7]));
    case.op(Op::Geglu { x, y });
    let (dy, dx) = (case.input(&[3, 5, 7]), case.new(&dims));
    case.op(Op::GegluGrad { dy, x, dx });
    let (a, b) = (case.started(&dims), case.started(&dims));
    case.op(Op::Add { a, b, y: a });
    case.op(Op::Add { a, b, y: b });
    case.op(Op::Add { a: b, b, y: b });
    let cast = case.value(&dims, Kind::F32);
    case.op(Op::Cast { x: b, y: cast });
    case.check("geglu, sums and casts");
}

#[test]
fn upsampling_to_twice_and_to_odd_sizes() {
    for ((h, w), (height, width)) in [((3, 2), (6, 4)), ((3, 3), (5, 6)), ((5, 6), (9, 11)), ((1, 1), (2, 1))] {
        for how in 0..3 {
            let (small, large) = ([2, h, w, 3], [2, height, width, 3]);
            let mut case = Case::default();
            let (x, y, dy) = (case.input(&small), case.new(&large), case.input(&large));
            case.op(Op::Upsample { x, y });
            let (plus, dx) = case.plus(how, &small);
            case.op(Op::UpsampleGrad { dy, plus, dx });
            case.check(&format!("{small:?} to {large:?}, {how}"));
        }
    }
}

#[test]
fn channels_side_by_side_and_apart() {
    let mut case = Case::default();
    let dims = |channels| [2, 9, 11, channels];
    let (a, b, y) = (case.input(&dims(3)), case.input(&dims(5)), case.new(&dims(8)));
    case.op(Op::Concat { a, b, y });
    let dy = case.input(&dims(8));
    let (da, db) = (case.new(&dims(3)), case.new(&dims(5)));
    case.op(Op::ConcatGrad {
        dy,
        da: Some(da),
        db: Some(db),
    });
    let (da, db) = (case.new(&dims(3)), case.new(&dims(5)));
    case.op(Op::ConcatGrad {
        dy,
        da: Some(da),
        db: None,
    });
    case.op(Op::ConcatGrad {
        dy,
        da: None,
        db: Some(db),
    });
    case.check("concat");
}

#[test]
fn tokens_that_occur_twice_and_never() {
    let mut case = Case::default();
    let (table, positions) = (case.param(&[6, 3]), case.param(&[5, 3]));
    let (ids, y) = (case.input_of(&[2, 4], Kind::Ids), case.new(&[2, 4, 3]));
    case.op(Op::Embedding {
        ids,
        table,
        positions,
        y,
    });
    let dy = case.input(&[2, 4, 3]);
    for add in [false, true] {
        case.op(Op::EmbeddingGrad {
            dy,
            ids,
            table,
            positions,
            add,
        });
    }
    case.check("embedding");
}

#[test]
fn a_loss_by_row() {
    let mut case = Case::default();
    let dims = [3, 5, 7, 2];
    let predicted = case.input(&dims);
    let (target, weights, scale) = (
        case.input_of(&dims, Kind::F32),
        case.input_of(&[3], Kind::F32),
        case.input_of(&[1], Kind::F32),
    );
    let (losses, dpredicted) = (case.stats(&[3]), case.new(&dims));
    case.op(Op::Mse {
        predicted,
        target,
        weights,
        scale,
        losses,
        dpredicted,
    });
    case.check("mse");
}

/// A linear layer with more weights than the 8-bit optimizer keeps in f32, and its bias.
fn trained(moments: Moments) -> (CpuSession, super::super::session::ProgramId) {
    let mut case = Case::default();
    let (w, bias) = (case.param(&[80, 60]), case.param(&[80]));
    let (x, dy) = (case.input(&[1, 9, 60]), case.input(&[1, 9, 80]));
    case.op(Op::LinearGradW {
        dy,
        x,
        w,
        bias: Some(bias),
        add: false,
    });
    let mut session = CpuSession::new(case.params, OptimizerSettings { moments, ..SETTINGS }).unwrap();
    for (id, len) in [(w, 4800), (bias, 80)] {
        session.set_weight(id, &noise(len, 5)).unwrap();
    }
    let program = session.compile(case.program).unwrap();
    session.write(program, "in0", Data::F32(&noise(540, 1))).unwrap();
    session.write(program, "in1", Data::F32(&noise(720, 2))).unwrap();
    (session, program)
}

fn update(number: u64) -> Update {
    Update {
        learning_rates: BTreeMap::from([(Group::UNet, 1e-2)]),
        max_grad_norm: 1.,
        loss_scale: 8.,
        number,
    }
}

fn weights(session: &mut CpuSession) -> Vec<f32> {
    [0, 1].map(|id| session.weight(ParamId(id)).unwrap()).concat()
}

#[test]
fn a_restored_session_goes_on_with_the_same_bits() {
    for moments in [Moments::F32, Moments::EightBit] {
        let (mut session, program) = trained(moments);
        for number in 1..4 {
            session.run_and_update(program, &update(number)).unwrap();
        }
        let (mut other, other_program) = trained(moments);
        for id in [0, 1].map(ParamId) {
            let weight = session.weight(id).unwrap();
            other.set_weight(id, &weight).unwrap();
        }
        let saved = session.moments().unwrap();
        other.restore_moments(&saved).unwrap();
        assert_eq!(other.moments().unwrap(), saved);
        session.run_and_update(program, &update(4)).unwrap();
        other.run_and_update(other_program, &update(4)).unwrap();
        assert_eq!(weights(&mut session), weights(&mut other), "{moments:?}");
        assert_ne!(session.moments().unwrap(), saved);
        let mut short = saved.clone();
        short.pop_last();
        assert!(other.restore_moments(&short).is_err());
    }
}

#[test]
fn an_overflow_changes_nothing_and_is_told() {
    for moments in [Moments::F32, Moments::EightBit] {
        let (mut session, program) = trained(moments);
        session.run_and_update(program, &update(1)).unwrap();
        let before = (weights(&mut session), session.moments().unwrap());
        let mut dy = noise(720, 3);
        dy[77] = f32::INFINITY;
        session.write(program, "in1", Data::F32(&dy)).unwrap();
        let updated = session.run_and_update(program, &update(2)).unwrap();
        assert!(updated.skipped && !updated.grad_norm.is_finite());
        assert_eq!(before, (weights(&mut session), session.moments().unwrap()));
    }
}

#[test]
fn adamw_follows_its_formula() {
    let (mut session, program) = trained(Moments::F32);
    let mut p: Vec<f64> = weights(&mut session).into_iter().map(f64::from).collect();
    let (mut m, mut v) = (vec![0.; p.len()], vec![0.; p.len()]);
    for number in 1..6 {
        let dy: Vec<f32> = noise(720, number + 20);
        session.write(program, "in1", Data::F32(&dy)).unwrap();
        let updated = session.run_and_update(program, &update(number)).unwrap();
        let gradient = [0, 1].map(|id| session.gradient(ParamId(id)).unwrap()).concat();
        let g: Vec<f64> = gradient.into_iter().map(|g| f64::from(g) / 8.).collect();
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((updated.grad_norm - norm).abs() < 1e-9 * norm && norm > 1.);
        let t = number as i32;
        for i in 0..p.len() {
            let g = g[i] / (norm + 1e-6);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            p[i] *= 1. - 1e-2 * 0.01;
            p[i] -= 1e-2 * m[i] / (1. - 0.9f64.powi(t)) / ((v[i] / (1. - 0.999f64.powi(t))).sqrt() + 1e-8);
        }
        close("weights", &weights(&mut session), &p, 2e-6);
    }
}

#[test]
fn a_weight_without_gradient_is_an_error() {
    let (mut session, _) = trained(Moments::F32);
    let empty = session.compile(Program::default()).unwrap();
    let error = session.run_and_update(empty, &update(1)).unwrap_err();
    assert!(error.to_string().contains("`p0`"), "{error}");
}

#[test]
fn wrong_inputs_are_errors() {
    let (mut session, program) = trained(Moments::F32);
    for (name, data) in [
        ("nothing", Data::F32(&[0.])),
        ("in0", Data::F32(&[0.])),
        ("in0", Data::Ids(&[0; 540])),
    ] {
        assert!(session.write(program, name, data).is_err(), "{name}");
    }
    assert!(session.read(program, "nothing").is_err());
}
