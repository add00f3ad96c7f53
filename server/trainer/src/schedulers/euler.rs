//! Euler's method on the probability flow, plain and ancestral: Karras et al. 2022, algorithm 2 without churn, and
//! k-diffusion's `sample_euler_ancestral`.

use candle_core::Tensor;

use super::combine::combine;
use super::sigmas::{self, Sigmas};
use super::spacing::{linspace, trailing};
use super::{Sampler, SamplerKind, SchedulerError, Spacing};
use crate::models::config::{PredictionType, SchedulerConfig};

/// Timesteps and sigmas of Euler and LMS.
pub(super) struct Walk {
    pub timesteps: Vec<f64>,
    /// One more than timesteps: 0 at the end.
    pub sigmas: Vec<f64>,
    pub init_noise_sigma: f64,
}

impl Walk {
    pub fn new(config: &SchedulerConfig, karras: bool, steps: usize) -> Result<Self, SchedulerError> {
        let all = Sigmas::new(config)?;
        let total = config.num_train_timesteps;
        let spacing = Spacing::of(config, Spacing::Linspace)?;
        let mut timesteps = match spacing {
            // Not rounded here: the model is asked at fractional timesteps.
            Spacing::Linspace => linspace(total, steps).into_iter().rev().collect(),
            Spacing::Trailing => trailing(total, steps),
            Spacing::Leading => spacing.timesteps(config, steps),
        };
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| all.at(t)).collect();
        if karras {
            sigmas = sigmas::karras(sigmas[0], sigmas[steps - 1], steps);
            timesteps = sigmas.iter().map(|&sigma| all.timestep(sigma)).collect();
        }
        let most = sigmas.iter().copied().fold(0.0, f64::max);
        sigmas.push(0.0);
        Ok(Self {
            timesteps,
            sigmas,
            init_noise_sigma: match spacing {
                Spacing::Leading => (most * most + 1.0).sqrt(),
                Spacing::Linspace | Spacing::Trailing => most,
            },
        })
    }

    /// Sigma before and after call `i`.
    pub fn step(&self, i: usize) -> Result<(f64, f64), SchedulerError> {
        match self.sigmas.get(i..i + 2) {
            Some(&[from, to]) => Ok((from, to)),
            _ => Err(SchedulerError::Order {
                step: i,
                expected: self.timesteps.len(),
            }),
        }
    }
}

pub struct Euler {
    walk: Walk,
    prediction_type: PredictionType,
    ancestral: bool,
}

impl Euler {
    /// # Errors
    /// A schedule or spacing that is not known.
    pub fn new(config: &SchedulerConfig, karras: bool, steps: usize) -> Result<Self, SchedulerError> {
        Ok(Self {
            walk: Walk::new(config, karras, steps)?,
            prediction_type: config.prediction_type,
            ancestral: false,
        })
    }

    /// Goes further down than asked at each step and comes back up with fresh noise.
    ///
    /// # Errors
    /// As `new`.
    pub fn ancestral(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let ancestral = true;
        Ok(Self {
            ancestral,
            ..Self::new(config, false, steps)?
        })
    }
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.walk.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.walk.init_noise_sigma
    }

    fn scale_model_input(&self, x: &Tensor, i: usize) -> Result<Tensor, SchedulerError> {
        sigmas::scale_model_input(x, self.walk.step(i)?.0)
    }

    fn draws_noise(&self) -> bool {
        self.ancestral
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        i: usize,
        x: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor, SchedulerError> {
        let (from, to) = self.walk.step(i)?;
        let up = match self.ancestral {
            true => (to * to * (from * from - to * to) / (from * from)).sqrt(),
            false => 0.0,
        };
        let down = (to * to - up * up).sqrt();
        let along = sigmas::derivative(self.prediction_type, from);
        let forward = down - from;
        let stay = (1.0 + forward * along.x, x);
        let go = (forward * along.model, model_output);
        if !self.ancestral {
            return Ok(combine([stay, go])?);
        }
        let noise = noise.ok_or(SchedulerError::NoNoise(SamplerKind::EulerAncestral))?;
        Ok(combine([stay, go, (up, noise)])?)
    }
}
