//! Every instruction against the f64 reference, at odd sizes, into memory that starts as NaN, on one and on three
//! threads.

mod convolution;
mod norms;
mod updates;

use std::collections::BTreeMap;

use super::{
    super::{
        ir::{Activation, Group, Kind, Op, Param, ParamId, ParamTable, Program, Value, ValueId},
        operands::operands,
        reference::Reference,
        session::{Data, Moments, OptimizerSettings, Session},
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
    low_memory: None,
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
    fn result(&mut self, dims: &[usize]) -> ValueId {
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
        let (a, b, y) = (self.input(dims), self.input(dims), self.result(dims));
        self.op(Op::Add { a, b, y });
        y
    }

    /// What a gradient is added to, in three ways: nothing, another value, the result itself. Returns `plus` and result.
    fn plus(&mut self, how: usize, dims: &[usize]) -> (Option<ValueId>, ValueId) {
        match how {
            0 => (None, self.result(dims)),
            1 => (Some(self.input(dims)), self.result(dims)),
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
        let (y, stats) = (case.result(&of_q), case.stats(&[2, heads, queries]));
        case.op(Op::Attention {
            q,
            k,
            v,
            heads,
            causal,
            y,
            stats,
        });
        let (dq, dk, dv) = (case.result(&of_q), case.result(&of_k), case.result(&of_k));
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
            let (x, y, dy) = (case.started(&dims), case.result(&dims), case.input(&dims));
            case.op(Op::Activate { kind, x, y });
            let (plus, dx) = case.plus(how, &dims);
            case.op(Op::ActivateGrad { kind, dy, x, plus, dx });
            case.check(&format!("{kind:?}, {how}"));
        }
    }
    let mut case = Case::default();
    let (x, y) = (case.input(&dims), case.result(&[3, 5, 7]));
    case.op(Op::Geglu { x, y });
    let (dy, dx) = (case.input(&[3, 5, 7]), case.result(&dims));
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
            let (x, y, dy) = (case.input(&small), case.result(&large), case.input(&large));
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
    let (a, b, y) = (case.input(&dims(3)), case.input(&dims(5)), case.result(&dims(8)));
    case.op(Op::Concat { a, b, y });
    let dy = case.input(&dims(8));
    let (da, db) = (case.result(&dims(3)), case.result(&dims(5)));
    case.op(Op::ConcatGrad {
        dy,
        da: Some(da),
        db: Some(db),
    });
    let (da, db) = (case.result(&dims(3)), case.result(&dims(5)));
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
    let (ids, y) = (case.input_of(&[2, 4], Kind::Ids), case.result(&[2, 4, 3]));
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
    let (losses, dpredicted) = (case.stats(&[3]), case.result(&dims));
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

#[test]
fn chance_and_the_rows_that_are_made_of_it() {
    for (velocity, with_offsets) in [(false, false), (true, true)] {
        let mut case = Case::default();
        let (dims, steps) = ([3, 5, 3, 2], 7);
        let clock = case.input_of(&[4], Kind::Ids);
        let [latents, noise] = [0, 1].map(|_| case.stats(&dims));
        let offsets = with_offsets.then(|| case.stats(&[3, 2]));
        let timesteps = case.stats(&[3]);
        case.op(Op::Draw {
            clock,
            steps,
            latents,
            noise,
            offsets,
            timesteps,
        });
        let [mean, deviation] = [0, 1].map(|_| case.input_of(&dims, Kind::F32));
        let (schedule, times) = (
            case.input_of(&[steps, 3], Kind::F32),
            case.input_of(&[steps, 9], Kind::F32),
        );
        let (shares, strengths) = (case.input_of(&[3], Kind::F32), case.input_of(&[2], Kind::F32));
        let (noisy, time) = (case.result(&dims), case.result(&[3, 9]));
        let (target, weights) = (case.stats(&dims), case.stats(&[3]));
        case.op(Op::Diffuse {
            mean,
            deviation,
            latents,
            noise,
            offsets,
            timesteps,
            schedule,
            times,
            shares,
            strengths,
            velocity,
            noisy,
            target,
            time,
            weights,
        });
        case.check("chance");
    }
}
