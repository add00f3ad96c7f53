//! The command line. Every flag may be written with `_`, as the tutorial's script has it, or with `-`.
//!
//! Exit status: 0 done, 1 failed, 2 wrong use, 130 stopped by the user with state saved.

mod convert;
mod doctor;
mod inspect;
mod job;
mod progress;
mod sample;
mod selftest;
mod train;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trainer::dreambooth::{Ended, STOPPED_STATUS};
use trainer::formats::{self, ModelError, ModelWeights};

#[derive(Parser)]
#[command(
    name = "likeness-trainer",
    version,
    about = "Teaches Stable Diffusion a subject from a few photos, and draws it"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train on folders of photos, with the flags of the tutorial's train_dreambooth.py
    Train(Box<train::TrainArgs>),
    /// Draw images with a model
    Sample(sample::SampleArgs),
    /// Turn a diffusers folder into one Stable Diffusion file for WebUIs
    Convert(convert::ConvertArgs),
    /// Say what a base model is and what settings suit it, as JSON
    Inspect(inspect::InspectArgs),
    /// Time a training step, or drawing images, on random weights
    Bench(trainer::bench::cli::BenchArgs),
    /// Check everything that the GPU computes, on the GPU of this machine
    Selftest(selftest::SelftestArgs),
    /// Say what this machine offers and what would be used
    Doctor(doctor::DoctorArgs),
    /// Run a job folder of the server: recipe.json in, events.jsonl, samples and export out
    Job(job::JobArgs),
    /// Train the starter model from nothing: the autoencoder, then the U-Net with the text encoder
    Pretrain(trainer::pretrain::cli::PretrainArgs),
}

const FAILED: u8 = 1;
const WRONG_USE: u8 = 2;

/// The command or its settings make no sense; exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUse(pub String);

pub fn run() -> ExitCode {
    let args = match train::config_file::expand(std::env::args_os().map(with_underscores).collect()) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(WRONG_USE);
        }
    };
    let result = match Cli::parse_from(args).command {
        Command::Train(args) => train::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => args.run(),
        Command::Selftest(args) => selftest::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Job(args) => job::run(&args),
        Command::Pretrain(args) => pretrain(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // For a person: the log's time and level would stand in the way of the words.
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<WrongUse>() { WRONG_USE } else { FAILED })
        }
    }
}

/// `--save-interval=5` becomes `--save_interval=5`; values and other arguments stay.
fn with_underscores(arg: OsString) -> OsString {
    let Some(text) = arg.to_str() else { return arg };
    let Some(flag) = text.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
        return arg;
    };
    match flag.split_once('=') {
        Some((name, value)) => format!("--{}={value}", name.replace('-', "_")).into(),
        None => format!("--{}", flag.replace('-', "_")).into(),
    }
}

fn pretrain(args: trainer::pretrain::cli::PretrainArgs) -> anyhow::Result<ExitCode> {
    args.run(trainer::device::open(None)?)?;
    Ok(ExitCode::SUCCESS)
}

/// `weights` with the LoRA of a `--lora` flag added.
fn with_lora(mut weights: ModelWeights, lora: Option<&Path>) -> Result<ModelWeights, ModelError> {
    if let Some(path) = lora {
        formats::load_lora(path, &weights)?.merge_into(&mut weights, path)?;
    }
    Ok(weights)
}

/// Of a figure on the command line.
fn bytes_of_gib(gib: f64) -> u64 {
    (gib * f64::from(1u32 << 30)) as u64
}

/// The exit status of a run that ended well.
fn status(ended: Ended) -> ExitCode {
    match ended {
        Ended::Done { .. } => ExitCode::SUCCESS,
        Ended::Stopped { .. } => ExitCode::from(STOPPED_STATUS as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn dashes_in_flags_become_underscores_but_values_stay() {
        let turned = |text: &str| with_underscores(text.into()).into_string().expect("text");
        assert_eq!(turned("--save-interval"), "--save_interval");
        assert_eq!(turned("--output-dir=a-b"), "--output_dir=a-b");
        assert_eq!(turned("a-b"), "a-b");
        assert_eq!(turned("--"), "--");
        assert_eq!(turned("-x-y"), "-x-y");
    }
}
