//! `likeness-trainer pretrain autoencoder|diffusion|evaluate`: the starter model, for those who want to make it again.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::evaluate::{Evaluation, evaluate};
use super::{Part, PretrainError, autoencoder, diffusion};
use crate::device::Device;

/// Train the starter model from nothing, or say how good one is
#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// Which part; the autoencoder comes first, the evaluation last
    #[arg(value_enum)]
    part: PartName,
    /// Data set that scripts/starter-data.sh builds
    #[arg(long)]
    data: PathBuf,
    /// Folder for states and the result
    #[arg(long)]
    work: PathBuf,
    /// Updates in all; of `evaluate`, of the judge's training
    #[arg(long)]
    updates: Option<u64>,
    /// Pictures an update
    #[arg(long)]
    rows: Option<usize>,
    #[arg(long = "learning_rate", default_value_t = 1e-3)]
    learning_rate: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Save and stop after so many minutes; call again to go on
    #[arg(long, default_value_t = f64::INFINITY)]
    minutes: f64,
    /// What `evaluate` looks at: starter, or the folder that `diffusion` wrote
    #[arg(long, default_value = app::recipe::STARTER)]
    model: String,
    /// How closely `evaluate` draws to the words
    #[arg(long = "guidance_scale", default_value_t = 7.5)]
    guidance_scale: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PartName {
    Autoencoder,
    Diffusion,
    Evaluate,
}

impl PartName {
    /// Updates and rows of the recipe.
    fn defaults(self) -> (u64, usize) {
        match self {
            Self::Autoencoder => (6_000, 64),
            Self::Diffusion => (30_000, 256),
            Self::Evaluate => (2_000, 0),
        }
    }
}

impl PretrainArgs {
    /// On the GPU when this build has one.
    ///
    /// # Errors
    /// As the part that runs.
    pub fn run(self, device: Device) -> Result<(), PretrainError> {
        let (updates, rows) = self.part.defaults();
        let part = Part {
            data: self.data,
            work: self.work,
            updates: self.updates.unwrap_or(updates),
            rows: self.rows.unwrap_or(rows),
            learning_rate: self.learning_rate,
            seed: self.seed,
            device,
            budget: Duration::try_from_secs_f64(self.minutes * 60.0).unwrap_or(Duration::MAX),
        };
        let unwritten = |source| PretrainError::Write {
            path: part.work.clone(),
            source,
        };
        std::fs::create_dir_all(&part.work).map_err(unwritten)?;
        let done = match self.part {
            PartName::Autoencoder => autoencoder::train(&part)?,
            PartName::Diffusion => diffusion::train(&part)?,
            PartName::Evaluate => {
                let report = evaluate(&Evaluation {
                    data: part.data.clone(),
                    work: part.work.clone(),
                    model: self.model,
                    guidance_scale: self.guidance_scale,
                    updates: part.updates,
                    seed: part.seed,
                    device: part.device.clone(),
                })?;
                return writeln!(
                    std::io::stdout(),
                    "judged right {:.1} % of forty drawings; the judge itself {:.1} % of held-out pictures, {:.1} % through \
                     the autoencoder; {:.1} dB on held-out photographs",
                    100.0 * report.top1,
                    100.0 * report.judge_accuracy,
                    100.0 * report.judge_accuracy_through_autoencoder,
                    report.psnr_db
                )
                .map_err(unwritten);
            }
        };
        tracing::info!(
            "{}",
            if done {
                "done"
            } else {
                "time is up; call again to go on"
            }
        );
        Ok(())
    }
}
