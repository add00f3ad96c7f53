//! Noise schedule and samplers: how noise is added in training and taken away in drawing.
//!
//! A file per sampler. Formulas are those of diffusers' scheduler of the same name, which the reference trajectories in
//! `tests/golden/samplers` were made with; tables and coefficients are f64 on the host, latents stay on their device.

mod combine;
mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod lms;
mod noise_schedule;
mod pndm;
mod sigmas;
mod spacing;
mod unipc;

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;

pub use ddim::Ddim;
pub use ddpm::Ddpm;
pub use dpm_solver::DpmSolver;
pub use euler::Euler;
pub use lms::Lms;
pub use noise_schedule::NoiseSchedule;
pub use pndm::Pndm;
pub use spacing::Spacing;
pub use unipc::UniPc;

use crate::models::config::SchedulerConfig;

#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    #[error("unknown beta_schedule `{0}` in scheduler_config.json; known: linear, scaled_linear, squaredcos_cap_v2")]
    BetaSchedule(String),
    #[error("unknown timestep_spacing `{0}` in scheduler_config.json; known: leading, trailing, linspace")]
    Spacing(String),
    #[error("unknown sampler `{0}`; known: {known}", known = SamplerKind::names().join(", "))]
    Kind(String),
    #[error("{steps} sampling steps are too many or too few; use 1 to {most}")]
    Steps { steps: usize, most: usize },
    #[error("timestep {timestep} is not below the model's {count}")]
    Timestep { timestep: u32, count: usize },
    #[error("{rows} rows of latents but {timesteps} timesteps")]
    Rows { rows: usize, timesteps: usize },
    #[error("{0} has no Karras spacing; it goes with {karras}", karras = SamplerKind::names_with_karras().join(", "))]
    Karras(SamplerKind),
    #[error("{0} draws noise in every step, but got none")]
    NoNoise(SamplerKind),
    #[error("sampling step {step} asked out of order; expected {expected}")]
    Order { step: usize, expected: usize },
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A walk from noise to a picture. Make a new one for every picture: some remember earlier steps.
pub trait Sampler: Send {
    /// What the model is asked at each of its calls, first to last. PNDM asks one timestep twice; Euler's and LMS's
    /// can be fractional.
    fn timesteps(&self) -> &[f64];

    /// The first latents are normal noise times this.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The model sees this in place of `x` at call `i`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    fn scale_model_input(&self, x: &Tensor, _i: usize) -> Result<Tensor, SchedulerError> {
        Ok(x.clone())
    }

    /// Whether `step` needs fresh normal noise, in every step.
    fn draws_noise(&self) -> bool {
        false
    }

    /// The latents after call `i`, of the latents `x` before it and the model's answer.
    ///
    /// # Errors
    /// `NoNoise` when `draws_noise()` and none is given, `Order` when a sampler that remembers is not walked in order.
    fn step(
        &mut self,
        model_output: &Tensor,
        i: usize,
        x: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor, SchedulerError>;
}

/// The samplers by the names of `--scheduler`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SamplerKind {
    #[default]
    Ddim,
    Pndm,
    Lms,
    Euler,
    EulerAncestral,
    DpmSolver,
    UniPc,
    Ddpm,
}

impl SamplerKind {
    pub const ALL: [Self; 8] = [
        Self::Ddim,
        Self::Pndm,
        Self::Lms,
        Self::Euler,
        Self::EulerAncestral,
        Self::DpmSolver,
        Self::UniPc,
        Self::Ddpm,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::Lms => "lms",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_a",
            Self::DpmSolver => "dpmpp_2m",
            Self::UniPc => "unipc",
            Self::Ddpm => "ddpm",
        }
    }

    /// Whether `--karras` goes with it.
    pub fn has_karras(self) -> bool {
        matches!(self, Self::Lms | Self::Euler | Self::DpmSolver | Self::UniPc)
    }

    fn names() -> Vec<&'static str> {
        Self::ALL.map(Self::name).to_vec()
    }

    fn names_with_karras() -> Vec<&'static str> {
        Self::ALL.iter().filter(|k| k.has_karras()).map(|k| k.name()).collect()
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = SchedulerError;
    fn from_str(name: &str) -> Result<Self, SchedulerError> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| SchedulerError::Kind(name.into()))
    }
}

/// A sampler for `steps` sampling steps.
///
/// # Errors
/// A configuration that no sampler knows, a step count outside 1 to the model's timesteps, Karras where there is none.
pub fn build(
    kind: SamplerKind,
    karras: bool,
    config: &SchedulerConfig,
    steps: usize,
) -> Result<Box<dyn Sampler>, SchedulerError> {
    if karras && !kind.has_karras() {
        return Err(SchedulerError::Karras(kind));
    }
    let most = config.num_train_timesteps;
    if !(1..=most).contains(&steps) {
        return Err(SchedulerError::Steps { steps, most });
    }
    Ok(match kind {
        SamplerKind::Ddim => Box::new(Ddim::new(config, steps)?),
        SamplerKind::Pndm => Box::new(Pndm::new(config, steps)?),
        SamplerKind::Lms => Box::new(Lms::new(config, karras, steps)?),
        SamplerKind::Euler => Box::new(Euler::new(config, karras, steps)?),
        SamplerKind::EulerAncestral => Box::new(Euler::ancestral(config, steps)?),
        SamplerKind::DpmSolver => Box::new(DpmSolver::new(config, karras, steps)?),
        SamplerKind::UniPc => Box::new(UniPc::new(config, karras, steps)?),
        SamplerKind::Ddpm => Box::new(Ddpm::new(config, steps)?),
    })
}

/// For samplers that remember earlier steps: `i` is the next, or 0 for a new walk.
fn in_order(next: &mut usize, i: usize, calls: usize) -> Result<(), SchedulerError> {
    if i >= calls || (i != *next && i != 0) {
        return Err(SchedulerError::Order {
            step: i,
            expected: *next,
        });
    }
    *next = i + 1;
    Ok(())
}
