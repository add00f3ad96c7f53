//! What an instruction touches. The planner, the verifier, `autodiff` and the backends all ask here, so that a new
//! instruction is described once.

use super::ir::{Op, ParamId, ParamTable, Shift, ValueId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// The whole value; where the same value is also read, the instruction works in place.
    Write,
}

/// All that one instruction reads and writes, in the order of its fields. A value that is updated in place is in both
/// lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    pub reads: Vec<ValueId>,
    pub writes: Vec<ValueId>,
    /// Weights whose numbers are needed.
    pub weights: Vec<ParamId>,
    /// Weights that get a gradient, provided that they are trained.
    pub gradients: Vec<ParamId>,
}

impl Operands {
    /// The weights whose gradient buffers the instruction writes.
    pub fn trained_gradients<'a>(&'a self, params: &'a ParamTable) -> impl Iterator<Item = ParamId> + 'a {
        self.gradients.iter().copied().filter(|&id| params.get(id).trained)
    }
}

pub fn operands(op: &Op) -> Operands {
    let mut found = Operands::default();
    // The visitor needs a place to change; an instruction is a few words.
    op.clone().for_each_value(&mut |access, id| match access {
        Access::Read => found.reads.push(*id),
        Access::Write => found.writes.push(*id),
    });
    (found.weights, found.gradients) = params(op);
    found
}

/// Weights read, and weights whose gradient is computed where they are trained.
fn params(op: &Op) -> (Vec<ParamId>, Vec<ParamId>) {
    let with = |first: &[ParamId], last: Option<ParamId>| first.iter().copied().chain(last).collect::<Vec<_>>();
    match *op {
        Op::Linear { w, bias, .. } | Op::Conv { w, bias, .. } => (with(&[w], bias), Vec::new()),
        Op::LinearGradX { w, .. } | Op::ConvGradX { w, .. } => (vec![w], Vec::new()),
        Op::LinearGradW { w, bias, .. } | Op::ConvGradW { w, bias, .. } => (Vec::new(), with(&[w], bias)),
        Op::GroupNorm { shift, w, b, .. } => (with(&[w, b], shift.channels), Vec::new()),
        // With SiLU the backward needs the normalised value as SiLU saw it, and so the offset too.
        Op::GroupNormGrad { shift, w, b, .. } => (with(&[w, b], shift.channels), with(&[w, b], shift.channels)),
        Op::LayerNorm { w, b, .. } => (vec![w, b], Vec::new()),
        Op::LayerNormGrad { w, b, .. } => (vec![w], vec![w, b]),
        Op::Embedding { table, positions, .. } => (vec![table, positions], Vec::new()),
        Op::EmbeddingGrad { table, positions, .. } => (Vec::new(), vec![table, positions]),
        Op::Cast { .. }
        | Op::Add { .. }
        | Op::Attention { .. }
        | Op::AttentionGrad { .. }
        | Op::Geglu { .. }
        | Op::GegluGrad { .. }
        | Op::Activate { .. }
        | Op::ActivateGrad { .. }
        | Op::Upsample { .. }
        | Op::UpsampleGrad { .. }
        | Op::Concat { .. }
        | Op::ConcatGrad { .. }
        | Op::Draw { .. }
        | Op::Diffuse { .. }
        | Op::Mse { .. } => (Vec::new(), Vec::new()),
    }
}

impl Op {
    /// Visits every value, reads before writes. `visit` may put another value in its place.
    pub fn for_each_value(&mut self, visit: &mut impl FnMut(Access, &mut ValueId)) {
        let (reads, writes) = self.values_mut();
        for id in reads {
            visit(Access::Read, id);
        }
        for id in writes {
            visit(Access::Write, id);
        }
    }

