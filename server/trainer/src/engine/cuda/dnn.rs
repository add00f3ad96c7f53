//! Convolutions through cuDNN's graph interface: forward and both gradients on tensor cores, channels-last, without
//! a layout change anywhere.

use std::{collections::HashMap, ffi::c_int, ffi::c_void, sync::Arc};

use super::{
    super::{ir::Window, session::Result},
    call::{Address, Element},
    choices::{self, Choices},
    descriptor::{Descriptor, attribute, number, object},
    driver,
    gpu::{Gpu, Lane},
    graph,
    library::{self, failed, library},
    scratch::Scratch,
};

pub(super) type Handle = *mut c_void;

library!(
    /// `libcudnn`.
    Cudnn, describe {
        fn cudnnCreate(handle: *mut Handle);
        fn cudnnDestroy(handle: Handle);
        fn cudnnSetStream(handle: Handle, stream: driver::Stream);
        fn cudnnBackendCreateDescriptor(kind: c_int, descriptor: *mut Handle);
        fn cudnnBackendDestroyDescriptor(descriptor: Handle);
        fn cudnnBackendSetAttribute(descriptor: Handle, name: c_int, kind: c_int, count: i64, values: *const c_void);
        fn cudnnBackendGetAttribute(
            descriptor: Handle, name: c_int, kind: c_int, wanted: i64, count: *mut i64, values: *mut c_void,
        );
        fn cudnnBackendFinalize(descriptor: Handle);
        fn cudnnBackendExecute(handle: Handle, plan: Handle, pack: Handle);
    }
);

fn describe(status: i32) -> String {
    let words = match status {
        1001 => "not initialised",
        1002..=1006 => "its parts do not fit together",
        2000..=2999 => "bad parameter",
        3000..=3999 => "not supported",
        4000..=4999 => "internal error",
        5000..=5999 => "failed on the GPU",
        _ => "see cudnnStatus_t in NVIDIA's documentation",
    };
    format!("status {status}: {words}")
}

/// Which of a convolution's three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Product {
    Forward,
    GradX,
    GradW,
}

/// `x` `[rows, height, width, inputs]`, `w` `[outputs, kernel, kernel, inputs]`, `y` `[rows, .., .., outputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub product: Product,
    pub element: Element,
    pub x: [usize; 4],
    pub y: [usize; 4],
    pub window: Window,
    /// The result is added to what lies in its place.
    pub plus: bool,
}

impl Shape {
    fn name(&self) -> String {
        let product = match self.product {
            Product::Forward => "forward",
            Product::GradX => "grad-x",
            Product::GradW => "grad-w",
        };
        let plus = if self.plus { "-plus" } else { "" };
        let Window {
            kernel,
            stride,
            before,
            after,
        } = self.window;
        let [rows, height, width, inputs] = self.x;
        format!(
            "conv {product}{plus} {} {rows}x{height}x{width}x{inputs} to {} window {kernel}/{stride} pad {before},{after}",
            self.element.suffix(),
            self.y[3],
        )
    }

    fn w(&self) -> [usize; 4] {
        [self.y[3], self.window.kernel, self.window.kernel, self.x[3]]
    }
}

/// Names of the operands inside a graph.
const X: i64 = 1;
const W: i64 = 2;
const Y: i64 = 3;

/// Addresses of `x`, `w` and `y`, or of their gradients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub x: Address,
    pub w: Address,
    pub y: Address,
}

pub(super) struct Dnn {
    gpu: Arc<Gpu>,
    pub(super) api: Cudnn,
    handle: Handle,
    /// The same, for the side lane.
    side: Handle,
    pub file: String,
    pub version: usize,
}

// SAFETY: the handle is used by the session's owner alone, from one thread at a time.
unsafe impl Send for Dnn {}
// SAFETY: as above.
unsafe impl Sync for Dnn {}

/// What algorithms may ask for.
const WORKSPACE_LIMIT: i64 = 256 << 20;
/// Proposals that are timed: the library lists the likely ones first.
const PROPOSALS: usize = 4;

