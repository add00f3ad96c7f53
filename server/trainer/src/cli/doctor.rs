//! `doctor`: what was found, what would be used, and why.

use std::process::ExitCode;

use trainer::device;

#[derive(clap::Args)]
pub struct DoctorArgs {
    /// One line of JSON for programs
    #[arg(long)]
    json: bool,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let info = device::open(None)?.describe();
    if args.json {
        println!("{}", serde_json::to_string(&info)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("trainer  {} {}", info.trainer, env!("CARGO_PKG_VERSION"));
    println!("device   {}", info.name);
    if let Some(bytes) = info.memory_bytes {
        println!("memory   {:.1} GiB free", bytes as f64 / f64::from(1 << 30));
    }
    println!("why      {}", info.why);
    Ok(ExitCode::SUCCESS)
}
