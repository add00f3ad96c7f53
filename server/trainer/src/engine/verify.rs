//! Checks a whole program before it runs: shapes, kinds, weights, and that everything is written before it is read.

use super::ir::{Kind, Op, Param, ParamId, ParamTable, Program, Shift, ValueId, Window};
use super::operands::operands;
use super::philox::Clock;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction {index} ({op}): {what}")]
pub struct ProgramError {
    pub index: usize,
    pub op: &'static str,
    /// Names the operand, and what it is against what it has to be.
    pub what: String,
}

/// # Errors
/// At the first instruction that cannot be meant.
pub fn verify(program: &Program, params: &ParamTable) -> Result<(), ProgramError> {
    let check = Check { program, params };
    let mut written = vec![false; program.values.len()];
    for &id in program.inputs.values() {
        written[id.0 as usize] = true;
    }
    for (index, op) in program.code.iter().enumerate() {
        let fail = |what| ProgramError {
            index,
            op: op.name(),
            what,
        };
        check.order(op, &mut written).map_err(fail)?;
        check.shapes(op).map_err(fail)?;
    }
    let end = |what| ProgramError {
        index: program.code.len(),
        op: "end",
        what,
    };
    for (name, &id) in &program.outputs {
        if !written[program.root(id).0 as usize] {
            return Err(end(format!("the output `{name}` is never written")));
        }
    }
    for (index, value) in program.values.iter().enumerate() {
        let Some(root) = value.view_of else { continue };
        let of = program.value(root);
        if of.view_of.is_some() || of.len() != value.len() || of.kind != value.kind {
            return Err(end(format!(
                "v{index} {value:?} cannot be a view of v{} {of:?}",
                root.0
            )));
        }
    }
    Ok(())
}

struct Check<'a> {
    program: &'a Program,
    params: &'a ParamTable,
}

type Verdict = Result<(), String>;

const ACTIVATION: &[Kind] = &[Kind::Activation];
const F32: &[Kind] = &[Kind::F32];
const REAL: &[Kind] = &[Kind::Activation, Kind::F32];

