//! What every instruction means, in plain f64 loops: the oracle that backends are tested against, slow and obvious.
//!
//! It is part of the product because the GPU build checks itself on the card it runs on (`selftest`).

mod attention;
mod dense;
mod diffusion;
mod norms;
mod pointwise;

use std::collections::BTreeMap;

use super::ir::{Op, ParamId, ParamTable, Program, ValueId};
use super::session::{EngineError, Result};
use super::verify::verify;

/// Weights and their gradients; ids in programs' values are kept as whole numbers.
pub struct Reference {
    params: ParamTable,
    pub weights: Vec<Vec<f64>>,
    /// NaN until an instruction writes them, so that `+=` where `=` was due is seen.
    pub gradients: Vec<Vec<f64>>,
}

/// The values of a program, by root; NaN until written.
pub struct Values<'a> {
    program: &'a Program,
    buffers: Vec<Vec<f64>>,
}

impl<'a> Values<'a> {
    pub fn new(program: &'a Program) -> Self {
        let buffer = |value: &super::ir::Value| match value.view_of {
            Some(_) => Vec::new(),
            None => vec![f64::NAN; value.len()],
        };
        Self {
            program,
            buffers: program.values.iter().map(buffer).collect(),
        }
    }

    pub fn get(&self, id: ValueId) -> &[f64] {
        &self.buffers[self.program.root(id).0 as usize]
    }

    pub fn set(&mut self, id: ValueId, values: Vec<f64>) {
        self.buffers[self.program.root(id).0 as usize] = values;
    }

    /// An output by name; `None` when the program has none of it.
    pub fn output(&self, name: &str) -> Option<&[f64]> {
        self.program.outputs.get(name).map(|&id| self.get(id))
    }

    fn dims(&self, id: ValueId) -> &'a [usize] {
        &self.program.value(id).dims
    }

    /// Stores `values`, and before that adds what `plus` names.
    fn set_plus(&mut self, id: ValueId, mut values: Vec<f64>, plus: Option<ValueId>) {
        if let Some(plus) = plus {
            add_to(&mut values, self.get(plus));
        }
        self.set(id, values);
    }
}

