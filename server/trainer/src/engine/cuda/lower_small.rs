//! Instructions that are ours alone: norms, gates, what happens to every element by itself.

use super::{
    super::{
        ir::{Op, ParamId, ValueId},
        session::Result,
    },
    call::Address,
    calls::{diffusion, embedding, group_norm, layer_norm, loss, pointwise, rearrange},
    lower::Writing,
    work::Work,
};

impl Writing<'_, '_> {
    /// Everything that is no product.
    pub(super) fn small(&mut self, op: &Op) -> Result<()> {
        let (of, element) = (self.of, self.of.element);
        match *op {
            Op::Cast { x, y } => {
                let (from, to) = (of.element_of(x), of.element_of(y));
                if from == to {
                    let bytes = of.len(x) * from.bytes();
                    self.work.push(Work::Copy {
                        from: of.at(x),
                        to: of.at(y),
                        bytes,
                    });
                } else {
                    self.calls(pointwise::cast(from, to, of.at(x), of.at(y), of.len(x)));
                }
            }
            Op::Add { a, b, y } => self.calls(pointwise::add(element, [of.at(a), of.at(b)], of.at(y), of.len(y))),
            Op::GroupNorm { .. } | Op::GroupNormGrad { .. } | Op::LayerNorm { .. } | Op::LayerNormGrad { .. } => {
                self.norm(op);
            }
            Op::Geglu { x, y } => {
                self.calls(pointwise::geglu(
                    element,
                    of.at(x),
                    of.at(y),
                    of.rows(y),
                    of.channels(y),
                ));
            }
            Op::GegluGrad { dy, x, dx } => {
                let operands = [of.at(dy), of.at(x)];
                self.calls(pointwise::geglu_grad(
                    element,
                    operands,
                    of.at(dx),
                    of.rows(dy),
                    of.channels(dy),
                ));
            }
            Op::Activate { kind, x, y } => {
                self.calls(pointwise::activate(element, kind, of.at(x), of.at(y), of.len(x)));
            }
            Op::ActivateGrad { kind, dy, x, plus, dx } => {
                let (operands, plus) = ([of.at(dy), of.at(x)], of.maybe_at(plus));
                self.calls(pointwise::activate_grad(
                    element,
                    kind,
                    operands,
                    plus,
                    of.at(dx),
                    of.len(x),
                ));
            }
            Op::Upsample { x, y } => {
                let shape = resize(of.dims(x), of.dims(y));
                self.calls(rearrange::upsample(element, &shape, of.at(x), of.at(y)));
            }
            Op::UpsampleGrad { dy, plus, dx } => {
                let shape = resize(of.dims(dx), of.dims(dy));
                self.calls(rearrange::upsample_grad(
                    element,
                    &shape,
                    of.at(dy),
                    of.maybe_at(plus),
                    of.at(dx),
                ));
            }
            Op::Concat { a, b, y } => {
                let (operands, channels) = ([of.at(a), of.at(b)], [of.channels(a), of.channels(b)]);
                self.calls(rearrange::concat(element, operands, of.at(y), of.rows(y), channels));
            }
            Op::ConcatGrad { dy, da, db } => {
                let whole = of.channels(dy);
                let of_a = match (da, db) {
                    (Some(a), _) => of.channels(a),
                    (None, Some(b)) => whole - of.channels(b),
                    (None, None) => whole,
                };
                let (results, channels) = ([of.maybe_at(da), of.maybe_at(db)], [of_a, whole - of_a]);
                self.calls(rearrange::concat_grad(
                    element,
                    of.at(dy),
                    results,
                    of.rows(dy),
                    channels,
                ));
            }
            Op::Embedding {
                ids,
                table,
                positions,
                y,
            } => {
                let shape = self.embedding(ids, y, [table, positions]);
                let tables = [table, positions].map(|id| of.store.weight_at(id));
                self.calls(embedding::embedding(element, &shape, of.at(ids), tables, of.at(y)));
            }
            Op::EmbeddingGrad {
                dy,
                ids,
                table,
                positions,
                add,
            } => {
                let shape = self.embedding(ids, dy, [table, positions]);
                let results = [table, positions].map(|id| of.gradient_at(Some(id)));
                self.calls(embedding::embedding_grad(
                    element,
                    &shape,
                    of.at(dy),
                    of.at(ids),
                    results,
                    add,
                ));
            }
            Op::Draw {
                clock,
                steps,
                latents,
                noise,
                offsets,
                timesteps,
            } => {
                let to = diffusion::Chance {
                    latents: of.at(latents),
                    noise: of.at(noise),
                    offsets: of.maybe_at(offsets),
                    timesteps: of.at(timesteps),
                };
                self.calls(diffusion::draw(&self.noise(noise), of.at(clock), &to, steps));
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
                let operands = [
                    of.at(mean),
                    of.at(deviation),
                    of.at(latents),
                    of.at(noise),
                    of.maybe_at(offsets),
                    of.at(timesteps),
                    of.at(schedule),
                    of.at(times),
                    of.at(shares),
                    of.at(strengths),
                    of.at(noisy),
                    of.at(time),
                    of.at(target),
                    of.at(weights),
                ];
                let (element, width) = (of.element_of(noisy), of.channels(time));
                self.calls(diffusion::diffuse(
                    element,
                    &self.noise(noise),
                    operands,
                    width,
                    velocity,
                ));
            }
            Op::Mse {
                predicted,
                target,
                weights,
                scale,
                losses,
                dpredicted,
            } => {
                let at = loss::Mse {
                    predicted: of.at(predicted),
                    target: of.at(target),
                    weights: of.at(weights),
                    scale: of.at(scale),
                    losses: of.at(losses),
                    dpredicted: of.at(dpredicted),
                };
                let rows = of.dims(predicted)[0];
                self.calls(loss::mse(of.element_of(predicted), &at, rows, of.len(predicted) / rows));
            }
            _ => {}
        }
        Ok(())
    }