impl Check<'_> {
    fn order(&self, op: &Op, written: &mut [bool]) -> Verdict {
        let touched = operands(op);
        for id in touched.reads {
            if !written[self.program.root(id).0 as usize] {
                return Err(format!("{} is read before anything wrote it", self.show(id)));
            }
        }
        for id in touched.writes {
            let root = self.program.root(id);
            if self.program.inputs.values().any(|&input| input == root) {
                return Err(format!("{} is an input and must not be written", self.show(id)));
            }
            written[root.0 as usize] = true;
        }
        Ok(())
    }

    fn show(&self, id: ValueId) -> String {
        let value = self.program.value(id);
        format!("v{} {:?} {:?}", id.0, value.kind, value.dims)
    }

    fn dims(&self, id: ValueId) -> &[usize] {
        &self.program.value(id).dims
    }

    fn value(&self, name: &str, id: ValueId, dims: &[usize], kinds: &[Kind]) -> Verdict {
        let value = self.program.value(id);
        if value.dims == dims && kinds.contains(&value.kind) {
            return Ok(());
        }
        Err(format!("{name} is {}, and has to be {kinds:?} {dims:?}", self.show(id)))
    }

    fn optional(&self, name: &str, id: Option<ValueId>, dims: &[usize]) -> Verdict {
        id.map_or(Ok(()), |id| self.value(name, id, dims, ACTIVATION))
    }

    fn like(&self, names: &[&str], ids: &[ValueId]) -> Verdict {
        let dims = self.dims(ids[0]);
        (names.iter().zip(ids)).try_for_each(|(name, &id)| self.value(name, id, dims, ACTIVATION))
    }

    fn rank(&self, name: &str, id: ValueId, rank: usize) -> Verdict {
        if self.dims(id).len() == rank {
            return Ok(());
        }
        Err(format!(
            "{name} is {}, and has to have {rank} dimensions",
            self.show(id)
        ))
    }

    fn weight(&self, name: &str, id: ParamId, fits: impl Fn(&Param) -> bool, wanted: &str) -> Verdict {
        let param = self.params.get(id);
        if fits(param) {
            return Ok(());
        }
        Err(format!(
            "{name} is `{}` {:?}, and has to be {wanted}",
            param.name, param.dims
        ))
    }

    fn vector(&self, name: &str, id: Option<ParamId>, len: usize) -> Verdict {
        id.map_or(Ok(()), |id| {
            self.weight(name, id, |param| param.dims == [len], &format!("[{len}]"))
        })
    }

    fn linear(&self, x: &[usize], w: ParamId, y: ValueId) -> Verdict {
        let (inputs, outputs) = (x.last().copied().unwrap_or(0), self.program.value(y).channels());
        let fits = |param: &Param| param.dims == [outputs, inputs] || param.dims == [outputs, 1, 1, inputs];
        self.weight("w", w, fits, &format!("[{outputs}, {inputs}]"))?;
        let dims: Vec<usize> = x[..x.len() - 1].iter().copied().chain([outputs]).collect();
        self.value("y", y, &dims, ACTIVATION)
    }

    fn conv(&self, x: ValueId, w: ParamId, window: Window, y: ValueId) -> Verdict {
        self.rank("x", x, 4)?;
        self.rank("y", y, 4)?;
        let (x, outputs) = (self.dims(x), self.program.value(y).channels());
        let wanted = [outputs, window.kernel, window.kernel, x[3]];
        self.weight("w", w, |param| param.dims == wanted, &format!("{wanted:?}"))?;
        let (Some(height), Some(width)) = (window.output(x[1]), window.output(x[2])) else {
            return Err(format!("the window {window:?} is larger than x {x:?}"));
        };
        self.value("y", y, &[x[0], height, width, outputs], ACTIVATION)
    }

    fn group_norm(&self, x: ValueId, shift: Shift, [w, b]: [ParamId; 2], groups: usize, stats: ValueId) -> Verdict {
        let (rows, channels) = (self.dims(x)[0], self.program.value(x).channels());
        if groups == 0 || channels % groups != 0 {
            return Err(format!("{channels} channels cannot be split into {groups} groups"));
        }
        self.vector("w", Some(w), channels)?;
        self.vector("b", Some(b), channels)?;
        self.vector("shift.channels", shift.channels, channels)?;
        if let Some(added) = shift.rows {
            self.value("shift.rows", added, &[rows, channels], REAL)?;
        }
        self.value("stats", stats, &[rows, groups, 2], F32)
    }

    fn layer_norm(&self, x: ValueId, w: ParamId, b: ParamId, stats: ValueId) -> Verdict {
        let dims = self.dims(x);
        let (channels, tokens) = (self.program.value(x).channels(), &dims[..dims.len() - 1]);
        self.vector("w", Some(w), channels)?;
        self.vector("b", Some(b), channels)?;
        self.value("stats", stats, &[tokens, &[2]].concat(), F32)
    }

    fn attention(&self, [q, k, v, y, stats]: [ValueId; 5], heads: usize, causal: bool) -> Verdict {
        self.rank("q", q, 3)?;
        self.rank("k", k, 3)?;
        let (queries, keys) = (self.dims(q), self.dims(k));
        if heads == 0 || queries[2] % heads != 0 {
            return Err(format!("{} channels cannot be split into {heads} heads", queries[2]));
        }
        if causal && queries[1] != keys[1] {
            return Err("a causal attention needs as many keys as queries".to_string());
        }
        self.like(&["q", "y"], &[q, y])?;
        self.value("k", k, &[queries[0], keys[1], queries[2]], ACTIVATION)?;
        self.like(&["k", "v"], &[k, v])?;
        self.value("stats", stats, &[queries[0], heads, queries[1]], F32)
    }

    /// `whole` has the channels of `halves` together.
    fn concat(&self, a: &[usize], b: &[usize], y: ValueId) -> Verdict {
        let rank = a.len();
        if rank != b.len() || a[..rank - 1] != b[..rank - 1] {
            return Err(format!("a {a:?} and b {b:?} differ in more than their channels"));
        }
        let dims = [&a[..rank - 1], &[a[rank - 1] + b[rank - 1]]].concat();
        self.value("y", y, &dims, ACTIVATION)
    }

    fn shapes(&self, op: &Op) -> Verdict {
        match *op {
            Op::Cast { x, y } => {
                self.value("x", x, self.dims(x), REAL)?;
                self.value("y", y, self.dims(x), REAL)
            }
            Op::Add { a, b, y } => self.like(&["a", "b", "y"], &[a, b, y]),
            Op::Linear {
                x,
                w,
                bias,
                residual,
                y,
            } => {
                self.value("x", x, self.dims(x), ACTIVATION)?;
                self.linear(self.dims(x), w, y)?;
                self.vector("bias", bias, self.program.value(y).channels())?;
                self.optional("residual", residual, self.dims(y))
            }
            Op::LinearGradX { dy, w, plus, dx } => {
                self.linear(self.dims(dx), w, dy)?;
                self.like(&["dx"], &[dx])?;
                self.optional("plus", plus, self.dims(dx))
            }
            Op::LinearGradW { dy, x, w, bias, .. } => {
                self.linear(self.dims(x), w, dy)?;
                self.vector("bias", bias, self.program.value(dy).channels())
            }
            Op::Conv {
                x,
                w,
                bias,
                residual,
                window,
                y,
            } => {
                self.value("x", x, self.dims(x), ACTIVATION)?;
                self.conv(x, w, window, y)?;
                self.vector("bias", bias, self.program.value(y).channels())?;
                self.optional("residual", residual, self.dims(y))
            }
            Op::ConvGradX {
                dy,
                w,
                window,
                plus,
                dx,
            } => {
                self.conv(dx, w, window, dy)?;
                self.like(&["dx"], &[dx])?;
                self.optional("plus", plus, self.dims(dx))
            }
            Op::ConvGradW {
                dy, x, w, bias, window, ..
            } => {
                self.conv(x, w, window, dy)?;
                self.vector("bias", bias, self.program.value(dy).channels())
            }
            Op::GroupNorm {
                x,
                shift,
                w,
                b,
                groups,
                y,
                stats,
                ..
            } => {
                self.like(&["x", "y"], &[x, y])?;
                self.group_norm(x, shift, [w, b], groups, stats)
            }
            Op::GroupNormGrad {
                dy,
                x,
                shift,
                w,
                b,
                groups,
                stats,
                plus,
                dx,
                dshift,
                ..
            } => {
                self.like(&["x", "dy", "dx"], &[x, dy, dx])?;
                self.group_norm(x, shift, [w, b], groups, stats)?;
                self.optional("plus", plus, self.dims(x))?;
                dshift.map_or(Ok(()), |dshift| {
                    self.value(
                        "dshift",
                        dshift,
                        &[self.dims(x)[0], self.program.value(x).channels()],
                        REAL,
                    )
                })
            }
            Op::LayerNorm { x, w, b, y, stats, .. } => {
                self.like(&["x", "y"], &[x, y])?;
                self.layer_norm(x, w, b, stats)
            }
            Op::LayerNormGrad {
                dy,
                x,
                w,
                b,
                stats,
                plus,
                dx,
                ..
            } => {
                self.like(&["x", "dy", "dx"], &[x, dy, dx])?;
                self.optional("plus", plus, self.dims(x))?;
                self.layer_norm(x, w, b, stats)
            }
            Op::Attention {
                q,
                k,
                v,
                heads,
                causal,
                y,
                stats,
            } => self.attention([q, k, v, y, stats], heads, causal),
            Op::AttentionGrad {
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
            } => {
                self.attention([q, k, v, y, stats], heads, causal)?;
                self.like(&["q", "dy", "dq"], &[q, dy, dq])?;
                self.like(&["k", "dk", "dv"], &[k, dk, dv])
            }
            Op::Geglu { x, y } => self.concat(self.dims(y), self.dims(y), x),
            Op::GegluGrad { dy, x, dx } => {
                self.like(&["x", "dx"], &[x, dx])?;
                self.concat(self.dims(dy), self.dims(dy), x)
            }
            Op::Activate { x, y, .. } => self.like(&["x", "y"], &[x, y]),
            Op::ActivateGrad { dy, x, plus, dx, .. } => {
                self.like(&["x", "dy", "dx"], &[x, dy, dx])?;
                self.optional("plus", plus, self.dims(x))
            }
            Op::Upsample { x, y } => self.upsample(x, y),
            Op::UpsampleGrad { dy, plus, dx } => {
                self.upsample(dx, dy)?;
                self.optional("plus", plus, self.dims(dx))
            }
            Op::Concat { a, b, y } => self.concat(self.dims(a), self.dims(b), y),
            Op::ConcatGrad { dy, da, db } => self.concat_grad(dy, da, db),
            Op::Embedding {
                ids,
                table,
                positions,
                y,
            }
            | Op::EmbeddingGrad {
                dy: y,
                ids,
                table,
                positions,
                ..
            } => self.embedding(ids, table, positions, y),
            Op::Draw {
                clock,
                steps,
                latents,
                noise,
                offsets,
                timesteps,
            } => {
                self.value("clock", clock, &[Clock::WORDS], &[Kind::Ids])?;
                if steps == 0 || steps > 1 << 24 {
                    return Err(format!("{steps} timesteps cannot be told apart in f32"));
                }
                self.chance([latents, noise], offsets, timesteps)
            }
            Op::Diffuse {
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
                velocity: _,
                noisy,
                target,
                time,
                weights,
            } => {
                self.chance([latents, noise], offsets, timesteps)?;
                let (dims, rows) = (self.dims(noise), self.dims(noise)[0]);
                for (name, id) in [("mean", mean), ("deviation", deviation), ("target", target)] {
                    self.value(name, id, dims, F32)?;
                }
                self.rank("schedule", schedule, 2)?;
                let (steps, width) = (self.dims(schedule)[0], self.program.value(times).channels());
                self.value("schedule", schedule, &[steps, 3], F32)?;
                self.value("times", times, &[steps, width], F32)?;
                self.value("shares", shares, &[rows], F32)?;
                self.value("strengths", strengths, &[2], F32)?;
                self.value("weights", weights, &[rows], F32)?;
                self.value("noisy", noisy, dims, REAL)?;
                self.value("time", time, &[rows, width], &[self.program.value(noisy).kind])
            }
            Op::Mse {
                predicted,
                target,
                weights,
                scale,
                losses,
                dpredicted,
            } => {
                let (dims, rows) = (self.dims(predicted), self.dims(predicted)[0]);
                self.value("predicted", predicted, dims, REAL)?;
                self.value("dpredicted", dpredicted, dims, &[self.program.value(predicted).kind])?;
                self.value("target", target, dims, F32)?;
                self.value("weights", weights, &[rows], F32)?;
                self.value("losses", losses, &[rows], F32)?;
                self.value("scale", scale, &[1], F32)
            }
        }
    }

    fn chance(&self, normals: [ValueId; 2], offsets: Option<ValueId>, timesteps: ValueId) -> Verdict {
        let (dims, channels) = (self.dims(normals[1]), self.program.value(normals[1]).channels());
        if dims.len() < 2 || dims[0] >= 1 << 24 {
            return Err(format!("noise {dims:?} has to have few rows of some channels"));
        }
        self.value("latents", normals[0], dims, F32)?;
        self.value("noise", normals[1], dims, F32)?;
        offsets.map_or(Ok(()), |id| self.value("offsets", id, &[dims[0], channels], F32))?;
        self.value("timesteps", timesteps, &[dims[0]], F32)
    }

    fn upsample(&self, x: ValueId, y: ValueId) -> Verdict {
        self.rank("x", x, 4)?;
        self.rank("y", y, 4)?;
        let (from, to) = (self.dims(x), self.dims(y));
        self.value("x", x, from, ACTIVATION)?;
        self.value("y", y, &[from[0], to[1], to[2], from[3]], ACTIVATION)
    }

    fn concat_grad(&self, dy: ValueId, da: Option<ValueId>, db: Option<ValueId>) -> Verdict {
        match (da, db) {
            (Some(a), Some(b)) => self.concat(self.dims(a), self.dims(b), dy),
            (Some(part), None) | (None, Some(part)) => {
                let (part, whole) = (self.dims(part), self.dims(dy));
                let rank = whole.len();
                if part.len() == rank && part[..rank - 1] == whole[..rank - 1] && part[rank - 1] < whole[rank - 1] {
                    return Ok(());
                }
                Err(format!("{part:?} cannot be a part of dy {whole:?}"))
            }
            (None, None) => Err("neither part is wanted".to_string()),
        }
    }

    fn embedding(&self, ids: ValueId, table: ParamId, positions: ParamId, y: ValueId) -> Verdict {
        self.rank("ids", ids, 2)?;
        let (dims, width) = (self.dims(ids), self.program.value(y).channels());
        self.value("ids", ids, dims, &[Kind::Ids])?;
        self.value("y", y, &[dims[0], dims[1], width], ACTIVATION)?;
        let fits = |param: &Param| matches!(param.dims[..], [_, last] if last == width);
        self.weight("table", table, fits, &format!("[vocabulary, {width}]"))?;
        let fits = |param: &Param| matches!(param.dims[..], [rows, last] if rows >= dims[1] && last == width);
        self.weight("positions", positions, fits, &format!("[{} or more, {width}]", dims[1]))
    }
}

impl Window {
    /// A side of the output for a side of the input; `None` when the window does not fit in.
    pub fn output(&self, input: usize) -> Option<usize> {
        Some((input + self.before + self.after).checked_sub(self.kernel)? / self.stride + 1)
    }
}
