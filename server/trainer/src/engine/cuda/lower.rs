//! What each instruction becomes on the GPU.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use super::{
    super::{
        ir::{Kind, Op, ParamId, ParamTable, Program, ValueId, Window},
        operands::operands,
        plan::{self, Area},
        session::Result,
    },
    blas,
    call::{Address, Call, Element},
    calls::{pointwise, sums},
    device::Libraries,
    dnn,
    gpu::Lane,
    library::failed,
    scratch::Scratch,
    store::Store,
    update::Optimizer,
    work::{Step, Work},
};

/// Where the memory is that the plan speaks of.
pub(super) struct Places<'a> {
    pub places: &'a plan::Places,
    pub kept: Address,
    pub arena: Address,
    /// Of the main lane and of the side lane.
    pub workspaces: [Address; 2],
}

pub(super) struct Lowering<'a> {
    pub program: &'a Program,
    pub params: &'a ParamTable,
    pub store: &'a Store,
    pub element: Element,
    pub places: Places<'a>,
    pub updates: Updates<'a>,
}

/// In low memory, the weights that are updated behind an instruction.
pub(super) struct Updates<'a> {
    pub optimizer: &'a Optimizer,
    pub behind: &'a BTreeMap<usize, Vec<ParamId>>,
}

/// A program's work.
pub(super) struct Lowered {
    pub steps: Vec<Step>,
    /// What our own kernels need of the memory that all work shares.
    pub workspace_bytes: usize,
}

/// The work of one instruction while it is written down.
pub(super) struct Writing<'a, 'l> {
    pub of: &'a Lowering<'a>,
    libraries: &'l mut Libraries,
    scratch: &'l mut Scratch,
    pub work: Vec<Work>,
    lane: Lane,
    workspace_bytes: usize,
}

/// The name of what updates weights.
pub(super) const UPDATE: &str = "Update";

/// Gradients of weights run beside the rest, and so do norms and gates that are computed again for them alone. Nothing else does
/// that only they read: where no text encoder learns, that is the whole way back.
pub(super) fn lanes(program: &Program) -> Vec<Lane> {
    let roots = |ids: &[ValueId]| -> Vec<ValueId> { ids.iter().map(|&id| program.root(id)).collect() };
    let mut lanes = vec![Lane::Main; program.code.len()];
    // Of values that are read: those that the main lane or the host reads, and all.
    let mut awaited: BTreeSet<ValueId> = program.outputs.values().map(|&id| program.root(id)).collect();
    let mut read = BTreeSet::new();
    for (op, lane) in program.code.iter().zip(&mut lanes).rev() {
        let touched = operands(op);
        let (reads, writes) = (roots(&touched.reads), roots(&touched.writes));
        let beside = match op {
            Op::LinearGradW { .. } | Op::ConvGradW { .. } => true,
            Op::LayerNorm { .. } | Op::Geglu { .. } => {
                writes.iter().any(|root| read.contains(root)) && writes.iter().all(|root| !awaited.contains(root))
            }
            _ => false,
        };
        if beside {
            *lane = Lane::Side;
        } else {
            awaited.extend(&reads);
        }
        read.extend(reads);
    }
    lanes
}