    fn noise(&self, noise: ValueId) -> diffusion::Shape {
        let rows = self.of.dims(noise)[0];
        diffusion::Shape {
            rows,
            count: self.of.len(noise) / rows,
            channels: self.of.channels(noise),
        }
    }

    fn embedding(&self, ids: ValueId, y: ValueId, [table, positions]: [ParamId; 2]) -> embedding::Shape {
        let (of, dims) = (self.of, self.of.dims(ids));
        embedding::Shape {
            rows: dims[0],
            tokens: dims[1],
            width: of.channels(y),
            vocabulary: of.params.get(table).dims[0],
            positions: of.params.get(positions).dims[0],
        }
    }

    fn norm(&mut self, op: &Op) {
        let (of, element) = (self.of, self.of.element);
        let weight_at = |id| of.store.weight_at(id);
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
                let shape = group_shape(of.dims(x), groups);
                let at = group_norm::Forward {
                    x: of.at(x),
                    shift: group_norm::Shift {
                        rows: of.maybe_at(shift.rows),
                        channels: shift.channels.map_or(Address::NONE, weight_at),
                    },
                    w: weight_at(w),
                    b: weight_at(b),
                    y: of.at(y),
                    stats: of.at(stats),
                    workspace: self.room(group_norm::forward_workspace(element, &shape)),
                };
                self.calls(group_norm::forward(element, &shape, eps, silu, &at));
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
            } => {
                let shape = group_shape(of.dims(x), groups);
                let at = group_norm::Backward {
                    dy: of.at(dy),
                    x: of.at(x),
                    shift: group_norm::Shift {
                        rows: of.maybe_at(shift.rows),
                        channels: shift.channels.map_or(Address::NONE, weight_at),
                    },
                    w: weight_at(w),
                    b: weight_at(b),
                    stats: of.at(stats),
                    plus: of.maybe_at(plus),
                    dx: of.at(dx),
                    dw: of.gradient_at(Some(w)),
                    db: of.gradient_at(Some(b)),
                    dshift: group_norm::Shift {
                        rows: of.maybe_at(dshift),
                        channels: of.gradient_at(shift.channels),
                    },
                    workspace: self.room(group_norm::backward_workspace(element, &shape)),
                };
                self.calls(group_norm::backward(element, &shape, silu, add, &at));
            }
            Op::LayerNorm { x, w, b, eps, y, stats } => {
                let shape = layer_norm::Shape {
                    tokens: of.rows(x),
                    channels: of.channels(x),
                };
                let at = layer_norm::Forward {
                    x: of.at(x),
                    w: weight_at(w),
                    b: weight_at(b),
                    y: of.at(y),
                    stats: of.at(stats),
                };
                self.calls(layer_norm::forward(element, &shape, eps, &at));
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
            } => {
                let shape = layer_norm::Shape {
                    tokens: of.rows(x),
                    channels: of.channels(x),
                };
                let at = layer_norm::Backward {
                    dy: of.at(dy),
                    x: of.at(x),
                    w: weight_at(w),
                    stats: of.at(stats),
                    plus: of.maybe_at(plus),
                    dx: of.at(dx),
                    dw: of.gradient_at(Some(w)),
                    db: of.gradient_at(Some(b)),
                    workspace: self.room(layer_norm::backward_workspace(&shape)),
                };
                self.calls(layer_norm::backward(element, &shape, add, &at));
            }
            _ => {}
        }
    }
}

fn group_shape(dims: &[usize], groups: usize) -> group_norm::Shape {
    let last = dims.len() - 1;
    group_norm::Shape {
        rows: dims[0],
        pixels: dims[1..last].iter().product(),
        channels: dims[last],
        groups,
    }
}

/// Between maps `[rows, h, w, channels]`, which the program's check has seen to.
fn resize(from: &[usize], to: &[usize]) -> rearrange::Resize {
    rearrange::Resize {
        rows: from[0],
        from: [from[1], from[2]],
        to: [to[1], to[2]],
        channels: from[3],
    }
}