impl Dnn {
    /// # Errors
    /// When the library is missing or does not start.
    pub fn open(gpu: &Arc<Gpu>) -> Result<Arc<Self>> {
        let found = library::find(&library::DNN)?;
        // SAFETY: the function is as its header says; it takes nothing and only answers.
        let version: unsafe extern "C" fn() -> usize = unsafe { library::function(&found.library, "cudnnGetVersion")? };
        // SAFETY: as above.
        let version = unsafe { version() };
        let api = Cudnn::bind(found.library)?;
        let open = |lane| -> Result<Handle> {
            let mut handle = std::ptr::null_mut();
            // SAFETY: the GPU's context is current; the result goes to a local.
            unsafe {
                api.cudnnCreate(&mut handle)?;
                api.cudnnSetStream(handle, gpu.stream(lane))?;
            }
            Ok(handle)
        };
        let (handle, side) = (open(Lane::Main)?, open(Lane::Side)?);
        Ok(Arc::new(Self {
            gpu: gpu.clone(),
            api,
            handle,
            side,
            file: found.file,
            version,
        }))
    }

    fn tensor(self: &Arc<Self>, id: i64, dims: [usize; 4], element: Element) -> Result<Descriptor> {
        let [n, h, w, c] = dims.map(|dim| dim as i64);
        let tensor = Descriptor::new(self, object::TENSOR)?;
        tensor.set(attribute::TENSOR_DATA_TYPE, number::DATA_TYPE, &[data_type(element)])?;
        tensor.set(attribute::TENSOR_DIMENSIONS, number::INT64, &[n, c, h, w])?;
        tensor.set(attribute::TENSOR_STRIDES, number::INT64, &[h * w * c, 1, w * c, c])?;
        tensor.set(attribute::TENSOR_UNIQUE_ID, number::INT64, &[id])?;
        // What the planner aligns to is more; 16 is what vector loads want.
        tensor.set(attribute::TENSOR_BYTE_ALIGNMENT, number::INT64, &[16i64])?;
        tensor.finish()
    }

    /// The one-instruction graph of a shape.
    fn graph(self: &Arc<Self>, shape: &Shape) -> Result<Descriptor> {
        let Window {
            stride, before, after, ..
        } = shape.window;
        let window = Descriptor::new(self, object::CONVOLUTION)?;
        let both = |size: usize| [size as i64; 2];
        window.set(
            attribute::CONVOLUTION_COMPUTE_TYPE,
            number::DATA_TYPE,
            &[data_type(Element::F32)],
        )?;
        window.set(
            attribute::CONVOLUTION_MODE,
            number::CONVOLUTION_MODE,
            &[CROSS_CORRELATION],
        )?;
        window.set(attribute::CONVOLUTION_SPATIAL_DIMS, number::INT64, &[2i64])?;
        window.set(attribute::CONVOLUTION_DILATIONS, number::INT64, &both(1))?;
        window.set(attribute::CONVOLUTION_STRIDES, number::INT64, &both(stride))?;
        window.set(attribute::CONVOLUTION_PADDING_BEFORE, number::INT64, &both(before))?;
        window.set(attribute::CONVOLUTION_PADDING_AFTER, number::INT64, &both(after))?;
        let window = window.finish()?;
        let x = self.tensor(X, shape.x, shape.element)?;
        let w = self.tensor(W, shape.w(), shape.element)?;
        let y = self.tensor(Y, shape.y, shape.element)?;
        // Attributes of the three operations have the same order from different numbers on.
        let (kind, names) = match shape.product {
            Product::Forward => (object::FORWARD, attribute::FORWARD),
            Product::GradX => (object::GRAD_X, attribute::GRAD_X),
            Product::GradW => (object::GRAD_W, attribute::GRAD_W),
        };
        let operation = Descriptor::new(self, kind)?;
        operation.set_descriptor(names.window, &window)?;
        operation.set_descriptor(names.x, &x)?;
        operation.set_descriptor(names.w, &w)?;
        operation.set_descriptor(names.y, &y)?;
        operation.set(names.alpha, number::FLOAT, &[1f32])?;
        operation.set(names.beta, number::FLOAT, &[if shape.plus { 1f32 } else { 0. }])?;
        let operation = operation.finish()?;
        let graph = Descriptor::new(self, object::GRAPH)?;
        graph.set(attribute::GRAPH_HANDLE, number::HANDLE, &[self.handle])?;
        graph.set_descriptor(attribute::GRAPH_OPERATIONS, &operation)?;
        graph.finish()
    }