impl Lowering<'_> {
    /// # Errors
    /// When a library has no way to compute an instruction.
    pub fn all(&self, libraries: &mut Libraries, scratch: &mut Scratch) -> Result<Lowered> {
        let mut lowered = Lowered {
            steps: Vec::new(),
            workspace_bytes: 0,
        };
        let lanes = lanes(self.program);
        for (index, op) in self.program.code.iter().enumerate() {
            let mut writing = Writing {
                of: self,
                libraries,
                scratch,
                work: Vec::new(),
                lane: lanes[index],
                workspace_bytes: 0,
            };
            writing.op(op)?;
            lowered.workspace_bytes = lowered.workspace_bytes.max(writing.workspace_bytes);
            let (lane, work) = (writing.lane, writing.work);
            let touched = operands(op);
            let ranges = |ids: &[ValueId]| ids.iter().map(|&id| self.range(id)).collect::<Vec<_>>();
            let mut writes = ranges(&touched.writes);
            writes.extend(touched.trained_gradients(self.params).filter_map(|id| self.planned(id)));
            lowered.steps.push(Step {
                name: op.name(),
                lane,
                work,
                reads: ranges(&touched.reads),
                writes,
                weights: (touched.weights.iter())
                    .map(|&id| self.store.weight_range(id))
                    .collect(),
                gradients: touched.trained_gradients(self.params).next().is_some(),
                updates: false,
            });
            let behind = self.updates.behind.get(&index);
            lowered.steps.extend(behind.map(|ids| self.update(ids)));
        }
        Ok(lowered)
    }

    /// The update of weights whose gradients are finished and that nobody reads any more: beside the rest, since nobody
    /// waits for it.
    fn update(&self, ids: &[ParamId]) -> Step {
        let Updates { optimizer, .. } = self.updates;
        let calls = ids.iter().flat_map(|&id| {
            let gradient = self.gradient_at(Some(id));
            optimizer.update_of(self.store, id, self.params.get(id), gradient)
        });
        Step {
            name: UPDATE,
            lane: Lane::Side,
            work: calls.map(Work::Kernel).collect(),
            reads: ids.iter().filter_map(|&id| self.planned(id)).collect(),
            writes: Vec::new(),
            weights: Vec::new(),
            gradients: false,
            updates: true,
        }
    }

    /// Addresses of a gradient that lies among the values.
    fn planned(&self, id: ParamId) -> Option<Range<u64>> {
        let place = self.places.places.of_gradient(id)?;
        let start = self.places.arena.offset(place.offset).0;
        Some(start..start + place.bytes as u64)
    }

    pub fn at(&self, id: ValueId) -> Address {
        let place = self.places.places.of(id);
        let area = match place.area {
            Area::Kept => self.places.kept,
            Area::Arena => self.places.arena,
        };
        area.offset(place.offset)
    }

    /// Its addresses.
    fn range(&self, id: ValueId) -> Range<u64> {
        let start = self.at(id).0;
        start..start + self.places.places.of(id).bytes as u64
    }

    pub fn maybe_at(&self, id: Option<ValueId>) -> Address {
        id.map_or(Address::NONE, |id| self.at(id))
    }

    pub fn dims(&self, id: ValueId) -> &[usize] {
        &self.program.value(id).dims
    }

    pub fn len(&self, id: ValueId) -> usize {
        self.program.value(id).len()
    }

    pub fn channels(&self, id: ValueId) -> usize {
        self.program.value(id).channels()
    }

    /// Everything but the channels.
    pub fn rows(&self, id: ValueId) -> usize {
        self.len(id) / self.channels(id)
    }

    fn map(&self, id: ValueId) -> Result<[usize; 4]> {
        let dims = self.dims(id);
        dims.try_into()
            .map_err(|_| failed("a convolution", format!("of {dims:?}, which is no map")))
    }

    pub fn element_of(&self, id: ValueId) -> Element {
        match self.program.value(id).kind {
            Kind::Activation => self.element,
            Kind::F32 | Kind::Ids => Element::F32,
        }
    }

    fn same(&self, a: ValueId, b: ValueId) -> bool {
        self.program.root(a) == self.program.root(b)
    }

    /// Of a weight's gradient; none where the weight is frozen.
    pub fn gradient_at(&self, id: Option<ParamId>) -> Address {
        self.gradient_of(id).unwrap_or(Address::NONE)
    }

    fn gradient_of(&self, id: Option<ParamId>) -> Option<Address> {
        let planned = || self.planned(id?).map(|range| Address(range.start));
        self.store.gradient_at(id?).or_else(planned)
    }
}

/// The shape of a linear layer.
#[derive(Clone, Copy)]
struct Layer {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Writing<'_, '_> {
    pub fn calls(&mut self, calls: impl IntoIterator<Item = Call>) {
        self.work.extend(calls.into_iter().map(Work::Kernel));
    }

