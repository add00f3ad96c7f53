//! Matrix products of linear layers through cuBLASLt.
//!
//! Ours are row-major and cuBLASLt's column-major, so every product is computed as its transpose: what is `[rows, outputs]` to
//! us is a column-major matrix of `outputs` by `rows`, and a bias over outputs is one over its rows.

mod proposals;

use std::{collections::HashMap, ffi::c_int, ffi::c_void, sync::Arc};

use super::{
    super::session::Result,
    call::{Address, Element},
    choices::Choices,
    driver,
    gpu::{Gpu, Lane},
    library::{self, failed, library},
    scratch::Scratch,
};
use proposals::Proposal;

type Handle = *mut c_void;

library!(
    /// `libcublasLt`.
    Lt, describe {
        fn cublasLtCreate(handle: *mut Handle);
        fn cublasLtDestroy(handle: Handle);
        fn cublasLtMatmulDescCreate(description: *mut Handle, compute: c_int, scale: c_int);
        fn cublasLtMatmulDescDestroy(description: Handle);
        fn cublasLtMatmulDescSetAttribute(description: Handle, attribute: c_int, value: *const c_void, bytes: usize);
        fn cublasLtMatrixLayoutCreate(layout: *mut Handle, kind: c_int, rows: u64, columns: u64, stride: i64);
        fn cublasLtMatrixLayoutDestroy(layout: Handle);
        fn cublasLtMatmulPreferenceCreate(preference: *mut Handle);
        fn cublasLtMatmulPreferenceDestroy(preference: Handle);
        fn cublasLtMatmulPreferenceSetAttribute(preference: Handle, attribute: c_int, value: *const c_void, bytes: usize);
        fn cublasLtMatmulAlgoGetHeuristic(
            handle: Handle, description: Handle, a: Handle, b: Handle, c: Handle, d: Handle, preference: Handle,
            wanted: c_int, results: *mut Proposal, count: *mut c_int,
        );
        fn cublasLtMatmul(
            handle: Handle, description: Handle,
            alpha: *const c_void, a: u64, a_layout: Handle, b: u64, b_layout: Handle,
            beta: *const c_void, c: u64, c_layout: Handle, d: u64, d_layout: Handle,
            algorithm: *const Algorithm, workspace: u64, workspace_bytes: usize, stream: driver::Stream,
        );
    }
);

const COMPUTE_F32: c_int = 68;
const TRANSPOSE_A: c_int = 3;
const TRANSPOSE_B: c_int = 4;
const EPILOGUE: c_int = 7;
const BIAS_POINTER: c_int = 8;
const EPILOGUE_BIAS: i32 = 4;
const MAX_WORKSPACE_BYTES: c_int = 1;
const REDUCTION_SCHEMES: c_int = 3;
/// Parts of a sum that was split are kept apart in f32 and added in a fixed order; adding in place, in the result's own
/// type or in the order of arrival, is left out.
const REDUCE_IN_F32: u32 = 2;

fn describe(status: i32) -> String {
    let words = match status {
        1 => "not initialised",
        3 => "out of memory",
        7 => "invalid value",
        8 => "not for this GPU",
        13 => "failed on the GPU",
        15 => "not supported",
        _ => "see cublasStatus_t in NVIDIA's documentation",
    };
    format!("status {status}: {words}")
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Algorithm([u64; 8]);

/// Which product of a linear layer with `x` `[rows, inputs]` and `w` `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Product {
    /// `y = x w^T`, with or without a bias.
    Forward { bias: bool },
    /// `dx = dy w`.
    GradX,
    /// `dw = dy^T x`.
    GradW,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub product: Product,
    pub element: Element,
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// The result is added to a third matrix.
    pub plus: bool,
    /// The result is F32, whatever the operands are.
    pub exact: bool,
}

impl Shape {
    /// Of the result.
    fn result(&self) -> Element {
        if self.exact { Element::F32 } else { self.element }
    }

