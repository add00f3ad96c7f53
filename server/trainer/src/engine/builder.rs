//! Writes networks down as instructions. Methods are named for the layer and return the layer's result; shapes are
//! checked once, when the program is finished, so that a network reads as its formula.

pub mod diffusion;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;

use super::adapter::Adapter;
use super::ir::{Activation, Group, Kind, Op, Param, ParamId, ParamTable, Program, Shift, Value, ValueId, Window};
use super::verify::{ProgramError, verify};

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the weight `{name}` is {first:?} in one place and {second:?} in another")]
    TwoShapes {
        name: String,
        first: Vec<usize>,
        second: Vec<usize>,
    },
    #[error("the model's shapes do not fit together; its config.json asks for something impossible")]
    Shapes(#[from] ProgramError),
}

/// Where in a model the weights are: diffusers' path, and what happens to them.
#[derive(Clone, Debug)]
pub struct Scope {
    path: String,
    group: Group,
    trained: bool,
    adapter: Option<Adapter>,
}

impl Scope {
    /// `prefix`: `unet`, `text_encoder` or `vae`. `trained`: its weights get gradients and are updated.
    pub fn new(prefix: &str, group: Group, trained: bool) -> Self {
        Self {
            path: prefix.to_string(),
            group,
            trained,
            adapter: None,
        }
    }

    /// Attention projections get `adapter`, which is trained whatever happens to the weights themselves.
    pub fn with_adapter(mut self, adapter: Option<Adapter>) -> Self {
        self.adapter = adapter;
        self
    }

    pub fn adapter(&self) -> Option<Adapter> {
        self.adapter
    }

    /// Where trained weights are that belong to this scope's network.
    pub(super) fn of_adapter(&self, name: impl Display) -> Self {
        Self {
            trained: true,
            adapter: None,
            ..self.at(name)
        }
    }

    /// A frozen weight that a whole network's adapters share, under a path of its own.
    pub(super) fn of_all_adapters(&self, path: &str) -> Self {
        Self {
            trained: false,
            adapter: None,
            path: path.to_string(),
            ..*self
        }
    }

    /// One level down: `at("down_blocks.0")`.
    pub fn at(&self, name: impl Display) -> Self {
        Self {
            path: self.name(name),
            ..*self
        }
    }

    pub fn name(&self, leaf: impl Display) -> String {
        format!("{}.{leaf}", self.path)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    None,
    Own,
}

/// What a [`Builder`] wrote.
#[derive(Clone, Debug)]
pub struct Forward {
    pub program: Program,
    /// Parts whose inner values a backward may compute again instead of keeping them.
    pub segments: Vec<Range<usize>>,
}

pub struct Builder<'t> {
    table: &'t mut ParamTable,
    ids: BTreeMap<String, ParamId>,
    program: Program,
    segments: Vec<Range<usize>>,
    probing: bool,
    fault: Option<BuildError>,
}

impl<'t> Builder<'t> {
    /// Weights are registered in `table`; one that is there already keeps its id and whether it is trained.
    pub fn new(table: &'t mut ParamTable) -> Self {
        let ids = (table.params.iter().zip(0..)).map(|(param, id)| (param.name.clone(), ParamId(id)));
        Self {
            ids: ids.collect(),
            table,
            program: Program::default(),
            segments: Vec::new(),
            probing: false,
            fault: None,
        }
    }

    /// From here on [`Self::probe`] makes values outputs of the program.
    pub fn with_probes(mut self) -> Self {
        self.probing = true;
        self
    }