fn add_to(sum: &mut [f64], other: &[f64]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

impl Reference {
    /// `weights`: by id, in the engine's layout.
    ///
    /// # Errors
    /// When a weight has another length than its shape.
    pub fn new(params: &ParamTable, weights: Vec<Vec<f64>>) -> Result<Self> {
        for (param, values) in params.params.iter().zip(&weights) {
            check_length(&param.name, param.len(), values.len())?;
        }
        Ok(Self {
            gradients: params.params.iter().map(|param| vec![f64::NAN; param.len()]).collect(),
            params: params.clone(),
            weights,
        })
    }

    /// Runs all instructions on `inputs`.
    ///
    /// # Errors
    /// When the program does not verify, or an input is missing or has another length.
    pub fn run<'a>(&mut self, program: &'a Program, inputs: &BTreeMap<String, Vec<f64>>) -> Result<Values<'a>> {
        verify(program, &self.params)?;
        let mut values = Values::new(program);
        for (name, &id) in &program.inputs {
            let given = (inputs.get(name)).ok_or_else(|| EngineError::NoSuchValue(name.clone()))?;
            check_length(name, program.value(id).len(), given.len())?;
            values.set(id, given.clone());
        }
        for op in &program.code {
            self.execute(op, &mut values);
        }
        Ok(values)
    }

    fn weight(&self, id: ParamId) -> &[f64] {
        &self.weights[id.0 as usize]
    }

    fn gradient(&mut self, id: ParamId, values: Vec<f64>, add: bool) {
        if !self.params.get(id).trained {
            return;
        }
        let gradient = &mut self.gradients[id.0 as usize];
        if add {
            add_to(gradient, &values);
        } else {
            *gradient = values;
        }
    }

    /// One instruction of a program that was verified.
    pub fn execute(&mut self, op: &Op, values: &mut Values) {
        match *op {
            Op::Cast { x, y } => values.set(y, values.get(x).to_vec()),
            Op::Add { a, b, y } => values.set_plus(y, values.get(a).to_vec(), Some(b)),
            Op::Linear {
                x,
                w,
                bias,
                residual,
                y,
            } => {
                let (inputs, outputs) = (channels(values, x), channels(values, y));
                let mut result = dense::linear(values.get(x), self.weight(w), inputs, outputs);
                if let Some(bias) = bias {
                    pointwise::add_channels(&mut result, self.weight(bias));
                }
                values.set_plus(y, result, residual);
            }
            Op::LinearGradX { dy, w, plus, dx } => {
                let (inputs, outputs) = (channels(values, dx), channels(values, dy));
                let result = dense::linear_grad_x(values.get(dy), self.weight(w), inputs, outputs);
                values.set_plus(dx, result, plus);
            }
            Op::LinearGradW { dy, x, w, bias, add } => {
                let (inputs, outputs) = (channels(values, x), channels(values, dy));
                let result = dense::linear_grad_w(values.get(dy), values.get(x), inputs, outputs);
                self.gradient(w, result, add);
                if let Some(bias) = bias {
                    self.gradient(bias, pointwise::sum_channels(values.get(dy), outputs), add);
                }
            }
            Op::Conv {
                x,
                w,
                bias,
                residual,
                window,
                y,
            } => {
                let shape = dense::ConvShape::new(values.dims(x), values.dims(y), window);
                let mut result = shape.forward(values.get(x), self.weight(w));
                if let Some(bias) = bias {
                    pointwise::add_channels(&mut result, self.weight(bias));
                }
                values.set_plus(y, result, residual);
            }
            Op::ConvGradX {
                dy,
                w,
                window,
                plus,
                dx,
            } => {
                let shape = dense::ConvShape::new(values.dims(dx), values.dims(dy), window);
                let result = shape.grad_x(values.get(dy), self.weight(w));
                values.set_plus(dx, result, plus);
            }
            Op::ConvGradW {
                dy,
                x,
                w,
                bias,
                window,
                add,
            } => {
                let shape = dense::ConvShape::new(values.dims(x), values.dims(dy), window);
                self.gradient(w, shape.grad_w(values.get(dy), values.get(x)), add);
                if let Some(bias) = bias {
                    let sums = pointwise::sum_channels(values.get(dy), channels(values, dy));
                    self.gradient(bias, sums, add);
                }
            }
            Op::GroupNorm { .. } | Op::GroupNormGrad { .. } | Op::LayerNorm { .. } | Op::LayerNormGrad { .. } => {
                self.norm(op, values);
            }
            Op::Embedding {
                ids,
                table,
                positions,
                y,
            } => {
                let (width, tokens) = (channels(values, y), values.dims(ids)[1]);
                let (table, positions) = (self.weight(table), self.weight(positions));
                let result = pointwise::embedding(values.get(ids), table, positions, tokens, width);
                values.set(y, result);
            }
            Op::EmbeddingGrad {
                dy,
                ids,
                table,
                positions,
                add,
            } => {
                let (width, tokens) = (channels(values, dy), values.dims(ids)[1]);
                let lengths = (self.weight(table).len(), self.weight(positions).len());
                let (dtable, dpositions) =
                    pointwise::embedding_grad(values.get(dy), values.get(ids), lengths, tokens, width);
                self.gradient(table, dtable, add);
                self.gradient(positions, dpositions, add);
            }
            Op::Attention { .. } | Op::AttentionGrad { .. } => attention::execute(op, values),
            Op::Draw { .. } | Op::Diffuse { .. } => diffusion::execute(op, values),
            _ => pointwise::execute(op, values),
        }
    }

    fn norm(&mut self, op: &Op, values: &mut Values) {
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
                let shape = norms::GroupShape::new(values.dims(x), groups);
                let s = shape.shifted(
                    values.get(x),
                    shift.rows.map(|id| values.get(id)),
                    shift.channels.map(|id| self.weight(id)),
                );
                let moments = shape.stats(&s, eps);
                let result = shape.forward(&s, &moments, self.weight(w), self.weight(b), silu);
                values.set(y, result);
                values.set(stats, moments);
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
                let shape = norms::GroupShape::new(values.dims(x), groups);
                let s = shape.shifted(
                    values.get(x),
                    shift.rows.map(|id| values.get(id)),
                    shift.channels.map(|id| self.weight(id)),
                );
                let grads = shape.backward(
                    values.get(dy),
                    &s,
                    values.get(stats),
                    [self.weight(w), self.weight(b)],
                    silu,
                );
                if let Some(dshift) = dshift {
                    values.set(dshift, shape.sum_pixels(&grads.ds));
                }
                if let Some(bias) = shift.channels {
                    self.gradient(bias, pointwise::sum_channels(&grads.ds, shape.channels), add);
                }
                self.gradient(w, grads.dw, add);
                self.gradient(b, grads.db, add);
                values.set_plus(dx, grads.ds, plus);
            }
            Op::LayerNorm { x, w, b, eps, y, stats } => {
                let width = channels(values, x);
                let (result, moments) = norms::layer_norm(values.get(x), self.weight(w), self.weight(b), width, eps);
                values.set(y, result);
                values.set(stats, moments);
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
                let [dy, x, stats] = [dy, x, stats].map(|id| values.get(id));
                let grads = norms::layer_norm_grad(dy, x, stats, self.weight(w));
                self.gradient(w, grads.dw, add);
                self.gradient(b, grads.db, add);
                values.set_plus(dx, grads.ds, plus);
            }
            _ => {}
        }
    }
}

fn channels(values: &Values, id: ValueId) -> usize {
    values.program.value(id).channels()
}

fn check_length(name: &str, want: usize, got: usize) -> Result<()> {
    if want == got {
        return Ok(());
    }
    let name = name.to_string();
    Err(EngineError::Length { name, want, got })
}