    fn name(&self) -> String {
        let product = match self.product {
            Product::Forward { bias: true } => "forward-bias",
            Product::Forward { bias: false } => "forward",
            Product::GradX => "grad-x",
            Product::GradW => "grad-w",
        };
        let plus = match (self.plus, self.exact) {
            (false, false) => "",
            (true, false) => "-plus",
            (false, true) => "-exact",
            (true, true) => "-plus-exact",
        };
        let element = self.element.suffix();
        format!(
            "linear {product}{plus} {element} {}x{}x{}",
            self.rows, self.inputs, self.outputs
        )
    }

    /// Elements of the operands `x` or `dy`, `w` or `x`, and the result.
    fn lens(&self) -> [usize; 3] {
        let (x, w, y) = (
            self.rows * self.inputs,
            self.inputs * self.outputs,
            self.rows * self.outputs,
        );
        match self.product {
            Product::Forward { .. } => [w, x, y],
            Product::GradX => [w, y, x],
            Product::GradW => [x, y, w],
        }
    }
}

/// What a product reads and writes. `plus` may be the result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub a: Address,
    pub b: Address,
    pub bias: Address,
    pub plus: Address,
    pub result: Address,
}

/// A shape with its algorithm.
pub(super) struct Plan {
    blas: Arc<Blas>,
    pub shape: Shape,
    layouts: [Handle; 3],
    transposed: [i32; 2],
    algorithm: Algorithm,
    pub workspace_bytes: usize,
}

// SAFETY: layouts are plain memory of the library's, which is only read after they are made.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

pub(super) struct Blas {
    gpu: Arc<Gpu>,
    lt: Lt,
    handle: Handle,
    pub file: String,
    pub version: usize,
}

// SAFETY: cuBLASLt's handle may be used from any thread.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// What algorithms may ask for.
const WORKSPACE_LIMIT: usize = 64 << 20;

impl Blas {
    /// # Errors
    /// When the library is missing or does not start.
    pub fn open(gpu: &Arc<Gpu>) -> Result<Arc<Self>> {
        let found = library::find(library::blas_for(gpu.card.driver))?;
        // SAFETY: the function is as its header says; it takes nothing and only answers.
        let version: unsafe extern "C" fn() -> usize =
            unsafe { library::function(&found.library, "cublasLtGetVersion")? };
        // SAFETY: as above.
        let version = unsafe { version() };
        let (lt, mut handle) = (Lt::bind(found.library)?, std::ptr::null_mut());
        // SAFETY: the GPU's context is current; the result goes to a local.
        unsafe { lt.cublasLtCreate(&mut handle)? };
        Ok(Arc::new(Self {
            gpu: gpu.clone(),
            lt,
            handle,
            file: found.file,
            version,
        }))
    }

    fn description(&self, shape: &Shape, transposed: [i32; 2], bias: Address) -> Result<Description<'_>> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: results go to a local; attributes are of the types that the library documents.
        unsafe {
            self.lt
                .cublasLtMatmulDescCreate(&mut handle, COMPUTE_F32, data_type(Element::F32))?;
            let description = Description { blas: self, handle };
            description.set(TRANSPOSE_A, &transposed[0])?;
            description.set(TRANSPOSE_B, &transposed[1])?;
            if shape.product == (Product::Forward { bias: true }) {
                description.set(EPILOGUE, &EPILOGUE_BIAS)?;
                description.set(BIAS_POINTER, &bias.0)?;
            }
            Ok(description)
        }
    }

    /// The best way to compute a product of this shape.
    ///
    /// # Errors
    /// When the library has none.
    fn plan(self: &Arc<Self>, shape: Shape, choices: &mut Choices, scratch: &mut Scratch) -> Result<Plan> {
        let Shape {
            rows, inputs, outputs, ..
        } = shape;
        // As (rows, columns) of column-major matrices; all are stored without gaps.
        let (x, w, y) = ((inputs, rows), (inputs, outputs), (outputs, rows));
        let (stored, transposed) = match shape.product {
            Product::Forward { .. } => ([w, x, y], [1, 0]),
            Product::GradX => ([w, y, x], [0, 0]),
            Product::GradW => ([x, y, w], [0, 1]),
        };
        let mut plan = Plan {
            blas: self.clone(),
            shape,
            layouts: [std::ptr::null_mut(); 3],
            transposed,
            algorithm: Algorithm([0; 8]),
            workspace_bytes: 0,
        };
        let kinds = [shape.element, shape.element, shape.result()].map(data_type);
        for ((layout, (rows, columns)), kind) in plan.layouts.iter_mut().zip(stored).zip(kinds) {
            // SAFETY: the result goes to a field of ours.
            unsafe {
                (self.lt).cublasLtMatrixLayoutCreate(layout, kind, rows as u64, columns as u64, rows as i64)?;
            }
        }
        let proposals = self.proposals(&plan)?;
        let name = shape.name();
        let position = match choices.get(&name) {
            Some(position) if position < proposals.len() => position,
            _ if !choices.timed => 0,
            _ => {
                let position = plan.fastest(&proposals, scratch)?;
                choices.set(name.clone(), position);
                position
            }
        };
        choices.note(name, position);
        plan.take(&proposals[position]);
        Ok(plan)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: plans hold the library, so none is left. A failure has nobody to tell.
        unsafe {
            let _ = self.gpu.enter();
            let _ = self.lt.cublasLtDestroy(self.handle);
        }
    }
}