    fn values_mut(&mut self) -> (Vec<&mut ValueId>, Vec<&mut ValueId>) {
        match self {
            Self::Cast { x, y }
            | Self::Geglu { x, y }
            | Self::Activate { x, y, .. }
            | Self::Upsample { x, y }
            | Self::Embedding { ids: x, y, .. } => (vec![x], vec![y]),
            Self::Add { a, b, y } | Self::Concat { a, b, y } => (vec![a, b], vec![y]),
            Self::Linear { x, residual, y, .. } | Self::Conv { x, residual, y, .. } => {
                (std::iter::once(x).chain(residual).collect(), vec![y])
            }
            Self::LinearGradX { dy, plus, dx, .. }
            | Self::ConvGradX { dy, plus, dx, .. }
            | Self::UpsampleGrad { dy, plus, dx } => (std::iter::once(dy).chain(plus).collect(), vec![dx]),
            Self::LinearGradW { dy, x, .. } | Self::ConvGradW { dy, x, .. } => (vec![dy, x], Vec::new()),
            Self::GroupNorm { x, shift, y, stats, .. } => {
                let Shift { rows, channels: _ } = shift;
                (std::iter::once(x).chain(rows).collect(), vec![y, stats])
            }
            Self::GroupNormGrad {
                dy,
                x,
                shift,
                stats,
                plus,
                dx,
                dshift,
                ..
            } => (
                [dy, x]
                    .into_iter()
                    .chain(&mut shift.rows)
                    .chain([stats])
                    .chain(plus)
                    .collect(),
                std::iter::once(dx).chain(dshift).collect(),
            ),
            Self::LayerNorm { x, y, stats, .. } => (vec![x], vec![y, stats]),
            Self::LayerNormGrad {
                dy, x, stats, plus, dx, ..
            } => ([dy, x, stats].into_iter().chain(plus).collect(), vec![dx]),
            Self::Attention { q, k, v, y, stats, .. } => (vec![q, k, v], vec![y, stats]),
            Self::AttentionGrad {
                dy,
                q,
                k,
                v,
                y,
                stats,
                dq,
                dk,
                dv,
                ..
            } => (vec![dy, q, k, v, y, stats], vec![dq, dk, dv]),
            Self::GegluGrad { dy, x, dx } => (vec![dy, x], vec![dx]),
            Self::ActivateGrad { dy, x, plus, dx, .. } => ([dy, x].into_iter().chain(plus).collect(), vec![dx]),
            Self::ConcatGrad { dy, da, db } => (vec![dy], da.iter_mut().chain(db).collect()),
            Self::EmbeddingGrad { dy, ids, .. } => (vec![dy, ids], Vec::new()),
            Self::Draw {
                clock,
                steps: _,
                latents,
                noise,
                offsets,
                timesteps,
            } => (
                vec![clock],
                [latents, noise].into_iter().chain(offsets).chain([timesteps]).collect(),
            ),
            Self::Diffuse {
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
            } => (
                [mean, deviation, latents, noise]
                    .into_iter()
                    .chain(offsets)
                    .chain([timesteps, schedule, times, shares, strengths])
                    .collect(),
                vec![noisy, target, time, weights],
            ),
            Self::Mse {
                predicted,
                target,
                weights,
                scale,
                losses,
                dpredicted,
            } => (vec![predicted, target, weights, scale], vec![losses, dpredicted]),
        }
    }

    /// As error messages name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cast { .. } => "Cast",
            Self::Add { .. } => "Add",
            Self::Linear { .. } => "Linear",
            Self::LinearGradX { .. } => "LinearGradX",
            Self::LinearGradW { .. } => "LinearGradW",
            Self::Conv { .. } => "Conv",
            Self::ConvGradX { .. } => "ConvGradX",
            Self::ConvGradW { .. } => "ConvGradW",
            Self::GroupNorm { .. } => "GroupNorm",
            Self::GroupNormGrad { .. } => "GroupNormGrad",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::LayerNormGrad { .. } => "LayerNormGrad",
            Self::Attention { .. } => "Attention",
            Self::AttentionGrad { .. } => "AttentionGrad",
            Self::Geglu { .. } => "Geglu",
            Self::GegluGrad { .. } => "GegluGrad",
            Self::Activate { .. } => "Activate",
            Self::ActivateGrad { .. } => "ActivateGrad",
            Self::Upsample { .. } => "Upsample",
            Self::UpsampleGrad { .. } => "UpsampleGrad",
            Self::Concat { .. } => "Concat",
            Self::ConcatGrad { .. } => "ConcatGrad",
            Self::Embedding { .. } => "Embedding",
            Self::EmbeddingGrad { .. } => "EmbeddingGrad",
            Self::Draw { .. } => "Draw",
            Self::Diffuse { .. } => "Diffuse",
            Self::Mse { .. } => "Mse",
        }
    }
}
