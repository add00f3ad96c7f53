//! With the feature `cuda`, compiles `kernels/*.cu` for the GPUs that the program is meant for and lists the results in
//! `kernels.rs`. `NVCC` names the compiler, `LIKENESS_CUDA_ARCHS` the compute capabilities (such as `90`, for a fast build on
//! the way); the last of them is also kept as PTX, which newer GPUs compile for themselves. `75-ptx` is PTX alone: any GPU since
//! Turing then runs what Turing runs.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Turing, Ampere, Ada, Hopper.
const ARCHITECTURES: &str = "75,80,86,89,90";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "LIKENESS_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut sources: Vec<PathBuf> = (std::fs::read_dir("kernels")?)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    let images: Vec<PathBuf> = (sources.iter())
        .map(|source| out.join(source.with_extension("fatbin").file_name().unwrap_or_default()))
        .collect();
    let mut jobs = Vec::new();
    // Two at a time: more only fill small machines' memory.
    for (source, image) in sources.iter().zip(&images) {
        jobs.push(compile(source, image)?);
        if jobs.len() == 2 {
            jobs.drain(..).try_for_each(finish)?;
        }
    }
    jobs.into_iter().try_for_each(finish)?;
    let mut list = String::from("(&[\n");
    for (source, image) in sources.iter().zip(&images) {
        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        writeln!(
            list,
            "    ({name:?}, include_bytes!({:?})),",
            image.display().to_string()
        )?;
    }
    list.push_str("], &[\n");
    for Target { capability, ptx } in targets()? {
        let (major, minor) = (capability / 10, capability % 10);
        writeln!(list, "    Built {{ capability: ({major}, {minor}), ptx: {ptx} }},")?;
    }
    list.push_str("])\n");
    Ok(std::fs::write(out.join("kernels.rs"), list)?)
}

/// What kernels are compiled for.
struct Target {
    capability: u32,
    /// Not to machine code but to what a driver compiles, for this capability or any later one.
    ptx: bool,
}

fn targets() -> Result<Vec<Target>, Box<dyn Error>> {
    let wanted = std::env::var("LIKENESS_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let mut targets = Vec::new();
    for one in wanted.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let (number, ptx) = one.strip_suffix("-ptx").map_or((one, false), |number| (number, true));
        let capability = number.parse().map_err(|_| {
            format!("LIKENESS_CUDA_ARCHS: `{one}` is no compute capability such as 90, and none such as 75-ptx")
        })?;
        targets.push(Target { capability, ptx });
    }
    let newest = targets
        .last()
        .ok_or("LIKENESS_CUDA_ARCHS names no compute capability")?;
    if !newest.ptx {
        let capability = newest.capability;
        targets.push(Target { capability, ptx: true });
    }
    Ok(targets)
}

struct Job {
    command: String,
    child: std::process::Child,
}

fn compile(source: &Path, image: &Path) -> Result<Job, Box<dyn Error>> {
    let nvcc = std::env::var("NVCC").unwrap_or_else(|_| match std::env::var("CUDA_HOME") {
        Ok(home) => format!("{home}/bin/nvcc"),
        Err(_) => "nvcc".to_owned(),
    });
    let mut command = Command::new(&nvcc);
    command.args(["--fatbin", "-O3", "--std=c++17", "--expt-relaxed-constexpr"]);
    for Target { capability, ptx } in targets()? {
        let code = if ptx { "compute" } else { "sm" };
        command.arg(format!("-gencode=arch=compute_{capability},code={code}_{capability}"));
    }
    command.arg("-o").arg(image).arg(source);
    let text = format!("{command:?}");
    let child = command.spawn().map_err(|error| {
        format!("{nvcc}: {error}; `scripts/cuda.sh build` brings a compiler, or set NVCC or CUDA_HOME to yours")
    })?;
    Ok(Job { command: text, child })
}

fn finish(mut job: Job) -> Result<(), Box<dyn Error>> {
    match job.child.wait()?.success() {
        true => Ok(()),
        false => Err(format!("the compiler of the kernels failed: {}", job.command).into()),
    }
}