struct Description<'a> {
    blas: &'a Blas,
    handle: Handle,
}

impl Description<'_> {
    /// # Safety
    /// `T` is the attribute's type.
    unsafe fn set<T>(&self, attribute: c_int, value: &T) -> Result<()> {
        let pointer = std::ptr::from_ref(value).cast();
        // SAFETY: as the caller says.
        unsafe { (self.blas.lt).cublasLtMatmulDescSetAttribute(self.handle, attribute, pointer, size_of::<T>()) }
    }
}

impl Drop for Description<'_> {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more. A failure has nobody to tell.
        let _ = unsafe { self.blas.lt.cublasLtMatmulDescDestroy(self.handle) };
    }
}

impl Plan {
    fn take(&mut self, proposal: &Proposal) {
        self.algorithm = proposal.algorithm;
        self.workspace_bytes = proposal.workspace_bytes;
    }

    /// Puts the product on a lane.
    ///
    /// # Errors
    /// What the library answers.
    pub fn run(&self, operands: &Operands, workspace: Address, lane: Lane) -> Result<()> {
        let (one, beta) = (1f32, if self.shape.plus { 1f32 } else { 0. });
        let Operands {
            a,
            b,
            bias,
            plus,
            result,
        } = *operands;
        let plus = if self.shape.plus { plus } else { result };
        let description = self.blas.description(&self.shape, self.transposed, bias)?;
        let [a_layout, b_layout, c_layout] = self.layouts;
        // SAFETY: layouts and addresses were made for this shape.
        unsafe {
            self.blas.lt.cublasLtMatmul(
                self.blas.handle,
                description.handle,
                (&raw const one).cast(),
                a.0,
                a_layout,
                b.0,
                b_layout,
                (&raw const beta).cast(),
                plus.0,
                c_layout,
                result.0,
                c_layout,
                &self.algorithm,
                workspace.0,
                self.workspace_bytes,
                self.blas.gpu.stream(lane),
            )
        }
        .map_err(|source| failed(&format!("cuBLASLt on {}", self.shape.name()), source.to_string()))
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
            // SAFETY: nobody uses it any more. A failure has nobody to tell.
            let _ = unsafe { self.blas.lt.cublasLtMatrixLayoutDestroy(layout) };
        }
    }
}

fn data_type(element: Element) -> c_int {
    match element {
        Element::F32 => 0,
        Element::F16 => 2,
        Element::Bf16 => 14,
    }
}

/// All plans so far, by shape.
pub(super) struct Plans {
    blas: Arc<Blas>,
    plans: HashMap<Shape, Arc<Plan>>,
}

impl Plans {
    pub fn new(blas: Arc<Blas>) -> Self {
        Self {
            blas,
            plans: HashMap::new(),
        }
    }

    /// Programs that were made of them keep theirs.
    pub fn forget(&mut self) {
        self.plans.clear();
    }

    /// # Errors
    /// When the library has no way to compute it.
    pub fn of(&mut self, shape: Shape, choices: &mut Choices, scratch: &mut Scratch) -> Result<Arc<Plan>> {
        if let Some(plan) = self.plans.get(&shape) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(self.blas.plan(shape, choices, scratch)?);
        self.plans.insert(shape, plan.clone());
        Ok(plan)
    }
}