    /// Room in the workspace, for this instruction alone.
    pub fn room(&mut self, bytes: usize) -> Address {
        self.workspace_bytes = self.workspace_bytes.max(bytes);
        self.of.places.workspaces[usize::from(self.lane == Lane::Side)]
    }

    fn product(
        &mut self,
        product: blas::Product,
        Layer { rows, inputs, outputs }: Layer,
        plus: bool,
        operands: blas::Operands,
    ) -> Result<()> {
        let plan = self.product_of(blas::Shape {
            product,
            element: self.of.element,
            rows,
            inputs,
            outputs,
            plus,
            exact: false,
        })?;
        self.work.push(Work::Product(plan, operands));
        Ok(())
    }

    pub fn product_of(&mut self, shape: blas::Shape) -> Result<Arc<blas::Plan>> {
        let Libraries { linear, choices, .. } = &mut *self.libraries;
        linear.of(shape, choices, self.scratch)
    }

    fn convolution(
        &mut self,
        product: dnn::Product,
        (x, y, window): ([usize; 4], [usize; 4], Window),
        plus: bool,
        operands: dnn::Operands,
    ) -> Result<()> {
        let shape = dnn::Shape {
            product,
            element: self.of.element,
            x,
            y,
            window,
            plus,
        };
        let Libraries { conv, choices, .. } = &mut *self.libraries;
        let plan = conv.of(shape, choices, self.scratch)?;
        self.work.push(Work::Convolution(plan, operands));
        Ok(())
    }

    fn op(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::Linear {
                x,
                w,
                bias,
                residual,
                y,
            } => {
                let layer = Layer {
                    rows: self.of.rows(x),
                    inputs: self.of.channels(x),
                    outputs: self.of.channels(y),
                };
                let operands = blas::Operands {
                    a: self.of.store.weight_at(w),
                    b: self.of.at(x),
                    bias: bias.map_or(Address::NONE, |bias| self.of.store.weight_at(bias)),
                    plus: self.of.maybe_at(residual),
                    result: self.of.at(y),
                };
                let product = blas::Product::Forward { bias: bias.is_some() };
                self.product(product, layer, residual.is_some(), operands)
            }
            Op::LinearGradX { dy, w, plus, dx } => {
                let layer = Layer {
                    rows: self.of.rows(dx),
                    inputs: self.of.channels(dx),
                    outputs: self.of.channels(dy),
                };
                let operands = blas::Operands {
                    a: self.of.store.weight_at(w),
                    b: self.of.at(dy),
                    bias: Address::NONE,
                    plus: self.of.maybe_at(plus),
                    result: self.of.at(dx),
                };
                self.product(blas::Product::GradX, layer, plus.is_some(), operands)
            }
            Op::LinearGradW { dy, x, w, bias, add } => {
                let layer = Layer {
                    rows: self.of.rows(x),
                    inputs: self.of.channels(x),
                    outputs: self.of.channels(dy),
                };
                if let Some(result) = self.of.gradient_of(Some(w)) {
                    let operands = blas::Operands {
                        a: self.of.at(x),
                        b: self.of.at(dy),
                        bias: Address::NONE,
                        plus: result,
                        result,
                    };
                    self.product(blas::Product::GradW, layer, add, operands)?;
                }
                self.bias_gradient(bias, dy, add)
            }
            Op::Conv {
                x,
                w,
                bias,
                residual,
                window,
                y,
            } => {
                let shape = (self.of.map(x)?, self.of.map(y)?, window);
                let operands = dnn::Operands {
                    x: self.of.at(x),
                    w: self.of.store.weight_at(w),
                    y: self.of.at(y),
                };
                // A residual in the result's own place is added by the convolution; any other, and the bias, in a pass after
                // it, which costs less than cuDNN's fused kernels lose in the product.
                let in_place = residual.is_some_and(|residual| self.of.same(residual, y));
                self.convolution(dnn::Product::Forward, shape, in_place, operands)?;
                self.bias_and_residual(bias, residual.filter(|_| !in_place), y)
            }
            Op::ConvGradX {
                dy,
                w,
                window,
                plus,
                dx,
            } => {
                let shape = (self.of.map(dx)?, self.of.map(dy)?, window);
                let operands = dnn::Operands {
                    x: self.of.at(dx),
                    w: self.of.store.weight_at(w),
                    y: self.of.at(dy),
                };
                if let Some(plus) = plus.filter(|&plus| !self.of.same(plus, dx)) {
                    self.work.push(Work::Copy {
                        from: self.of.at(plus),
                        to: self.of.at(dx),
                        bytes: self.of.len(dx) * self.of.element.bytes(),
                    });
                }
                self.convolution(dnn::Product::GradX, shape, plus.is_some(), operands)
            }
            Op::ConvGradW {
                dy,
                x,
                w,
                bias,
                window,
                add,
            } => {
                if let Some(result) = self.of.gradient_of(Some(w)) {
                    let shape = (self.of.map(x)?, self.of.map(dy)?, window);
                    let operands = dnn::Operands {
                        x: self.of.at(x),
                        w: result,
                        y: self.of.at(dy),
                    };
                    self.convolution(dnn::Product::GradW, shape, add, operands)?;
                }
                self.bias_gradient(bias, dy, add)
            }
            Op::Attention { .. } | Op::AttentionGrad { .. } => self.attention(op),
            _ => self.small(op),
        }
    }

