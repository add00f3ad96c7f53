//! Hangs a result that was computed outside candle's graph into it, with its own backward.
//!
//! candle asks a custom op for its output and, later, for the gradients of its inputs. Here the output is already
//! there when the op is applied, and the backward is a closure that holds what the forward kept.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Error, Layout, Result, Shape, Storage,
    Tensor, backend::BackendStorage,
};

/// Gradients of the inputs, in their order; none where [`needs`] said that nobody asks.
pub(super) type Grads = Vec<Option<Tensor>>;

type Backward = Box<dyn Fn(&Tensor) -> Result<Grads> + Send + Sync>;

/// A finished forward.
pub(super) enum Output {
    /// Values on the CPU, taken over without a copy.
    Host(Vec<f32>, Shape),
    Tensor(Tensor),
}

impl Output {
    pub fn host(values: Vec<f32>, shape: impl Into<Shape>) -> Self {
        Self::Host(values, shape.into())
    }
}

/// Which inputs a gradient is wanted for.
pub(super) fn needs<const N: usize>(inputs: [&Tensor; N]) -> [bool; N] {
    inputs.map(Tensor::track_op)
}

/// `output` as a function of `inputs` (1 to 3 of them).
///
/// `backward` must not hold a tensor of the graph itself, only detached ones: the graph would hold itself alive.
pub(super) fn attach(
    name: &'static str,
    output: Output,
    inputs: &[&Tensor],
    backward: impl Fn(&Tensor) -> Result<Grads> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !inputs.iter().any(|input| input.track_op()) {
        return match output {
            Output::Host(values, shape) => Tensor::from_vec(values, shape, &Device::Cpu),
            Output::Tensor(tensor) => Ok(tensor.detach()),
        };
    }
    let node = Node {
        name,
        output: Mutex::new(Some(output)),
        backward: Box::new(backward),
    };
    match inputs {
        [a] => a.apply_op1(node),
        [a, b] => a.apply_op2(b, node),
        [a, b, c] => a.apply_op3(b, c, node),
        _ => Err(Error::Msg(format!("{name}: a node of {} inputs", inputs.len()))),
    }
}

struct Node {
    name: &'static str,
    output: Mutex<Option<Output>>,
    backward: Backward,
}

impl Node {
    fn take(&self) -> Result<Output> {
        let taken = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| Error::Msg(format!("{}: applied twice", self.name)))
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Output::Host(values, shape) => Ok((CpuStorage::F32(values), shape)),
            Output::Tensor(tensor) => {
                let tensor = tensor.contiguous()?;
                let (storage, layout) = tensor.storage_and_layout();
                match &*storage {
                    Storage::Cpu(storage) => Ok((copy(storage, layout)?, layout.shape().clone())),
                    _ => Err(Error::Msg(format!("{}: the result is on another device", self.name))),
                }
            }
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        let Output::Tensor(tensor) = self.take()? else {
            return Err(Error::Msg(format!("{}: the result is on another device", self.name)));
        };
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => Err(Error::Msg(format!("{}: the result is on another device", self.name))),
        }
    }

    fn backward(&self, grad: &Tensor) -> Result<Grads> {
        (self.backward)(&grad.contiguous()?)
    }
}

/// `try_clone` copies the whole storage, of which the tensor may be a part.
fn copy(storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
    if layout.start_offset() == 0 {
        return storage.try_clone(layout);
    }
    let mut out = match storage {
        CpuStorage::F32(_) => CpuStorage::F32(vec![0.; layout.shape().elem_count()]),
        CpuStorage::F64(_) => CpuStorage::F64(vec![0.; layout.shape().elem_count()]),
        _ => return Err(Error::Msg("a node's result must be f32 or f64 on the CPU".into())),
    };
    storage.copy_strided_src(&mut out, 0, layout)?;
    Ok(out)
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut grads = self.backward(grad)?.into_iter();
        Ok(grads.next().flatten())
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten()))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten(), grads.next().flatten()))
    }
}

/// Whether the own CPU kernels take these tensors.
pub(super) fn on_host(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
}

/// The values of f32 tensors on the CPU, contiguous.
pub(super) fn with_slices<const N: usize, R>(tensors: [&Tensor; N], read: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(CpuStorage::F32(values)) = &**storage else {
            return Err(Error::Msg("an f32 tensor on the CPU was expected".into()));
        };
        let start = layout.start_offset();
        *slice = &values[start..start + layout.shape().elem_count()];
    }
    Ok(read(slices))
}
