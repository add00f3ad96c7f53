//! `likeness-trainer pretrain autoencoder|diffusion`: the starter model, for those who want to make it again.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Part, PretrainError, autoencoder, diffusion};
use crate::device::Device;

/// Train the starter model from nothing
#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// Which part; the autoencoder comes first
    #[arg(value_enum)]
    part: PartName,
    /// Data set that scripts/starter-data.sh builds
    #[arg(long)]
    data: PathBuf,
    /// Folder for states and the result
    #[arg(long)]
    work: PathBuf,
    /// Updates in all
    #[arg(long)]
    updates: u64,
    /// Pictures an update
    #[arg(long, default_value_t = 64)]
    rows: usize,
    #[arg(long = "learning_rate", default_value_t = 1e-3)]
    learning_rate: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Save and stop after so many minutes; call again to go on
    #[arg(long, default_value_t = f64::INFINITY)]
    minutes: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PartName {
    Autoencoder,
    Diffusion,
}

impl PretrainArgs {
    /// On the GPU when this build has one.
    ///
    /// # Errors
    /// As the part that runs.
    pub fn run(self, device: Device) -> Result<(), PretrainError> {
        let part = Part {
            data: self.data,
            work: self.work,
            updates: self.updates,
            rows: self.rows,
            learning_rate: self.learning_rate,
            seed: self.seed,
            device,
            budget: Duration::try_from_secs_f64(self.minutes * 60.0).unwrap_or(Duration::MAX),
        };
        std::fs::create_dir_all(&part.work).map_err(|source| PretrainError::Write {
            path: part.work.clone(),
            source,
        })?;
        let done = match self.part {
            PartName::Autoencoder => autoencoder::train(&part)?,
            PartName::Diffusion => diffusion::train(&part)?,
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
