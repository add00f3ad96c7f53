//! Writes the backward of a program behind its forward: reverse mode, instruction by instruction.
//!
//! A gradient that has several contributions is summed where it lies, through the `plus` of the instruction that
//! computes the next one; nothing is ever filled with zeros. A gradient may stand for several values at once: the
//! gradient of `x + f(x)` is that of `x` and of `f(x)`. So each has a count of the values it is pending for, and is
//! only changed in place while it is pending for one.
//!
//! Results of light instructions that are large beside what computes them are not kept for the backward: see `light`.

mod light;
mod recompute;

use std::collections::{BTreeMap, BTreeSet};

use super::builder::Forward;
use super::ir::{Op, ParamId, ParamTable, Program, ValueId};
use super::operands::operands;
pub use light::LARGE_NORM;

#[derive(Debug, thiserror::Error)]
pub enum AutodiffError {
    #[error("{count} trained weights get no gradient, the first is `{first}`", count = names.len(), first = names[0])]
    NoGradient { names: Vec<String> },
    #[error("the trained weight `{name}` is used twice, once together with another one")]
    SharedInPart { name: String },
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a> {
    /// All gradients of weights are added to what their buffers hold: for all but the first micro-batch of an update.
    pub accumulate: bool,
    /// Inner values of segments are computed again instead of kept.
    pub recompute: bool,
    /// So are results of layer norms from so many elements on: [`LARGE_NORM`] where memory counts.
    pub light_norms: usize,
    /// Values whose gradients become outputs of the given names.
    pub wanted: &'a [(&'a str, ValueId)],
}

/// `seeds`: values of the forward, each with the value that holds its gradient.
///
/// # Errors
/// When a trained weight of `params` gets no gradient.
pub fn backward(
    forward: Forward,
    params: &ParamTable,
    seeds: &[(ValueId, ValueId)],
    options: Backward,
) -> Result<Program, AutodiffError> {
    let Forward { mut program, segments } = forward;
    let code = std::mem::take(&mut program.code);
    let needs = needs_gradient(&program, &code, params, options.wanted);
    let mut reverse = Reverse {
        params,
        program,
        needs,
        accumulate: options.accumulate,
        code: Vec::new(),
        pending: BTreeMap::new(),
        holders: BTreeMap::new(),
        written: BTreeSet::new(),
        light: BTreeMap::new(),
        again: BTreeMap::new(),
    };
    reverse.find_light(&code, options.light_norms);
    // What the host writes or reads is not ours to change.
    let kept: Vec<ValueId> = (reverse.program.inputs.values().chain(reverse.program.outputs.values()))
        .copied()
        .collect();
    for id in kept {
        reverse.hold(id);
    }
    for &(value, gradient) in seeds {
        reverse.contribute(value, gradient);
    }
    let mut end = code.len();
    for segment in segments.iter().rev().filter(|_| options.recompute) {
        reverse.all(&code[segment.end..end])?;
        reverse.segment(&code, segment, seeds)?;
        end = segment.start;
    }
    reverse.all(&code[..end])?;
    reverse.finish(code, options.wanted)
}

/// By root: whether anything trained or wanted goes into a value.
fn needs_gradient(program: &Program, code: &[Op], params: &ParamTable, wanted: &[(&str, ValueId)]) -> Vec<bool> {
    let mut needs = vec![false; program.values.len()];
    let at = |id: ValueId| program.root(id).0 as usize;
    for &(_, id) in wanted {
        needs[at(id)] = true;
    }
    for op in code.iter().filter(|op| !matches!(op, Op::Mse { .. })) {
        let touched = operands(op);
        let moved =
            touched.reads.iter().any(|&id| needs[at(id)]) || touched.weights.iter().any(|&id| params.get(id).trained);
        for id in touched.writes {
            needs[at(id)] |= moved;
        }
    }
    needs
}

struct Reverse<'a> {
    params: &'a ParamTable,
    program: Program,
    needs: Vec<bool>,
    accumulate: bool,
    /// The backward so far.
    code: Vec<Op>,
    /// Value (root) to the gradient (root) that is collected for it.
    pending: BTreeMap<ValueId, ValueId>,
    /// How many values a gradient stands for; one that the host sees counts once more.
    holders: BTreeMap<ValueId, usize>,
    /// Weights whose gradient has its first contribution.
    written: BTreeSet<ParamId>,
    /// By result (root): what computes it, where that is light.
    light: BTreeMap<ValueId, Op>,
    /// Those results (roots) as they are computed again.
    again: BTreeMap<ValueId, ValueId>,
}

