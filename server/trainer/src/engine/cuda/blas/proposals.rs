//! What cuBLASLt proposes for a product, and which of it is fastest.

use std::ffi::{c_int, c_void};

use super::{
    super::{super::session::Result, call::Address, choices, gpu::Lane, graph, library::failed, scratch::Scratch},
    Algorithm, Blas, MAX_WORKSPACE_BYTES, Operands, Plan, REDUCE_IN_F32, REDUCTION_SCHEMES, WORKSPACE_LIMIT,
};

/// The library lists the likely ones first; twice as many took 0.7 s longer to time and were no faster.
const PROPOSALS: usize = 6;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Proposal {
    pub(super) algorithm: Algorithm,
    pub(super) workspace_bytes: usize,
    status: i32,
    waves: f32,
    reserved: [i32; 4],
}

impl Proposal {
    const EMPTY: Self = Self {
        algorithm: Algorithm([0; 8]),
        workspace_bytes: 0,
        status: 1,
        waves: 0.,
        reserved: [0; 4],
    };
}

impl Blas {
    /// # Errors
    /// When the library has none that works.
    pub(super) fn proposals(&self, plan: &Plan) -> Result<Vec<Proposal>> {
        // Heuristics look at the bias's presence, not at where it is.
        let description = self.description(&plan.shape, plan.transposed, Address(256))?;
        let mut preference = std::ptr::null_mut();
        let mut proposals = [Proposal::EMPTY; PROPOSALS];
        let mut count = 0;
        let (limit, schemes) = (WORKSPACE_LIMIT, REDUCE_IN_F32);
        let [a, b, c] = plan.layouts;
        // SAFETY: handles are ours, results go to locals of the counts that are given.
        let asked = unsafe {
            self.lt.cublasLtMatmulPreferenceCreate(&mut preference)?;
            let set = |attribute, value: *const c_void, bytes| {
                (self.lt).cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, bytes)
            };
            set(MAX_WORKSPACE_BYTES, (&raw const limit).cast(), size_of::<usize>())
                .and_then(|()| set(REDUCTION_SCHEMES, (&raw const schemes).cast(), size_of::<u32>()))
                .and_then(|()| {
                    self.lt.cublasLtMatmulAlgoGetHeuristic(
                        self.handle,
                        description.handle,
                        a,
                        b,
                        c,
                        c,
                        preference,
                        PROPOSALS as c_int,
                        proposals.as_mut_ptr(),
                        &mut count,
                    )
                })
        };
        // SAFETY: nobody uses it any more.
        unsafe { self.lt.cublasLtMatmulPreferenceDestroy(preference)? };
        let name = plan.shape.name();
        asked.map_err(|source| failed(&format!("cuBLASLt on {name}"), source.to_string()))?;
        let usable: Vec<Proposal> = (proposals[..count as usize].iter())
            .filter(|proposal| proposal.status == 0)
            .copied()
            .collect();
        if usable.is_empty() {
            return Err(failed(&format!("cuBLASLt on {name}"), "has no algorithm"));
        }
        Ok(usable)
    }
}

impl Plan {
    /// Tries all proposals on memory of its own.
    pub(super) fn fastest(&mut self, proposals: &[Proposal], scratch: &mut Scratch) -> Result<usize> {
        if proposals.len() == 1 {
            return Ok(0);
        }
        let (bytes, lens) = (self.shape.element.bytes(), self.shape.lens());
        let result = lens[2] * self.shape.result().bytes();
        let sizes = [lens[0] * bytes, lens[1] * bytes, result, self.shape.outputs * bytes];
        let workspace = proposals
            .iter()
            .map(|proposal| proposal.workspace_bytes)
            .max()
            .unwrap_or(0);
        let [a, b, result, bias, workspace] = scratch.places([sizes[0], sizes[1], sizes[2], sizes[3], workspace])?;
        let plus = result;
        let operands = Operands {
            a,
            b,
            bias,
            plus,
            result,
        };
        let mut times = Vec::new();
        for proposal in proposals {
            self.take(proposal);
            let best = choices::least(&times);
            let run = || self.run(&operands, workspace, Lane::Main);
            times.push(graph::time_against(best, &self.blas.gpu, run).ok());
        }
        let name = self.shape.name();
        choices::best(&times).ok_or_else(|| failed(&format!("cuBLASLt on {name}"), "has no algorithm that works"))
    }
}