    /// # Errors
    /// When shapes do not fit together, which the model's configuration is to blame for.
    pub fn finish(self) -> Result<Forward, BuildError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        verify(&self.program, self.table)?;
        Ok(Forward {
            program: self.program,
            segments: self.segments,
        })
    }

    pub fn dims(&self, id: ValueId) -> &[usize] {
        &self.program.value(id).dims
    }

    fn channels(&self, id: ValueId) -> usize {
        self.program.value(id).channels()
    }

    fn value(&mut self, dims: Vec<usize>, kind: Kind) -> ValueId {
        self.program.push_value(dims, kind)
    }

    fn activation(&mut self, dims: Vec<usize>) -> ValueId {
        self.value(dims, Kind::Activation)
    }

    fn with_channels(&self, x: ValueId, channels: usize) -> Vec<usize> {
        let dims = self.dims(x);
        dims[..dims.len() - 1].iter().copied().chain([channels]).collect()
    }

    /// Written by the host before every run in which it changes.
    pub fn input(&mut self, name: &str, dims: &[usize], kind: Kind) -> ValueId {
        let id = self.value(dims.to_vec(), kind);
        self.program.inputs.insert(name.to_string(), id);
        id
    }

    pub fn output(&mut self, name: &str, id: ValueId) {
        self.program.outputs.insert(name.to_string(), id);
    }

    /// Lets a test look at `id` by the path of the module that it comes from.
    pub fn probe(&mut self, scope: &Scope, leaf: &str, id: ValueId) {
        if self.probing {
            let name = if leaf.is_empty() {
                scope.path.clone()
            } else {
                scope.name(leaf)
            };
            self.output(&name, id);
        }
    }

    /// What `write` writes may be computed again in the backward (gradient checkpointing). Segments do not nest.
    pub fn segment<T>(&mut self, write: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.program.code.len();
        let result = write(self);
        self.segments.push(start..self.program.code.len());
        result
    }

    /// The weight `leaf` of `scope`, in the engine's layout.
    pub fn weight(&mut self, scope: &Scope, leaf: &str, dims: &[usize]) -> ParamId {
        let name = scope.name(leaf);
        if let Some(&id) = self.ids.get(&name) {
            let first = &self.table.get(id).dims;
            if first != dims && self.fault.is_none() {
                let (first, second) = (first.clone(), dims.to_vec());
                self.fault = Some(BuildError::TwoShapes { name, first, second });
            }
            return id;
        }
        let id = ParamId(self.table.params.len() as u32);
        self.table.params.push(Param {
            name: name.clone(),
            dims: dims.to_vec(),
            trained: scope.trained,
            group: scope.group,
        });
        self.ids.insert(name, id);
        id
    }

    fn bias(&mut self, scope: &Scope, bias: Bias, outputs: usize) -> Option<ParamId> {
        match bias {
            Bias::None => None,
            Bias::Own => Some(self.weight(scope, "bias", &[outputs])),
        }
    }

    pub fn cast(&mut self, x: ValueId, kind: Kind) -> ValueId {
        let y = self.value(self.dims(x).to_vec(), kind);
        self.program.code.push(Op::Cast { x, y });
        y
    }

    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        let y = self.activation(self.dims(a).to_vec());
        self.program.code.push(Op::Add { a, b, y });
        y
    }

    /// The same memory under other dimensions.
    pub fn reshape(&mut self, x: ValueId, dims: &[usize]) -> ValueId {
        self.program.view(x, dims)
    }

    /// A feature map's pixels as tokens: `[rows, h, w, channels]` to `[rows, h * w, channels]`.
    pub fn tokens(&mut self, map: ValueId) -> ValueId {
        let dims = self.dims(map);
        let tokens = [dims[0], dims[1..dims.len() - 1].iter().product(), self.channels(map)];
        self.reshape(map, &tokens)
    }

    /// `x` `[.., inputs]`, weight `[outputs, inputs]`.
    pub fn linear(
        &mut self,
        x: ValueId,
        scope: &Scope,
        outputs: usize,
        bias: Bias,
        residual: Option<ValueId>,
    ) -> ValueId {
        let w = self.weight(scope, "weight", &[outputs, self.channels(x)]);
        let bias = self.bias(scope, bias, outputs);
        self.emit_linear(x, w, bias, residual, outputs)
    }

    /// A convolution with a 1x1 kernel, which is a linear layer on pixels; its weight is `[outputs, 1, 1, inputs]`.
    pub fn pointwise(&mut self, x: ValueId, scope: &Scope, outputs: usize, residual: Option<ValueId>) -> ValueId {
        let w = self.weight(scope, "weight", &[outputs, 1, 1, self.channels(x)]);
        let bias = self.bias(scope, Bias::Own, outputs);
        self.emit_linear(x, w, bias, residual, outputs)
    }

    fn emit_linear(
        &mut self,
        x: ValueId,
        w: ParamId,
        bias: Option<ParamId>,
        residual: Option<ValueId>,
        outputs: usize,
    ) -> ValueId {
        let y = self.activation(self.with_channels(x, outputs));
        self.program.code.push(Op::Linear {
            x,
            w,
            bias,
            residual,
            y,
        });
        y
    }

    /// `x` `[rows, h, w, inputs]`.
    pub fn conv(
        &mut self,
        x: ValueId,
        scope: &Scope,
        outputs: usize,
        window: Window,
        bias: Bias,
        residual: Option<ValueId>,
    ) -> ValueId {
        let w = self.weight(
            scope,
            "weight",
            &[outputs, window.kernel, window.kernel, self.channels(x)],
        );
        let bias = self.bias(scope, bias, outputs);
        let dims = self.dims(x);
        // A map smaller than the window gets sides of 0, which the check at the end names.
        let side = |input: usize| window.output(input).unwrap_or(0);
        let dims = vec![dims[0], side(dims[1]), side(dims[2]), outputs];
        let y = self.activation(dims);
        self.program.code.push(Op::Conv {
            x,
            w,
            bias,
            residual,
            window,
            y,
        });
        y
    }

    /// Of `x + shift`; with `silu` the activation follows.
    pub fn group_norm(
        &mut self,
        x: ValueId,
        shift: Shift,
        scope: &Scope,
        (groups, eps): (usize, f64),
        silu: bool,
    ) -> ValueId {
        let (channels, rows) = (self.channels(x), self.dims(x)[0]);
        let w = self.weight(scope, "weight", &[channels]);
        let b = self.weight(scope, "bias", &[channels]);
        let y = self.activation(self.dims(x).to_vec());
        let stats = self.value(vec![rows, groups, 2], Kind::F32);
        self.program.code.push(Op::GroupNorm {
            x,
            shift,
            w,
            b,
            groups,
            eps,
            silu,
            y,
            stats,
        });
        y
    }

    pub fn layer_norm(&mut self, x: ValueId, scope: &Scope, eps: f64) -> ValueId {
        let channels = self.channels(x);
        let w = self.weight(scope, "weight", &[channels]);
        let b = self.weight(scope, "bias", &[channels]);
        let y = self.activation(self.dims(x).to_vec());
        let stats = self.value(self.with_channels(x, 2), Kind::F32);
        self.program.code.push(Op::LayerNorm { x, w, b, eps, y, stats });
        y
    }

    /// `q` `[rows, queries, heads * d]`, `k` and `v` `[rows, keys, heads * d]`.
    pub fn attention(&mut self, [q, k, v]: [ValueId; 3], heads: usize, causal: bool) -> ValueId {
        let dims = self.dims(q).to_vec();
        let stats = self.value(vec![dims[0], heads, dims[1]], Kind::F32);
        let y = self.activation(dims);
        self.program.code.push(Op::Attention {
            q,
            k,
            v,
            heads,
            causal,
            y,
            stats,
        });
        y
    }

    pub fn geglu(&mut self, x: ValueId) -> ValueId {
        let y = self.activation(self.with_channels(x, self.channels(x) / 2));
        self.program.code.push(Op::Geglu { x, y });
        y
    }

    pub fn activate(&mut self, kind: Activation, x: ValueId) -> ValueId {
        let y = self.activation(self.dims(x).to_vec());
        self.program.code.push(Op::Activate { kind, x, y });
        y
    }

    /// Nearest neighbour.
    pub fn upsample(&mut self, x: ValueId, height: usize, width: usize) -> ValueId {
        let y = self.activation(vec![self.dims(x)[0], height, width, self.channels(x)]);
        self.program.code.push(Op::Upsample { x, y });
        y
    }

    pub fn concat(&mut self, a: ValueId, b: ValueId) -> ValueId {
        let y = self.activation(self.with_channels(a, self.channels(a) + self.channels(b)));
        self.program.code.push(Op::Concat { a, b, y });
        y
    }

    /// `ids` `[rows, tokens]`; `table` `[vocabulary, width]`, `positions` `[tokens or more, width]`.
    pub fn embedding(&mut self, ids: ValueId, table: ParamId, positions: ParamId) -> ValueId {
        let width = self.table.get(table).dims.last().copied().unwrap_or(0);
        let y = self.activation([self.dims(ids), &[width]].concat());
        self.program.code.push(Op::Embedding {
            ids,
            table,
            positions,
            y,
        });
        y
    }

    /// The losses of the rows, and the gradient of `predicted`; see [`Op::Mse`].
    pub fn mse(&mut self, predicted: ValueId, target: ValueId, weights: ValueId, scale: ValueId) -> (ValueId, ValueId) {
        let Value { dims, kind, .. } = self.program.value(predicted).clone();
        let losses = self.value(vec![dims[0]], Kind::F32);
        let dpredicted = self.value(dims, kind);
        self.program.code.push(Op::Mse {
            predicted,
            target,
            weights,
            scale,
            losses,
            dpredicted,
        });
        (losses, dpredicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_share_weights_by_name() {
        let mut table = ParamTable::default();
        let scope = Scope::new("unet", Group::UNet, true);
        let mut write = |rows, trained| {
            let mut b = Builder::new(&mut table);
            let x = b.input("x", &[rows, 3], Kind::Activation);
            let scope = Scope {
                trained,
                ..scope.clone()
            };
            let y = b.linear(x, &scope.at("proj"), 5, Bias::Own, None);
            b.output("y", y);
            b.finish().unwrap().program.code
        };
        let (first, second) = (write(2, true), write(7, false));
        assert_eq!(first, second);
        let names: Vec<_> = table
            .params
            .iter()
            .map(|param| (param.name.as_str(), param.trained))
            .collect();
        assert_eq!(names, [("unet.proj.weight", true), ("unet.proj.bias", true)]);
    }

    #[test]
    fn a_weight_of_two_shapes_is_named() {
        let mut table = ParamTable::default();
        let scope = Scope::new("vae", Group::Vae, false).at("proj");
        let mut b = Builder::new(&mut table);
        let x = b.input("x", &[2, 3], Kind::Activation);
        b.linear(x, &scope, 5, Bias::None, None);
        b.linear(x, &scope, 4, Bias::None, None);
        let error = b.finish().unwrap_err().to_string();
        assert!(
            error.contains("`vae.proj.weight`") && error.contains("[4, 3]"),
            "{error}"
        );
    }

    #[test]
    fn what_does_not_fit_names_instruction_and_operand() {
        let mut table = ParamTable::default();
        let scope = Scope::new("vae", Group::Vae, false);
        let mut b = Builder::new(&mut table);
        let x = b.input("x", &[2, 4, 4, 6], Kind::Activation);
        b.group_norm(x, Shift::default(), &scope, (4, 1e-5), false);
        let BuildError::Shapes(error) = b.finish().unwrap_err() else {
            panic!("another error");
        };
        assert!(
            error.to_string().contains("GroupNorm") && error.to_string().contains("6 channels"),
            "{error}"
        );
    }
}
