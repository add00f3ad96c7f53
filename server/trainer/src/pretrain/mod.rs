//! Trains the starter model from nothing: first the autoencoder, then the U-Net with the text encoder.
//!
//! Both parts stop when their time is up, save their state, and go on from it when called again, so that a GPU rented
//! by the minute will do. The finished parts are written as a diffusers folder.

pub mod autoencoder;
pub mod cli;
pub mod data;
pub mod diffusion;
mod feed;
mod optimizer;
pub mod starter;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::Device;

#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{} is not a picture that can be read", path.display())]
    Picture { path: PathBuf, source: image::ImageError },
    #[error("{} is not an index of a starter data set", path.display())]
    Index { path: PathBuf, source: serde_json::Error },
    #[error("the autoencoder comes first: {} is missing", path.display())]
    NoAutoencoder { path: PathBuf },
    #[error("the loss is {loss} after update {update}")]
    NotFinite { loss: f32, update: u64 },
    #[error("the model's weights")]
    Params(#[from] crate::models::params::ParamError),
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    #[error("the tokenizer failed")]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    #[error("the noise schedule failed")]
    Scheduler(#[from] crate::schedulers::SchedulerError),
}

/// Settings of one part of pretraining.
#[derive(Clone, Debug)]
pub struct Part {
    /// Folder that the example `starter_data` made.
    pub data: PathBuf,
    /// Folder for states and results.
    pub work: PathBuf,
    pub updates: u64,
    pub rows: usize,
    pub learning_rate: f64,
    pub seed: u64,
    pub device: Device,
    /// Stop and save after this long, to go on another time.
    pub budget: Duration,
}

impl Part {
    fn time_is_up(&self, started: Instant) -> bool {
        started.elapsed() >= self.budget
    }
}

/// Mean of the losses since the last line, and how fast it goes.
struct Diary {
    name: &'static str,
    since: Instant,
    losses: Vec<f32>,
}

impl Diary {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            since: Instant::now(),
            losses: Vec::new(),
        }
    }

    fn note(&mut self, update: u64, loss: f32, norm: f32) {
        const EVERY: u64 = 100;
        self.losses.push(loss);
        if !update.is_multiple_of(EVERY) {
            return;
        }
        let count = self.losses.len() as f32;
        let mean = self.losses.iter().sum::<f32>() / count;
        let ms = self.since.elapsed().as_secs_f32() * 1e3 / count;
        tracing::info!(
            "{} update {update}: loss {mean:.4}, gradient norm {norm:.3}, {ms:.0} ms an update",
            self.name
        );
        self.losses.clear();
        self.since = Instant::now();
    }
}
