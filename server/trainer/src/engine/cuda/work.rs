//! Instructions turned into work for the GPU: launches of our kernels, matrix products, convolutions, copies.

use std::sync::Arc;

use super::{
    super::session::Result,
    blas,
    call::{Address, Call},
    dnn,
    gpu::Gpu,
    graph,
};

pub(super) enum Work {
    Kernel(Call),
    Product(Arc<blas::Plan>, blas::Operands),
    Convolution(Arc<dnn::Plan>, dnn::Operands),
    Copy { from: Address, to: Address, bytes: usize },
}

impl Work {
    /// What it asks of the memory that all work shares.
    fn workspace_bytes(&self) -> usize {
        match self {
            Self::Product(plan, _) => plan.workspace_bytes,
            Self::Convolution(plan, _) => plan.workspace_bytes,
            Self::Kernel(_) | Self::Copy { .. } => 0,
        }
    }
}

/// The work of one instruction, by its name.
pub(super) struct Step {
    pub name: &'static str,
    pub work: Vec<Work>,
}

/// Work with everything that the libraries want to know before it runs.
enum Ready {
    Kernel(Call),
    Product(Arc<blas::Plan>, blas::Operands),
    Convolution(Arc<dnn::Plan>, dnn::Bound),
    Copy { from: Address, to: Address, bytes: usize },
}

/// A list of work that can be put on the stream again and again.
pub(super) struct List {
    gpu: Arc<Gpu>,
    steps: Vec<(&'static str, Vec<Ready>)>,
    workspace: Address,
}

/// Bytes that the libraries need besides, for any of the work at a time.
pub(super) fn workspace_bytes(steps: &[Step]) -> usize {
    let all = steps.iter().flat_map(|step| &step.work);
    all.map(Work::workspace_bytes).max().unwrap_or(0)
}

impl List {
    /// # Errors
    /// What the libraries answer.
    pub fn new(gpu: &Arc<Gpu>, steps: Vec<Step>, workspace: Address) -> Result<Self> {
        let ready = |work| {
            Ok(match work {
                Work::Kernel(call) => Ready::Kernel(call),
                Work::Product(plan, operands) => Ready::Product(plan, operands),
                Work::Convolution(plan, operands) => {
                    let bound = plan.bind(operands, workspace)?;
                    Ready::Convolution(plan, bound)
                }
                Work::Copy { from, to, bytes } => Ready::Copy { from, to, bytes },
            })
        };
        let steps = (steps.into_iter())
            .map(|step| Ok((step.name, step.work.into_iter().map(ready).collect::<Result<_>>()?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            gpu: gpu.clone(),
            steps,
            workspace,
        })
    }

    /// Puts everything on the stream, in order.
    ///
    /// # Errors
    /// What the driver and the libraries answer.
    pub fn issue(&self) -> Result<()> {
        let all = self.steps.iter().flat_map(|(_, work)| work);
        all.into_iter().try_for_each(|work| self.start(work))
    }

    /// Milliseconds of each instruction by itself, with its name.
    ///
    /// # Errors
    /// What the driver and the libraries answer.
    pub fn time_each(&self) -> Result<Vec<(&'static str, f32)>> {
        let time = |work: &Vec<Ready>| graph::time(&self.gpu, || work.iter().try_for_each(|work| self.start(work)));
        self.steps.iter().map(|(name, work)| Ok((*name, time(work)?))).collect()
    }

    fn start(&self, work: &Ready) -> Result<()> {
        match work {
            Ready::Kernel(call) => self.gpu.launch(call),
            Ready::Product(plan, operands) => plan.run(operands, self.workspace),
            Ready::Convolution(plan, bound) => plan.run(bound),
            Ready::Copy { from, to, bytes } => self.gpu.copy(*from, *to, *bytes),
        }
    }
}
