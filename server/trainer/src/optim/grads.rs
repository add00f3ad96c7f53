//! Gradients of all trained tensors by name: gathered, checked, summed over micro-batches, measured.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Storage, Tensor, Var};
use rayon::prelude::*;

/// Values summed as one run, so that the sum does not depend on the number of threads.
const RUN: usize = 1 << 14;

#[derive(Debug, thiserror::Error)]
pub enum GradError {
    #[error("`{0}` gets no gradient: something between it and the loss does not pass it on")]
    Missing(String),
    #[error("the gradient of `{0}` is zero everywhere: it would not learn")]
    Zero(String),
    #[error("the gradient of `{0}` is not finite")]
    NotFinite(String),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Gradients in the order of their names. Contiguous f32.
pub struct Grads(BTreeMap<String, Tensor>);

impl Grads {
    /// Takes each variable's gradient times `scale` out of `store`. With `scale` 1 nothing is copied.
    ///
    /// # Errors
    /// `Missing` when one has none: it would silently stay as it is.
    pub fn take(vars: &BTreeMap<String, Var>, mut store: GradStore, scale: f64) -> Result<Self, GradError> {
        let mut grads = BTreeMap::new();
        for (name, var) in vars {
            let grad = store
                .remove(var.as_tensor())
                .ok_or_else(|| GradError::Missing(name.clone()))?
                .detach()
                .to_dtype(DType::F32)?
                .contiguous()?;
            // Exact where accumulation is a power of two.
            let grad = if scale == 1.0 { grad } else { (grad * scale)? };
            grads.insert(name.clone(), grad);
        }
        Ok(Self(grads))
    }

    /// Adds another micro-batch's.
    ///
    /// # Errors
    /// When shapes differ.
    pub fn plus(self, other: Self) -> Result<Self, GradError> {
        let mut sums = BTreeMap::new();
        for ((name, a), b) in self.0.into_iter().zip(other.0.into_values()) {
            sums.insert(name, (a + b)?);
        }
        Ok(Self(sums))
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.0.iter()
    }

    /// Every trained tensor gets a finite gradient that is not all zero, but for those that `may_be_zero`.
    ///
    /// # Errors
    /// Names the first tensor that would not learn.
    pub fn check(&self, may_be_zero: impl Fn(&str) -> bool) -> Result<(), GradError> {
        for (name, grad) in &self.0 {
            let squares = sum_of_squares(grad)?;
            if !squares.is_finite() {
                return Err(GradError::NotFinite(name.clone()));
            }
            if squares == 0.0 && !may_be_zero(name) {
                return Err(GradError::Zero(name.clone()));
            }
        }
        Ok(())
    }

    /// One L2 norm over all tensors together.
    ///
    /// # Errors
    /// Those of reading the tensors.
    pub fn norm(&self) -> Result<f64, GradError> {
        let mut total = 0.0;
        for grad in self.0.values() {
            total += sum_of_squares(grad)?;
        }
        Ok(total.sqrt())
    }
}

fn sum_of_squares(grad: &Tensor) -> Result<f64, candle_core::Error> {
    let (storage, layout) = grad.storage_and_layout();
    let values = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => &values[start..end],
        _ => {
            drop(storage);
            let sum = grad.sqr()?.sum_all()?.to_scalar::<f32>()?;
            return Ok(f64::from(sum));
        }
    };
    let runs: Vec<f64> = values
        .par_chunks(RUN)
        .map(|run| run.iter().map(|v| f64::from(*v) * f64::from(*v)).sum())
        .collect();
    Ok(runs.iter().sum())
}
