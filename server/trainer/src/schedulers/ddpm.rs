//! DDPM, the ancestral sampler of Ho et al. 2020, equations 6 and 7, with the smaller of its two variances.

use candle_core::Tensor;

use super::combine::{Prediction, combine};
use super::{NoiseSchedule, Sampler, SamplerKind, SchedulerError, Spacing};
use crate::models::config::SchedulerConfig;

/// diffusers keeps the variance from vanishing in the last step.
const LEAST_VARIANCE: f64 = 1e-20;

pub struct Ddpm {
    timesteps: Vec<f64>,
    steps: Vec<Step>,
    clip_sample: bool,
}

struct Step {
    prediction: Prediction,
    /// Weights of the predicted clean picture, of the latents and of fresh noise.
    clean: f64,
    x: f64,
    noise: f64,
}

impl Ddpm {
    /// # Errors
    /// A schedule or spacing that is not known.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let schedule = NoiseSchedule::new(config)?;
        let timesteps = Spacing::of(config, Spacing::Leading)?.timesteps(config, steps);
        let steps = timesteps
            .iter()
            .enumerate()
            .map(|(i, &t)| {
                let ac = schedule.at(t);
                // Unlike DDIM it ends without noise whatever `set_alpha_to_one` says.
                let next = timesteps.get(i + 1).map_or(1.0, |&next| schedule.at(next));
                let alpha = ac / next;
                let variance = (1.0 - next) / (1.0 - ac) * (1.0 - alpha);
                Step {
                    prediction: Prediction::new(config.prediction_type, ac.sqrt(), (1.0 - ac).sqrt()),
                    clean: next.sqrt() * (1.0 - alpha) / (1.0 - ac),
                    x: alpha.sqrt() * (1.0 - next) / (1.0 - ac),
                    noise: if t > 0.0 {
                        variance.max(LEAST_VARIANCE).sqrt()
                    } else {
                        0.0
                    },
                }
            })
            .collect();
        Ok(Self {
            timesteps,
            steps,
            clip_sample: config.clip_sample,
        })
    }
}

impl Sampler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn draws_noise(&self) -> bool {
        true
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        i: usize,
        x: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor, SchedulerError> {
        let expected = self.steps.len();
        let step = self.steps.get(i).ok_or(SchedulerError::Order { step: i, expected })?;
        let noise = noise.ok_or(SchedulerError::NoNoise(SamplerKind::Ddpm))?;
        let mut clean = step.prediction.clean.of(x, model_output)?;
        if self.clip_sample {
            clean = clean.clamp(-1.0, 1.0)?;
        }
        Ok(combine([(step.clean, &clean), (step.x, x), (step.noise, noise)])?)
    }
}
