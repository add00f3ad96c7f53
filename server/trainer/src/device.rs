//! What the engine computes on, in words and as a session.

use std::sync::Arc;

use app::api::DeviceInfo;
use app::recipe::Precision;

use crate::engine::cpu::CpuSession;
use crate::engine::cuda;
use crate::engine::cuda::call::Element;
use crate::engine::cuda::session::{CudaSession, Settings};
use crate::engine::ir::ParamTable;
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
                    element: match precision {
                        Precision::No => Element::F32,
                        Precision::Fp16 => Element::F16,
                        Precision::Bf16 => Element::Bf16,
                    },
                    optimizer,
                    eager: false,
                    poison: false,
                };
                Ok(Box::new(CudaSession::new(params, settings, device)?))
            }
        }
    }

    /// What training computes in when `wanted` is asked for: on the CPU f32; on a GPU 16 bits, unless it is `exactly`
    /// f32 that is meant, and bf16 only where the card has it.
    pub fn precision(&self, wanted: Precision, exactly: bool) -> Precision {
        let Self::Cuda(device) = self else { return Precision::No };
        match (wanted, device.usual_element()) {
            (Precision::No, _) if exactly => Precision::No,
            (Precision::Fp16, _) | (_, Element::F16) => Precision::Fp16,
            (Precision::No | Precision::Bf16, _) => Precision::Bf16,
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

/// Memory that programs can still get, as the kernel estimates it.
pub fn available_memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
