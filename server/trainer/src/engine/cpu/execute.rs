//! One instruction: finds the slices that its kernel works on.

use super::{
    super::{
        ir::{Op, ParamId, ParamTable, Program, Shift, ValueId},
        philox::Clock,
        plan::Places,
        session::{EngineError, Result},
    },
    attention, conv,
    diffusion::{self, Diffused, Diffusion},
    embedding, gates,
    group_norm::{self, GroupNorm},
    kernel::{Onto, Plus, Write},
    layer_norm, linear,
    loss::{self, Mse},
    memory::Lease,
    resample,
};

use crate::noise::Purpose;

/// What an instruction sees.
pub(super) struct Step<'a> {
    pub program: &'a Program,
    pub places: &'a Places,
    /// Of this instruction alone.
    pub lease: Lease<'a>,
    pub params: &'a ParamTable,
    pub weights: &'a [Vec<f32>],
    /// Empty for weights that are not trained.
    pub gradients: &'a mut [Vec<f32>],
}

impl<'a> Step<'a> {
    fn dims(&self, id: ValueId) -> &'a [usize] {
        &self.program.value(id).dims
    }

    fn channels(&self, id: ValueId) -> usize {
        self.program.value(id).channels()
    }

    fn read(&self, id: ValueId) -> &'a [f32] {
        self.lease.read(self.places.of(id))
    }

    fn write(&self, id: ValueId) -> &'a mut [f32] {
        self.lease.write(self.places.of(id))
    }

    /// What is added to `result`, which may be the same value.
    fn plus(&self, plus: Option<ValueId>, result: ValueId) -> Plus<'a> {
        match plus {
            None => Plus::Nothing,
            Some(plus) if self.program.root(plus) == self.program.root(result) => Plus::Itself,
            Some(plus) => Plus::Values(self.read(plus)),
        }
    }

    fn weight(&self, id: ParamId) -> &'a [f32] {
        &self.weights[id.0 as usize]
    }

    fn onto(&self, bias: Option<ParamId>, residual: Option<ValueId>, y: ValueId) -> Onto<'a> {
        Onto {
            bias: bias.map(|bias| self.weight(bias)),
            plus: self.plus(residual, y),
        }
    }

    /// Lends the gradients of those weights that are trained.
    fn with_gradients<const N: usize>(
        &mut self,
        ids: [Option<ParamId>; N],
        work: impl FnOnce(&Self, [Option<&mut [f32]>; N]),
    ) {
        let params = self.params;
        let ids = ids.map(|id| id.filter(|&id| params.get(id).trained));
        let mut taken = ids.map(|id| id.map(|id| std::mem::take(&mut self.gradients[id.0 as usize])));
        work(self, taken.each_mut().map(Option::as_deref_mut));
        for (id, gradient) in ids.into_iter().zip(taken) {
            if let (Some(id), Some(gradient)) = (id, gradient) {
                self.gradients[id.0 as usize] = gradient;
            }
        }
    }

    /// # Errors
    /// When a token is not in the vocabulary; all else was verified with the program.
    pub fn execute(mut self, op: &Op) -> Result<()> {
        match *op {
            Op::Cast { x, y } => gates::copy(self.write(y), self.read(x)),
            Op::Add { a, b, y } => {
                // In place in either.
                let (plus, x) = if self.program.root(b) == self.program.root(y) {
                    (b, a)
                } else {
                    (a, b)
                };
                let (plus, y) = (self.plus(Some(plus), y), self.write(y));
                match plus {
                    Plus::Itself if self.program.root(a) == self.program.root(b) => {
                        y.iter_mut().for_each(|y| *y += *y);
                    }
                    plus => gates::add(y, plus, self.read(x)),
                }
            }
            Op::Linear {
                x,
                w,
                bias,
                residual,
                y,
            } => {
                let (outputs, onto) = (self.channels(y), self.onto(bias, residual, y));
                linear::forward(self.write(y), self.read(x), self.weight(w), outputs, onto);
            }
            Op::LinearGradX { dy, w, plus, dx } => {
                let (outputs, plus) = (self.channels(dy), self.plus(plus, dx));
                linear::grad_x(self.write(dx), self.read(dy), self.weight(w), outputs, plus);
            }
            Op::LinearGradW { dy, x, w, bias, add } => self.with_gradients([Some(w), bias], |step, [dw, dbias]| {
                let channels = (step.channels(x), step.channels(dy));
                linear::grad_w(dw, dbias, step.read(dy), step.read(x), channels, add.into());
            }),
            Op::Conv {
                x,
                w,
                bias,
                residual,
                window,
                y,
            } => {
                let sizes = conv::Sizes::of(self.dims(x), self.dims(y), window);
                let onto = self.onto(bias, residual, y);
                conv::forward(self.write(y), self.read(x), self.weight(w), onto, sizes);
            }
            Op::ConvGradX {
                dy,
                w,
                window,
                plus,
                dx,
            } => {
                let sizes = conv::Sizes::of(self.dims(dx), self.dims(dy), window);
                let plus = self.plus(plus, dx);
                conv::grad_x(self.write(dx), self.read(dy), self.weight(w), plus, sizes);
            }
            Op::ConvGradW {
                dy,
                x,
                w,
                bias,
                window,
                add,
            } => self.with_gradients([Some(w), bias], |step, [dw, dbias]| {
                let sizes = conv::Sizes::of(step.dims(x), step.dims(dy), window);
                conv::grad_w(dw, dbias, step.read(dy), step.read(x), add.into(), sizes);
            }),
            Op::GroupNorm { .. } | Op::GroupNormGrad { .. } | Op::LayerNorm { .. } | Op::LayerNormGrad { .. } => {
                self.norm(op);
            }
            Op::Attention { .. } | Op::AttentionGrad { .. } => self.attention(op),
            Op::Geglu { x, y } => gates::geglu(self.write(y), self.read(x), self.channels(y)),
            Op::GegluGrad { dy, x, dx } => {
                gates::geglu_grad(self.write(dx), self.read(dy), self.read(x), self.channels(dy));
            }
            Op::Activate { kind, x, y } => gates::activate(kind, self.write(y), self.read(x)),
            Op::ActivateGrad { kind, dy, x, plus, dx } => {
                let plus = self.plus(plus, dx);
                gates::activate_grad(kind, self.write(dx), self.read(dy), self.read(x), plus);
            }
            Op::Upsample { x, y } => {
                let sizes = resample::Sizes::of(self.dims(x), self.dims(y));
                resample::upsample(self.write(y), self.read(x), sizes);
            }
            Op::UpsampleGrad { dy, plus, dx } => {
                let sizes = resample::Sizes::of(self.dims(dx), self.dims(dy));
                let plus = self.plus(plus, dx);
                resample::upsample_grad(self.write(dx), self.read(dy), plus, sizes);
            }
            Op::Concat { a, b, y } => {
                let channels = (self.channels(a), self.channels(b));
                resample::concat(self.write(y), self.read(a), self.read(b), channels);
            }
            Op::ConcatGrad { dy, da, db } => {
                let (values, all) = (self.read(dy), self.channels(dy));
                if let Some(da) = da {
                    resample::concat_grad(self.write(da), values, 0, (self.channels(da), all));
                }
                if let Some(db) = db {
                    let channels = self.channels(db);
                    resample::concat_grad(self.write(db), values, all - channels, (channels, all));
                }
            }
            Op::Embedding {
                ids,
                table,
                positions,
                y,
            } => {
                let sizes = (self.dims(ids)[1], self.channels(y));
                let (values, names) = (self.lease.ids(self.places.of(ids)), self.params.get(table));
                let (rows, positions) = (self.weight(table), self.weight(positions));
                embedding::forward(self.write(y), values, rows, positions, sizes).map_err(|id| {
                    EngineError::Device {
                        what: format!("the token {id} cannot be looked up"),
                        why: format!("`{}` has {} rows", names.name, names.dims[0]),
                    }
                })?;
            }
            Op::EmbeddingGrad {
                dy,
                ids,
                table,
                positions,
                add,
            } => self.with_gradients([Some(table), Some(positions)], |step, [dtable, dpositions]| {
                let sizes = (step.dims(ids)[1], step.channels(dy));
                let ids = step.lease.ids(step.places.of(ids));
                embedding::backward(dtable, dpositions, step.read(dy), ids, sizes, add.into());
            }),
            Op::Draw { .. } | Op::Diffuse { .. } => self.chance(op),
            Op::Mse {
                predicted,
                target,
                weights,
                scale,
                losses,
                dpredicted,
            } => {
                let of = Mse {
                    predicted: self.read(predicted),
                    target: self.read(target),
                    weights: self.read(weights),
                    scale: self.read(scale)[0],
                };
                loss::mse(self.write(losses), self.write(dpredicted), of);
            }
        }
        Ok(())
    }

    fn group_norm(&self, x: ValueId, shift: Shift, w: ParamId, b: ParamId, groups: usize, silu: bool) -> GroupNorm<'a> {
        GroupNorm {
            x: self.read(x),
            shift_rows: shift.rows.map(|rows| self.read(rows)),
            shift_channels: shift.channels.map(|channels| self.weight(channels)),
            w: self.weight(w),
            b: self.weight(b),
            rows: self.dims(x)[0],
            groups,
            silu,
        }
    }

    fn norm(&mut self, op: &Op) {
        match *op {
            Op::GroupNorm {
                x,
                shift,
                w,
                b,
                groups,
                eps,
                silu,
                y,
                stats,
            } => {
                let norm = self.group_norm(x, shift, w, b, groups, silu);
                group_norm::forward(self.write(y), self.write(stats), norm, eps);
            }
            Op::GroupNormGrad {
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
            } => self.with_gradients([Some(w), Some(b), shift.channels], |step, [dw, db, dshift_channels]| {
                let plus = step.plus(plus, dx);
                let out = group_norm::Gradients {
                    dx: step.write(dx),
                    dshift: dshift.map(|dshift| step.write(dshift)),
                    dw,
                    db,
                    dshift_channels,
                    write: Write::from(add),
                };
                let norm = step.group_norm(x, shift, w, b, groups, silu);
                group_norm::backward(out, step.read(dy), norm, step.read(stats), plus);
            }),
            Op::LayerNorm { x, w, b, eps, y, stats } => {
                let (w, b) = (self.weight(w), self.weight(b));
                layer_norm::forward(self.write(y), self.write(stats), self.read(x), w, b, eps);
            }
            Op::LayerNormGrad {
                dy,
                x,
                w,
                b,
                stats,
                plus,
                dx,
                add,
            } => self.with_gradients([Some(w), Some(b)], |step, [dw, db]| {
                let plus = step.plus(plus, dx);
                let out = layer_norm::Gradients {
                    dx: step.write(dx),
                    dw,
                    db,
                    write: Write::from(add),
                };
                let (dy, x, stats) = (step.read(dy), step.read(x), step.read(stats));
                layer_norm::backward(out, dy, x, step.weight(w), stats, plus);
            }),
            _ => {}
        }
    }

    fn chance(&self, op: &Op) {
        match *op {
            Op::Draw {
                clock,
                steps,
                latents,
                noise,
                offsets,
                timesteps,
            } => {
                let words = self.lease.ids(self.places.of(clock));
                let clock = Clock::of_words([words[0], words[1], words[2], words[3]]);
                let rows = self.dims(noise)[0];
                diffusion::normals(self.write(latents), clock, Purpose::Latents, rows);
                diffusion::normals(self.write(noise), clock, Purpose::Noise, rows);
                if let Some(offsets) = offsets {
                    diffusion::normals(self.write(offsets), clock, Purpose::OffsetNoise, rows);
                }
                diffusion::timesteps(self.write(timesteps), clock, steps);
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
                velocity,
                noisy,
                target,
                time,
                weights,
            } => {
                let of = Diffusion {
                    mean: self.read(mean),
                    deviation: self.read(deviation),
                    latents: self.read(latents),
                    noise: self.read(noise),
                    offsets: offsets.map(|offsets| self.read(offsets)),
                    timesteps: self.read(timesteps),
                    schedule: self.read(schedule),
                    times: self.read(times),
                    shares: self.read(shares),
                    strengths: self.read(strengths),
                    velocity,
                };
                let out = Diffused {
                    noisy: self.write(noisy),
                    target: self.write(target),
                    time: self.write(time),
                    weights: self.write(weights),
                };
                diffusion::diffuse(out, of, self.channels(noise));
            }
            _ => {}
        }
    }

    fn attention_sizes(&self, q: ValueId, k: ValueId, heads: usize, causal: bool) -> attention::Sizes {
        let (dims, keys) = (self.dims(q), self.dims(k)[1]);
        attention::Sizes {
            rows: dims[0],
            queries: dims[1],
            keys,
            heads,
            d: dims[2] / heads,
            causal,
        }
    }

    fn attention(&self, op: &Op) {
        match *op {
            Op::Attention {
                q,
                k,
                v,
                heads,
                causal,
                y,
                stats,
            } => {
                let sizes = self.attention_sizes(q, k, heads, causal);
                let (y, stats) = (self.write(y), self.write(stats));
                attention::forward(y, stats, self.read(q), self.read(k), self.read(v), sizes);
            }
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
                let sizes = self.attention_sizes(q, k, heads, causal);
                let saved = attention::Saved {
                    dy: self.read(dy),
                    q: self.read(q),
                    k: self.read(k),
                    v: self.read(v),
                    y: self.read(y),
                    stats: self.read(stats),
                };
                attention::backward(self.write(dq), self.write(dk), self.write(dv), saved, sizes);
            }
            _ => {}
        }
    }
}