    /// Configurations that always give the same bits, in the library's order: likely ones first.
    fn configurations(self: &Arc<Self>, graph: &Descriptor, element: Element) -> Result<Vec<Descriptor>> {
        let mut usable = Vec::new();
        for mode in [HEURISTIC_A, HEURISTIC_FALLBACK] {
            let heuristic = Descriptor::new(self, object::HEURISTIC)?;
            heuristic.set_descriptor(attribute::HEURISTIC_GRAPH, graph)?;
            heuristic.set(attribute::HEURISTIC_MODE, number::HEURISTIC_MODE, &[mode])?;
            let Ok(heuristic) = heuristic.finish() else { continue };
            let count = heuristic.count(attribute::HEURISTIC_RESULTS, number::DESCRIPTOR)?;
            let results: Vec<Descriptor> = (0..count)
                .map(|_| Descriptor::new(self, object::CONFIGURATION))
                .collect::<Result<_>>()?;
            let found = heuristic.get_descriptors(attribute::HEURISTIC_RESULTS, &results)?;
            for configuration in results.into_iter().take(found) {
                if self.is_exact(&configuration, element)? {
                    usable.push(configuration);
                }
            }
        }
        Ok(usable)
    }

    /// Deterministic, and in f32 without shorter types inside.
    fn is_exact(self: &Arc<Self>, configuration: &Descriptor, element: Element) -> Result<bool> {
        let engine = Descriptor::new(self, object::ENGINE)?;
        configuration.get_descriptors(attribute::CONFIGURATION_ENGINE, std::slice::from_ref(&engine))?;
        let notes: Vec<i32> = engine.get(attribute::ENGINE_NUMERICAL_NOTES, number::NUMERICAL_NOTE, 32)?;
        let behaviour: Vec<i32> = engine.get(attribute::ENGINE_BEHAVIOUR_NOTES, number::BEHAVIOUR_NOTE, 32)?;
        let shorter = [TENSOR_CORE, DOWN_CONVERTS];
        Ok(!notes.contains(&NOT_DETERMINISTIC)
            && !notes.contains(&REDUCES_IN_SHORTER)
            && !behaviour.contains(&COMPILES)
            && (element != Element::F32 || !notes.iter().any(|note| shorter.contains(note))))
    }

    fn plan(self: &Arc<Self>, shape: Shape, choices: &mut Choices, scratch: &mut Scratch) -> Result<Plan> {
        let name = shape.name();
        let refused = |why: &str| failed(&format!("cuDNN on {name}"), why);
        let graph = (self.graph(&shape)).map_err(|source| refused(&source.to_string()))?;
        let configurations = self.configurations(&graph, shape.element)?;
        if let Some(position) = choices.get(&name).filter(|&position| position < configurations.len())
            && let Ok(plan) = self.executable(&configurations[position], shape)
        {
            choices.note(name, position);
            return Ok(plan);
        }
        // Positions in the whole list, so that a remembered one needs no other to be tried.
        let mut plans: Vec<(usize, Plan)> = Vec::new();
        for (position, configuration) in configurations.iter().enumerate() {
            if let Ok(plan) = self.executable(configuration, shape) {
                plans.push((position, plan));
            }
            if plans.len() == if choices.timed { PROPOSALS } else { 1 } {
                break;
            }
        }
        if !choices.timed {
            let first = plans.into_iter().next();
            let (position, plan) = first.ok_or_else(|| refused("has no deterministic algorithm"))?;
            choices.note(name, position);
            return Ok(plan);
        }
        let bytes = |dims: [usize; 4]| dims.iter().product::<usize>() * shape.element.bytes();
        let workspace = plans.iter().map(|(_, plan)| plan.workspace_bytes).max().unwrap_or(0);
        let [x, w, y, workspace] = scratch.places([bytes(shape.x), bytes(shape.w()), bytes(shape.y), workspace])?;
        let mut times = Vec::new();
        for (_, plan) in &plans {
            let best = choices::least(&times);
            let timed = plan
                .bind(Operands { x, w, y }, workspace)
                .and_then(|bound| graph::time_against(best, &self.gpu, || plan.run(&bound, Lane::Main)));
            times.push(timed.ok());
        }
        let best = choices::best(&times).ok_or_else(|| refused("has no deterministic algorithm"))?;
        let (position, plan) = plans.swap_remove(best);
        choices.set(name.clone(), position);
        choices.note(name, position);
        Ok(plan)
    }

