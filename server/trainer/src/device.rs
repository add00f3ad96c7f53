//! What the engine computes on, in words and as a session.

use std::sync::Arc;

use app::api::DeviceInfo;
use app::recipe::Precision;

use crate::engine::cpu::{self, CpuSession};
use crate::engine::cuda;
use crate::engine::cuda::call::Element;
use crate::engine::cuda::session::{CudaSession, Settings};
use crate::engine::footprint::{Footprint, Kept};
use crate::engine::ir::{ParamTable, Program};
use crate::engine::session::{EngineError, OptimizerSettings, Session};

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("this build has no CUDA; use likeness-trainer-cuda, or --device cpu")]
    NoCuda,
    #[error("cannot use the GPU")]
    Cuda(#[source] EngineError),
    #[error("unknown device `{0}`; known: cpu, cuda")]
    Unknown(String),
}

/// An opened device.
#[derive(Clone, Debug)]
pub enum Device {
    Cpu,
    Cuda(Arc<cuda::device::Device>),
}

/// Opens the device named on the command line; without a name, the GPU where this build can use one, else the CPU.
///
/// # Errors
/// When there is no such device, or this build cannot use it.
pub fn open(name: Option<&str>) -> Result<Device, DeviceError> {
    match (name, build()) {
        (Some("cpu"), _) | (None, "cpu") => Ok(Device::Cpu),
        (Some("cuda"), "cpu") => Err(DeviceError::NoCuda),
        (Some("cuda"), _) => Ok(Device::Cuda(cuda::device::Device::open().map_err(DeviceError::Cuda)?)),
        (None, _) => Ok(cuda::device::Device::open().map_or_else(
            |error| {
                tracing::warn!("computing on the CPU: {error}");
                Device::Cpu
            },
            Device::Cuda,
        )),
        (Some(other), _) => Err(DeviceError::Unknown(other.into())),
    }
}

/// Which build this is: `cpu` or `cuda`.
pub fn build() -> &'static str {
    if cfg!(feature = "cuda") { "cuda" } else { "cpu" }
}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub free: u64,
    pub used: u64,
}

fn element(precision: Precision) -> Element {
    match precision {
        Precision::No => Element::F32,
        Precision::Fp16 => Element::F16,
        Precision::Bf16 => Element::Bf16,
    }
}

impl Device {
    /// Room for weights, all zero as yet, and for what runs on them. Networks compute in `precision`, the CPU always in
    /// f32; trained weights are exact f32 in any case.
    ///
    /// # Errors
    /// When there is less memory than the weights need, or the device does not compute in that precision.
    pub fn session(
        &self,
        params: ParamTable,
        optimizer: OptimizerSettings,
        precision: Precision,
    ) -> Result<Box<dyn Session>, EngineError> {
        match self {
            Self::Cpu => Ok(Box::new(CpuSession::new(params, optimizer)?)),
            Self::Cuda(device) => {
                let settings = Settings {
                    element: element(precision),
                    optimizer,
                    eager: false,
                    poison: false,
                };
                Ok(Box::new(CudaSession::new(params, settings, device)?))
            }
        }
    }

    /// What a session of [`Self::session`] is going to hold once it has run `programs`, with what is kept besides
    /// where any of them learns.
    ///
    /// # Errors
    /// When a program does what the session cannot.
    pub fn footprint<'a>(
        &self,
        params: &ParamTable,
        optimizer: &OptimizerSettings,
        precision: Precision,
        kept: Kept,
        programs: impl IntoIterator<Item = &'a Program>,
    ) -> Result<Footprint, EngineError> {
        match self {
            Self::Cpu => cpu::footprint::footprint(params, optimizer, kept, programs),
            Self::Cuda(_) => cuda::footprint::footprint(params, element(precision), optimizer, kept, programs),
        }
    }

    /// What is free of its memory, and what is in use: of a GPU's as the driver counts it for all programs, this one's
    /// context among them. What the CPU's other programs use is not ours to plan. `None` where the system does not say.
    pub fn memory(&self) -> Option<Memory> {
        match self {
            Self::Cpu => available_memory_bytes().map(|free| Memory { free, used: 0 }),
            Self::Cuda(device) => {
                let (free, total) = device.memory().ok()?;
                let used = total - free;
                Some(Memory { free, used })
            }
        }
    }

    /// What training computes in when `wanted` is asked for: on the CPU f32; on a GPU that, or 16 bits where nothing is
    /// asked for, and bf16 only where the card has it.
    pub fn precision(&self, wanted: Option<Precision>) -> Precision {
        match self {
            Self::Cpu => Precision::No,
            Self::Cuda(device) => precision_on_gpu(wanted, device.card().has_bf16()),
        }
    }

    /// What drawing with a finished model computes in.
    pub fn precision_of_drawing(&self) -> Precision {
        match self {
            Self::Cpu => Precision::No,
            Self::Cuda(_) => Precision::Fp16,
        }
    }

    pub fn describe(&self) -> DeviceInfo {
        match self {
            Self::Cpu => DeviceInfo {
                trainer: "cpu".into(),
                name: format!("CPU, {} threads", rayon::current_num_threads()),
                memory_bytes: available_memory_bytes(),
                why: match build() {
                    "cpu" => "This build computes on the CPU.".into(),
                    _ => "The CPU was asked for, or no GPU can be used.".into(),
                },
            },
            Self::Cuda(device) => DeviceInfo {
                trainer: "cuda".into(),
                name: device.card().name.clone(),
                memory_bytes: Some(device.card().memory_bytes),
                why: "A GPU answers, and its libraries load.".into(),
            },
        }
    }
}

fn precision_on_gpu(wanted: Option<Precision>, has_bf16: bool) -> Precision {
    match wanted {
        Some(Precision::No) => Precision::No,
        None | Some(Precision::Bf16) if has_bf16 => Precision::Bf16,
        _ => Precision::Fp16,
    }
}

/// Memory that programs can still get, as the kernel estimates it.
pub fn available_memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dreambooth::scaler::LossScaler;

    #[test]
    fn a_gpu_without_bf16_computes_in_fp16_with_a_loss_scale() {
        for wanted in [None, Some(Precision::Bf16), Some(Precision::Fp16)] {
            let precision = precision_on_gpu(wanted, false);
            assert_eq!(precision, Precision::Fp16);
            assert!(LossScaler::new(precision).is_on());
        }
        let with_bf16 =
            [None, Some(Precision::Bf16), Some(Precision::Fp16)].map(|wanted| precision_on_gpu(wanted, true));
        assert_eq!(with_bf16, [Precision::Bf16, Precision::Bf16, Precision::Fp16]);
        assert!(!LossScaler::new(Precision::Bf16).is_on());
    }

    #[test]
    fn a_gpu_computes_in_f32_where_that_is_asked_for() {
        for has_bf16 in [false, true] {
            assert_eq!(precision_on_gpu(Some(Precision::No), has_bf16), Precision::No);
        }
    }
}