    /// Sums over everything but the channels.
    fn bias_gradient(&mut self, bias: Option<ParamId>, dy: ValueId, add: bool) -> Result<()> {
        if let Some(result) = self.of.gradient_of(bias) {
            let (element, size) = (self.of.element, [self.of.rows(dy), self.of.channels(dy)]);
            let workspace = self.room(sums::column_sums_workspace(element, size[0], size[1]));
            self.calls(sums::column_sums(element, self.of.at(dy), result, workspace, size, add));
        }
        Ok(())
    }

    fn bias_and_residual(&mut self, bias: Option<ParamId>, residual: Option<ValueId>, y: ValueId) -> Result<()> {
        let bias = bias.map_or(Address::NONE, |bias| self.of.store.weight_at(bias));
        let (residual, rows, channels) = (self.of.maybe_at(residual), self.of.rows(y), self.of.channels(y));
        let calls = pointwise::bias_residual(self.of.element, self.of.at(y), bias, residual, rows, channels);
        self.calls(calls);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        builder::{Bias, Scope},
        ir::{Group, Kind},
        testing::Case,
    };

    #[test]
    fn what_only_gradients_of_weights_read_runs_beside() {
        let case = Case::shapes_only(|b| {
            let scope = Scope::new("unet", Group::UNet, true);
            let x = b.input("x", &[2, 3, 4], Kind::Activation);
            let x = b.linear(x, &scope.at("in"), 4, Bias::None, None);
            let normed = b.layer_norm(x, &scope.at("norm"), 1e-3);
            let [q, k, v] = ["q", "k", "v"].map(|name| b.linear(normed, &scope.at(name), 4, Bias::None, None));
            b.attention([q, k, v], 2, false)
        });
        let program = case.program(false, false);
        let lanes = lanes(&program);
        let beside = |wanted: &str| -> Vec<bool> {
            let all = program.code.iter().zip(&lanes);
            all.filter(|(op, _)| op.name() == wanted)
                .map(|(_, lane)| *lane == Lane::Side)
                .collect()
        };
        // The norm of the forward, and the one that is computed again.
        assert_eq!(beside("LayerNorm"), [false, true]);
        assert_eq!(beside("LinearGradW"), [true; 4]);
        for others in ["Linear", "LinearGradX", "LayerNormGrad", "AttentionGrad", "Mse"] {
            let beside = beside(others);
            assert!(!beside.is_empty() && !beside.contains(&true), "{others}: {beside:?}");
        }
    }
}