impl Reverse<'_> {
    fn all(&mut self, code: &[Op]) -> Result<(), AutodiffError> {
        code.iter().rev().try_for_each(|op| self.reverse(op))
    }

    fn needs(&self, id: ValueId) -> bool {
        self.needs[self.program.root(id).0 as usize]
    }

    fn trained(&self, id: Option<ParamId>) -> Option<ParamId> {
        id.filter(|&id| self.params.get(id).trained)
    }

    fn hold(&mut self, id: ValueId) {
        *self.holders.entry(self.program.root(id)).or_insert(0) += 1;
    }

    fn release(&mut self, id: ValueId) {
        if let Some(count) = self.holders.get_mut(&self.program.root(id)) {
            *count -= 1;
        }
    }

    fn held(&self, id: ValueId) -> usize {
        self.holders.get(&self.program.root(id)).copied().unwrap_or(0)
    }

    /// A buffer for the gradient of `of`.
    fn like(&mut self, of: ValueId) -> ValueId {
        let value = self.program.value(of);
        let (dims, kind) = (value.dims.clone(), value.kind);
        self.program.push_value(dims, kind)
    }

    fn as_dims_of(&mut self, id: ValueId, of: ValueId) -> ValueId {
        let dims = self.program.value(of).dims.clone();
        self.program.view(id, &dims)
    }

    /// The complete gradient of `y`; `None` when nothing that is trained or wanted hangs on it. It stays held for `y`
    /// until [`Self::release`], so that the instructions that read it do not write over it.
    fn take(&mut self, y: ValueId) -> Option<ValueId> {
        let gradient = self.pending.remove(&self.program.root(y))?;
        Some(self.as_dims_of(gradient, y))
    }

    /// Adds `gradient` to what is collected for `to`.
    fn contribute(&mut self, to: ValueId, gradient: ValueId) {
        if !self.needs(to) {
            return;
        }
        let root = self.program.root(to);
        let sum = match self.pending.get(&root).copied() {
            None => gradient,
            Some(before) => {
                let (before, gradient) = (self.as_dims_of(before, to), self.as_dims_of(gradient, to));
                let (a, b, y) = if self.held(before) == 1 {
                    (before, gradient, before)
                } else if self.held(gradient) == 0 {
                    (gradient, before, gradient)
                } else {
                    (before, gradient, self.like(to))
                };
                self.code.push(Op::Add { a, b, y });
                self.release(before);
                y
            }
        };
        self.hold(sum);
        let sum = self.program.root(sum);
        self.pending.insert(root, sum);
    }

    /// The gradient of `x` by an instruction that can add: `write(plus, dx)`.
    fn contribute_by(&mut self, x: ValueId, write: impl FnOnce(Option<ValueId>, ValueId) -> Op) {
        let root = self.program.root(x);
        let before = self
            .pending
            .get(&root)
            .copied()
            .map(|before| self.as_dims_of(before, x));
        let dx = match before {
            Some(before) if self.held(before) == 1 => before,
            _ => self.like(x),
        };
        self.code.push(write(before, dx));
        self.hold(dx);
        if let Some(before) = before {
            self.release(before);
        }
        let dx = self.program.root(dx);
        self.pending.insert(root, dx);
    }

    /// [`Self::contribute_by`] for instructions that cannot but compute `dx`.
    fn contribute_anyway(&mut self, x: ValueId, write: impl FnOnce(Option<ValueId>, ValueId) -> Op) {
        if self.needs(x) {
            self.contribute_by(x, write);
        } else {
            let unused = self.like(x);
            self.code.push(write(None, unused));
        }
    }

    /// Whether an instruction adds to the gradients of `ids` or writes their first contribution.
    fn adds(&mut self, ids: impl IntoIterator<Item = Option<ParamId>>) -> Result<bool, AutodiffError> {
        let ids: Vec<ParamId> = ids.into_iter().filter_map(|id| self.trained(id)).collect();
        let again: Vec<bool> = ids.iter().map(|&id| !self.written.insert(id)).collect();
        if let Some(odd) = again.iter().position(|&again_too| again_too != again[0]) {
            let name = self.params.get(ids[odd]).name.clone();
            return Err(AutodiffError::SharedInPart { name });
        }
        Ok(self.accumulate || again.first().is_some_and(|&again| again))
    }

    fn reverse(&mut self, op: &Op) -> Result<(), AutodiffError> {
        let Some(dy) = result(op).and_then(|y| self.take(y)) else {
            return Ok(());
        };
        let mut handed_on = [None, None];
        match *op {
            Op::Cast { x, .. } => {
                let dx = self.like(x);
                self.code.push(Op::Cast { x: dy, y: dx });
                self.contribute(x, dx);
            }
            Op::Add { a, b, .. } => handed_on = [Some(a), Some(b)],
            // Gradients of weights come first: their `x` is then free when `dx` needs a place.
            Op::Linear {
                x, w, bias, residual, ..
            } => {
                let bias = self.trained(bias);
                if self.trained(Some(w)).or(bias).is_some() {
                    let add = self.adds([Some(w), bias])?;
                    let x = self.again(x);
                    self.code.push(Op::LinearGradW { dy, x, w, bias, add });
                }
                if self.needs(x) {
                    self.contribute_by(x, |plus, dx| Op::LinearGradX { dy, w, plus, dx });
                }
                handed_on = [residual, None];
            }
            Op::Conv {
                x,
                w,
                bias,
                residual,
                window,
                ..
            } => {
                let bias = self.trained(bias);
                if self.trained(Some(w)).or(bias).is_some() {
                    let add = self.adds([Some(w), bias])?;
                    let x = self.again(x);
                    self.code.push(Op::ConvGradW {
                        dy,
                        x,
                        w,
                        bias,
                        window,
                        add,
                    });
                }
                if self.needs(x) {
                    self.contribute_by(x, |plus, dx| Op::ConvGradX {
                        dy,
                        w,
                        window,
                        plus,
                        dx,
                    });
                }
                handed_on = [residual, None];
            }
            Op::GroupNorm { .. } | Op::LayerNorm { .. } => self.reverse_norm(op, dy)?,
            Op::Attention {
                q,
                k,
                v,
                heads,
                causal,
                y,
                stats,
            } => {
                let [dq, dk, dv] = [q, k, v].map(|id| self.like(id));
                self.code.push(Op::AttentionGrad {
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
                for (to, gradient) in [(q, dq), (k, dk), (v, dv)] {
                    self.contribute(to, gradient);
                }
            }
            Op::Geglu { x, .. } => {
                let dx = self.like(x);
                self.code.push(Op::GegluGrad { dy, x, dx });
                self.contribute(x, dx);
            }
            Op::Activate { kind, x, .. } => {
                self.contribute_by(x, |plus, dx| Op::ActivateGrad { kind, dy, x, plus, dx });
            }
            Op::Upsample { x, .. } => self.contribute_by(x, |plus, dx| Op::UpsampleGrad { dy, plus, dx }),
            Op::Concat { a, b, .. } => {
                let [da, db] = [a, b].map(|id| self.needs(id).then(|| self.like(id)));
                self.code.push(Op::ConcatGrad { dy, da, db });
                for (to, gradient) in [(a, da), (b, db)] {
                    if let Some(gradient) = gradient {
                        self.contribute(to, gradient);
                    }
                }
            }
            Op::Embedding {
                ids, table, positions, ..
            } => {
                let add = self.adds([Some(table), Some(positions)])?;
                self.code.push(Op::EmbeddingGrad {
                    dy,
                    ids,
                    table,
                    positions,
                    add,
                });
            }
            _ => {}
        }
        self.release(dy);
        for to in handed_on.into_iter().flatten() {
            self.contribute(to, dy);
        }
        Ok(())
    }

    fn reverse_norm(&mut self, op: &Op, dy: ValueId) -> Result<(), AutodiffError> {
        match *op {
            Op::GroupNorm {
                x,
                shift,
                w,
                b,
                groups,
                silu,
                stats,
                ..
            } => {
                let add = self.adds([Some(w), Some(b), shift.channels])?;
                let rows = shift.rows.filter(|&rows| self.needs(rows));
                let dshift = rows.map(|rows| self.like(rows));
                self.contribute_anyway(x, |plus, dx| Op::GroupNormGrad {
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
                if let (Some(rows), Some(dshift)) = (rows, dshift) {
                    self.contribute(rows, dshift);
                }
            }
            Op::LayerNorm { x, w, b, stats, .. } => {
                let add = self.adds([Some(w), Some(b)])?;
                self.contribute_anyway(x, |plus, dx| Op::LayerNormGrad {
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
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self, mut code: Vec<Op>, wanted: &[(&str, ValueId)]) -> Result<Program, AutodiffError> {
        let trained = (self.params.params.iter().zip(0..)).filter(|(param, _)| param.trained);
        let names: Vec<String> = (trained.filter(|(_, id)| !self.written.contains(&ParamId(*id))))
            .map(|(param, _)| param.name.clone())
            .collect();
        if !names.is_empty() {
            return Err(AutodiffError::NoGradient { names });
        }
        for &(name, id) in wanted {
            if let Some(gradient) = self.take(id) {
                self.program.outputs.insert(name.to_string(), gradient);
            }
        }
        code.append(&mut self.code);
        self.program.code = code;
        Ok(self.program)
    }
}

/// What an instruction of a forward is for; its statistics are by the way.
fn result(op: &Op) -> Option<ValueId> {
    match *op {
        Op::Cast { y, .. }
        | Op::Add { y, .. }
        | Op::Linear { y, .. }
        | Op::Conv { y, .. }
        | Op::GroupNorm { y, .. }
        | Op::LayerNorm { y, .. }
        | Op::Attention { y, .. }
        | Op::Geglu { y, .. }
        | Op::Activate { y, .. }
        | Op::Upsample { y, .. }
        | Op::Concat { y, .. }
        | Op::Embedding { y, .. } => Some(y),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
