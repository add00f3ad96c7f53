//! `convert`: the tutorial's `convert_diffusers_to_original_stable_diffusion.py`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use trainer::base_model::{self, LogWatch};
use trainer::formats::{self, Container, Width};

use super::{WrongUse, with_lora};

#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct ConvertArgs {
    /// The model: a diffusers folder, a single file, a Hub id, or `starter`
    #[arg(long)]
    model_path: String,
    /// Branch, tag or commit of a Hub id
    #[arg(long)]
    revision: Option<String>,
    /// A LoRA to add to the model first
    #[arg(long)]
    lora: Option<PathBuf>,
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
    check(args)?;
    let base = base_model::load(&args.model_path, args.revision.as_deref(), &mut LogWatch::default())?;
    let weights = with_lora(base, args.lora.as_deref())?;
    let named = args.checkpoint_path.extension().is_some_and(|e| e == "safetensors");
    let format = match args.use_safetensors || named {
        true => Container::Safetensors,
        false => Container::Ckpt,
    };
    let precision = if args.half { Width::Half } else { Width::Full };
    let (bytes, sha256) = formats::save_single_file(&args.checkpoint_path, &weights, precision, format)?;
    tracing::info!(
        "wrote {} ({bytes} bytes, sha256 {sha256})",
        args.checkpoint_path.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Names that cannot be what was meant.
fn check(args: &ConvertArgs) -> Result<(), WrongUse> {
    let model = Path::new(&args.model_path);
    if let Some(newest) = newest_step(model) {
        return Err(WrongUse(format!(
            "--model_path: {} holds the models of a run; give one of them, such as {}",
            model.display(),
            newest.display()
        )));
    }
    let to = &args.checkpoint_path;
    if to.is_dir() || to.file_name().is_none() {
        return Err(WrongUse(format!(
            "--checkpoint_path: {} is a folder; give a file in it, such as {}",
            to.display(),
            to.join("model.safetensors").display()
        )));
    }
    if args.use_safetensors && to.extension().is_some_and(|e| e == "ckpt") {
        return Err(WrongUse(format!(
            "--checkpoint_path: {} would hold safetensors under the name of a pickle, which programs refuse; end it in \
             .safetensors or leave --use_safetensors out",
            to.display()
        )));
    }
    Ok(())
}

/// The model of the highest step in a run's folder, which is none itself.
fn newest_step(folder: &Path) -> Option<PathBuf> {
    let is_model = |path: &Path| path.join("model_index.json").is_file();
    if is_model(folder) || folder.join("unet").is_dir() {
        return None;
    }
    let names = std::fs::read_dir(folder).ok()?.flatten();
    let steps = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    steps
        .map(|step| (step, folder.join(step.to_string())))
        .filter(|(_, path)| is_model(path))
        .max()
        .map(|(_, path)| path)
}
