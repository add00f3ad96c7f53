use clap::{Parser, Subcommand};
#[derive(Parser)]
struct Cli { #[command(subcommand)] command: Cmd }
#[derive(Subcommand)]
enum Cmd { Pretrain(trainer::pretrain::cli::PretrainArgs) }
fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    #[cfg(feature = "cuda")]
    candle_core::cuda::set_gemm_reduced_precision_f32(true);
    let device = candle_core::Device::cuda_if_available(0)?;
    match Cli::parse().command { Cmd::Pretrain(args) => Ok(args.run(device)?) }
}