    fn executable(self: &Arc<Self>, configuration: &Descriptor, shape: Shape) -> Result<Plan> {
        let plan = Descriptor::new(self, object::PLAN)?;
        plan.set(attribute::PLAN_HANDLE, number::HANDLE, &[self.handle])?;
        plan.set_descriptor(attribute::PLAN_CONFIGURATION, configuration)?;
        let plan = plan.finish()?;
        let bytes: Vec<i64> = plan.get(attribute::PLAN_WORKSPACE_BYTES, number::INT64, 1)?;
        match bytes.first() {
            Some(&bytes) if bytes <= WORKSPACE_LIMIT => Ok(Plan {
                dnn: self.clone(),
                plan,
                workspace_bytes: bytes.max(0) as usize,
                shape,
            }),
            _ => Err(failed("cuDNN's algorithm", "needs too large a workspace")),
        }
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        // SAFETY: descriptors hold the library, so none is left. A failure has nobody to tell.
        unsafe {
            let _ = self.gpu.enter();
            let _ = self.api.cudnnDestroy(self.side);
            let _ = self.api.cudnnDestroy(self.handle);
        }
    }
}

/// A shape with its algorithm.
pub(super) struct Plan {
    dnn: Arc<Dnn>,
    plan: Descriptor,
    pub workspace_bytes: usize,
    shape: Shape,
}

/// A plan's operands, as the library takes them.
pub(super) struct Bound(Descriptor);

impl Plan {
    /// # Errors
    /// What the library answers.
    pub fn bind(&self, operands: Operands, workspace: Address) -> Result<Bound> {
        let pack = Descriptor::new(&self.dnn, object::PACK)?;
        let Operands { x, w, y } = operands;
        pack.set(attribute::PACK_POINTERS, number::POINTER, &[x.0, w.0, y.0])?;
        pack.set(attribute::PACK_IDS, number::INT64, &[X, W, Y])?;
        pack.set(attribute::PACK_WORKSPACE, number::POINTER, &[workspace.0])?;
        Ok(Bound(pack.finish()?))
    }

    /// Puts the convolution on a lane.
    ///
    /// # Errors
    /// What the library answers.
    pub fn run(&self, bound: &Bound, lane: Lane) -> Result<()> {
        let Dnn { api, handle, side, .. } = &*self.dnn;
        let handle = if lane == Lane::Main { handle } else { side };
        // SAFETY: plan and pack were finished, and made for each other.
        unsafe { api.cudnnBackendExecute(*handle, self.plan.handle(), bound.0.handle()) }
            .map_err(|source| failed(&format!("cuDNN on {}", self.shape.name()), source.to_string()))
    }
}

const CROSS_CORRELATION: c_int = 1;
const HEURISTIC_FALLBACK: c_int = 2;
const HEURISTIC_A: c_int = 3;
const TENSOR_CORE: i32 = 0;
const DOWN_CONVERTS: i32 = 1;
const REDUCES_IN_SHORTER: i32 = 2;
const NOT_DETERMINISTIC: i32 = 4;
/// The engine compiles a kernel when it is made, which takes seconds.
const COMPILES: i32 = 0;

fn data_type(element: Element) -> c_int {
    match element {
        Element::F32 => 0,
        Element::F16 => 2,
        Element::Bf16 => 9,
    }
}

/// All plans so far, by shape.
pub(super) struct Plans {
    dnn: Arc<Dnn>,
    plans: HashMap<Shape, Arc<Plan>>,
}

impl Plans {
    pub fn new(dnn: Arc<Dnn>) -> Self {
        Self {
            dnn,
            plans: HashMap::new(),
        }
    }

    /// Programs that were made of them keep theirs.
    pub fn forget(&mut self) {
        self.plans.clear();
    }

    /// # Errors
    /// When the library has no deterministic way to compute it.
    pub fn of(&mut self, shape: Shape, choices: &mut Choices, scratch: &mut Scratch) -> Result<Arc<Plan>> {
        if let Some(plan) = self.plans.get(&shape) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(self.dnn.plan(shape, choices, scratch)?);
        self.plans.insert(shape, plan.clone());
        Ok(plan)
    }
}
