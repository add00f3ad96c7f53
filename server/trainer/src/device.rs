//! What the engine computes on, in words and as candle's device.

use app::api::DeviceInfo;
use candle_core::Device;

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("this build has no CUDA; use likeness-trainer-cuda, or --device cpu")]
    NoCuda,
    #[error("cannot use the GPU")]
    Cuda(#[source] candle_core::Error),
    #[error("unknown device `{0}`; known: cpu, cuda")]
    Unknown(String),
}

/// Opens the device named on the command line; without a name, the one this build is for.
///
/// # Errors
/// When there is no such device, or this build cannot use it.
pub fn open(name: Option<&str>) -> Result<Device, DeviceError> {
    match name.unwrap_or(build()) {
        "cpu" => Ok(Device::Cpu),
        "cuda" if cfg!(feature = "cuda") => Device::new_cuda(0).map_err(DeviceError::Cuda),
        "cuda" => Err(DeviceError::NoCuda),
        other => Err(DeviceError::Unknown(other.into())),
    }
}

/// Which build this is: `cpu` or `cuda`.
pub fn build() -> &'static str {
    if cfg!(feature = "cuda") { "cuda" } else { "cpu" }
}

/// Describes an opened device.
pub fn describe(device: &Device) -> DeviceInfo {
    match device {
        Device::Cpu => DeviceInfo {
            trainer: "cpu".into(),
            name: format!("CPU, {} threads", rayon::current_num_threads()),
            memory_bytes: available_memory_bytes(),
            why: match build() {
                "cpu" => "This build computes on the CPU.".into(),
                _ => "The CPU was asked for.".into(),
            },
        },
        _ => DeviceInfo {
            trainer: "cuda".into(),
            name: "NVIDIA GPU".into(),
            memory_bytes: None,
            why: "A GPU answers.".into(),
        },
    }
}

/// Memory that programs can still get, as the kernel estimates it.
pub fn available_memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
