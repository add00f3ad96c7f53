//! `selftest`: the GPU build checks itself on the card that it runs on.

use std::process::ExitCode;

use trainer::engine::cuda::device::Device;
use trainer::engine::cuda::selftest::{self, Check};

#[derive(clap::Args)]
pub struct SelftestArgs {
    /// Every check, not only those that fail
    #[arg(long, short)]
    verbose: bool,
}

pub fn run(args: &SelftestArgs) -> anyhow::Result<ExitCode> {
    let device = Device::open_without_timing()?;
    println!("{:?}", device.card());
    println!("cuBLASLt {}, cuDNN {}", device.files[0], device.files[1]);
    let (mut passed, mut failed) = (0, 0);
    selftest::run(&device, &mut |check| {
        let Check { name, error, tolerance } = &check;
        let verdict = if check.passed() { "ok  " } else { "FAIL" };
        if args.verbose || !check.passed() {
            println!("{verdict} {error:9.2e} of {tolerance:7.1e}  {name}");
        }
        *(if check.passed() { &mut passed } else { &mut failed }) += 1;
    })?;
    println!("{passed} checks passed, {failed} failed");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
