//! `selftest`: the GPU build checks itself on the card that it runs on.

mod golden;

use std::path::PathBuf;
use std::process::ExitCode;

use app::recipe::Precision;

use trainer::engine::cuda::device::Device;
use trainer::engine::cuda::selftest::{self, Check};

#[derive(clap::Args)]
pub struct SelftestArgs {
    /// Every check, not only those that fail
    #[arg(long, short)]
    verbose: bool,
    /// A folder of golden numbers, such as the repository's `tests/golden`: its trajectory is followed, too
    #[arg(long)]
    golden: Option<PathBuf>,
}

pub fn run(args: &SelftestArgs) -> anyhow::Result<ExitCode> {
    let device = Device::open_without_timing()?;
    println!("{:?}", device.card());
    println!("cuBLASLt {}, cuDNN {}", device.files[0], device.files[1]);
    let (mut passed, mut failed) = (0, 0);
    let mut report = |check: Check| {
        let Check { name, error, tolerance } = &check;
        let verdict = if check.passed() { "ok  " } else { "FAIL" };
        if args.verbose || !check.passed() {
            println!("{verdict} {error:9.2e} of {tolerance:7.1e}  {name}");
        }
        *(if check.passed() { &mut passed } else { &mut failed }) += 1;
    };
    selftest::run(&device, &mut report)?;
    if let Some(folder) = &args.golden {
        let mut precisions = vec![Precision::No, Precision::Fp16];
        precisions.extend(device.card().has_bf16().then_some(Precision::Bf16));
        golden::check(&device, folder, &precisions, &mut report)?;
    }
    println!("{passed} checks passed, {failed} failed");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
