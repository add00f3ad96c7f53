//! What the engine computes on, in words and as a session.

use app::api::DeviceInfo;

use crate::engine::cpu::CpuSession;
use crate::engine::ir::ParamTable;
use crate::engine::session::{EngineError, OptimizerSettings, Session};

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("this build has no CUDA; use likeness-trainer-cuda, or --device cpu")]
    NoCuda,
    #[error("unknown device `{0}`; known: cpu, cuda")]
    Unknown(String),
}

/// An opened device.
#[derive(Clone, Debug)]
pub enum Device {
    Cpu,
}

/// Opens the device named on the command line; without a name, the one this build is for.
///
/// # Errors
/// When there is no such device, or this build cannot use it.
pub fn open(name: Option<&str>) -> Result<Device, DeviceError> {
    match name.unwrap_or(build()) {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Err(DeviceError::NoCuda),
        other => Err(DeviceError::Unknown(other.into())),
    }
}

/// Which build this is: `cpu` or `cuda`.
pub fn build() -> &'static str {
    if cfg!(feature = "cuda") { "cuda" } else { "cpu" }
}

impl Device {
    /// Room for weights, all zero as yet, and for what runs on them.
    ///
    /// # Errors
    /// When there is less memory than the weights need.
    pub fn session(&self, params: ParamTable, optimizer: OptimizerSettings) -> Result<Box<dyn Session>, EngineError> {
        match self {
            Self::Cpu => Ok(Box::new(CpuSession::new(params, optimizer)?)),
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
                    _ => "The CPU was asked for.".into(),
                },
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
