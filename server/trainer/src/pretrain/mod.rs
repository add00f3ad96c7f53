//! Trains the starter model from nothing: first the autoencoder, then the U-Net with the text encoder.
//!
//! Both parts stop when their time is up, save their state, and go on from it when called again, so that a GPU rented
//! by the minute will do. The finished parts are written as a diffusers folder.

pub mod autoencoder;
pub mod captions;
pub mod cli;
pub mod data;
pub mod diffusion;
pub mod evaluate;
mod feed;
pub mod judge;
mod latents;
pub mod starter;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use app::recipe::Precision;

use crate::device::Device;
use crate::dreambooth::TrainError;
use crate::dreambooth::ema::Ema;
use crate::dreambooth::scaler::LossScaler;
use crate::dreambooth::state::{self, MeanLoss, TrainingState};
use crate::engine::ir::Group;
use crate::engine::nets::error::NetworkError;
use crate::engine::nets::networks::Networks;
use crate::engine::nets::programs::{self, Plan};
use crate::engine::session::{EngineError, Moments, OptimizerSettings, Update, Updated};
use crate::models::params::Weights;

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
    #[error("{} needs drawings and photographs; build it with scripts/starter-data.sh", path.display())]
    Empty { path: PathBuf },
    #[error("the autoencoder comes first: {} is missing", path.display())]
    NoAutoencoder { path: PathBuf },
    #[error("the loss is {loss} after update {update}")]
    NotFinite { loss: f32, update: u64 },
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the state of the training")]
    State(#[source] Box<TrainError>),
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    #[error("the model to evaluate")]
    Model(#[source] Box<crate::formats::ModelError>),
    #[error("a drawing failed")]
    Drawing(#[source] Box<crate::pipeline::PipelineError>),
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

/// AdamW without decay.
const OPTIMIZER: OptimizerSettings = OptimizerSettings {
    moments: Moments::F32,
    beta1: 0.9,
    beta2: 0.999,
    weight_decay: 0.0,
    epsilon: 1e-8,
    low_memory: None,
};

/// Updates from one to the next that the average of weights takes in.
const FOLLOW_EVERY: u64 = 10;

/// Networks that learn, and the running average of their weights.
struct Student {
    networks: Networks,
    average: Ema,
    updates: u64,
    /// For its saved state.
    folder: PathBuf,
}

impl Student {
    /// Fresh weights, or those of the state that was saved in `folder`.
    fn new(
        plan: Plan,
        weights: &[(programs::Part, &Weights)],
        average_decay: f64,
        folder: &Path,
        (device, precision): (&Device, Precision),
    ) -> Result<Self, PretrainError> {
        let session = device.session(plan.params()?, OPTIMIZER, precision)?;
        let mut networks = Networks::new(plan, session);
        for (part, weights) in weights {
            networks.load(*part, weights)?;
        }
        let mut student = Self {
            average: Ema::new(average_decay, &mut networks)?,
            networks,
            updates: 0,
            folder: folder.to_owned(),
        };
        let path = state::state_path(folder);
        if path.is_file() {
            let mut state = student.state();
            state.restore(&mut student.networks, &path).map_err(failed)?;
            student.updates = state.updates;
        }
        Ok(student)
    }

    fn state(&self) -> TrainingState {
        TrainingState {
            step: u32::try_from(self.updates).unwrap_or(u32::MAX),
            updates: self.updates,
            scaler: LossScaler::new(Precision::No),
            ema: Some(self.average),
            mean_loss: MeanLoss::default(),
            turned_on: Vec::new(),
        }
    }

    /// Everything a later run needs to go on.
    fn save(&mut self) -> Result<(), PretrainError> {
        let state = self.state();
        state.save(&mut self.networks, &self.folder, "").map_err(failed)
    }

    /// The next update.
    fn update(&self, groups: &[Group], learning_rate: f64) -> Update {
        let rates = groups.iter().map(|group| (*group, learning_rate));
        Update {
            learning_rates: rates.collect::<BTreeMap<_, _>>(),
            max_grad_norm: 1.0,
            loss_scale: 1.0,
            number: self.updates + 1,
        }
    }

    /// Takes note of an update.
    fn updated(&mut self, loss: f32, updated: Updated) -> Result<(), PretrainError> {
        self.updates += 1;
        if updated.skipped || !loss.is_finite() {
            let update = self.updates;
            return Err(PretrainError::NotFinite { loss, update });
        }
        if self.updates.is_multiple_of(FOLLOW_EVERY) {
            self.average.follow(&mut self.networks, self.updates / FOLLOW_EVERY)?;
        }
        Ok(())
    }

    /// The averaged weights of a network.
    fn averaged(&mut self, part: programs::Part) -> Result<Weights, PretrainError> {
        self.networks.session().exchange_averages()?;
        let weights = self.networks.weights(part);
        self.networks.session().exchange_averages()?;
        Ok(weights?)
    }
}

fn failed(source: TrainError) -> PretrainError {
    PretrainError::State(Box::new(source))
}

/// Half a cosine from `base` to a tenth of it, after a short warm-up.
fn cosine(base: f64, update: u64, total: u64) -> f64 {
    const WARMUP: f64 = 500.0;
    let done = (update as f64 / total.max(1) as f64).min(1.0);
    let shape = 0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    base * shape * ((update as f64 + 1.0) / WARMUP).min(1.0)
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

    fn note(&mut self, update: u64, loss: f32, norm: f64) {
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
