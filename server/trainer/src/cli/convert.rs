//! `convert`: the tutorial's `convert_diffusers_to_original_stable_diffusion.py`.

use std::path::PathBuf;
use std::process::ExitCode;

use trainer::base_model::{self, LogWatch};
use trainer::dreambooth::hash_file;
use trainer::formats::{self, Container, Width};

#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct ConvertArgs {
    /// The model: a diffusers folder, a single file, a Hub id, or `starter`
    #[arg(long)]
    model_path: String,
    /// The file to write
    #[arg(long)]
    checkpoint_path: PathBuf,
    /// Write 16-bit weights, half the size
    #[arg(long)]
    half: bool,
    /// Write safetensors instead of a PyTorch pickle; a name ending in .safetensors does the same
    #[arg(long)]
    use_safetensors: bool,
}

pub fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let weights = base_model::load(&args.model_path, None, &mut LogWatch::default())?;
    let named = args.checkpoint_path.extension().is_some_and(|e| e == "safetensors");
    let format = match args.use_safetensors || named {
        true => Container::Safetensors,
        false => Container::Ckpt,
    };
    let precision = if args.half { Width::Half } else { Width::Full };
    formats::save_single_file(&args.checkpoint_path, &weights, precision, format)?;
    let (bytes, sha256) = hash_file(&args.checkpoint_path)?;
    tracing::info!(
        "wrote {} ({bytes} bytes, sha256 {sha256})",
        args.checkpoint_path.display()
    );
    Ok(ExitCode::SUCCESS)
}
