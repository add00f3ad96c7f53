//! `inspect`: a base model as the page shows it.

use std::process::ExitCode;

use trainer::{defaults, formats};

#[derive(clap::Args)]
pub struct InspectArgs {
    /// `starter`, a diffusers folder, or a .safetensors or .ckpt file
    #[arg(long)]
    model: String,
}

pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let weights = formats::load(&args.model)?;
    println!("{}", serde_json::to_string(&defaults::describe(&args.model, &weights))?);
    Ok(ExitCode::SUCCESS)
}
