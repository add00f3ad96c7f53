//! `doctor`: what was found, what would be used, and why.

use std::path::Path;
use std::process::ExitCode;

use trainer::device;
use trainer::engine::cuda::{self, library};
use trainer::engine::session::EngineError;

#[derive(clap::Args)]
pub struct DoctorArgs {
    /// One line of JSON for programs
    #[arg(long)]
    json: bool,
    /// Only whether the libraries that a GPU needs are here: exit status 0 when they are
    #[arg(long, conflicts_with = "json")]
    libraries: bool,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    if args.libraries {
        for wanted in libraries() {
            println!("{:<9} {}", wanted.title, library::find(wanted)?.file);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let info = device::open(None)?.describe();
    if args.json {
        println!("{}", serde_json::to_string(&info)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("trainer   {}, {} build", env!("CARGO_PKG_VERSION"), device::build());
    println!("GPU       {}", gpu().unwrap_or_else(|error| error.to_string()));
    match cuda::card() {
        Ok(card) => println!("driver    {}", library::advice(card.driver)),
        Err(_) => println!("driver    none: a GPU needs NVIDIA's driver, 525 or newer (580 or newer for CUDA 13)"),
    }
    for wanted in libraries() {
        let file = library::find(wanted).map(|found| found.file);
        println!("{:<9} {}", wanted.title, file.unwrap_or_else(|error| error.to_string()));
    }
    println!("CPU       {} threads", rayon::current_num_threads());
    if let Some(bytes) = device::available_memory_bytes() {
        println!("memory    {:.1} GiB free", gib(bytes));
    }
    if let Ok(disk) = rustix::fs::statvfs(Path::new(".")) {
        println!("disk      {:.1} GiB free here", gib(disk.f_bavail * disk.f_frsize));
    }
    println!("used      {}: {}", info.name, info.why);
    Ok(ExitCode::SUCCESS)
}

/// Those that the driver that is here runs.
fn libraries() -> [&'static library::Wanted; 2] {
    let newest = i32::MAX;
    let driver = cuda::card().map_or(newest, |card| card.driver);
    [library::blas_for(driver), &library::DNN]
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

fn gpu() -> Result<String, EngineError> {
    let card = cuda::card()?;
    let (major, minor) = card.capability;
    let dtype = if card.has_bf16() {
        "bf16"
    } else {
        "fp16 with a loss scale, since it has no bf16"
    };
    let kernels = match card.compiled_by_driver {
        true => format!(
            "kernels for {}.{} that the driver compiles",
            card.kernels.0, card.kernels.1
        ),
        false => format!("kernels for {}.{}", card.kernels.0, card.kernels.1),
    };
    Ok(format!(
        "{}, compute capability {major}.{minor}, {:.1} GiB, driver for CUDA {}.{}; {kernels}; computes in {dtype}",
        card.name,
        gib(card.memory_bytes),
        card.driver / 1000,
        card.driver % 1000 / 10,
    ))
}
