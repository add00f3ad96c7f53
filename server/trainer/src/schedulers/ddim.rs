//! DDIM without added noise: Song et al. 2020, equation 12 with eta 0.

use candle_core::Tensor;

use super::combine::{Prediction, combine};
use super::{NoiseSchedule, Sampler, SchedulerError, Spacing};
use crate::models::config::SchedulerConfig;

pub struct Ddim {
    timesteps: Vec<f64>,
    steps: Vec<Step>,
    clip_sample: bool,
}

/// What one step needs: the model's answer read at the old timestep, mixed for the new one.
struct Step {
    prediction: Prediction,
    next_alpha: f64,
    next_sigma: f64,
}

impl Ddim {
    /// # Errors
    /// A schedule or spacing that is not known.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let schedule = NoiseSchedule::new(config)?;
        let timesteps = Spacing::of(config, Spacing::Leading)?.timesteps(config, steps);
        let stride = (config.num_train_timesteps / steps) as f64;
        let steps = timesteps
            .iter()
            .map(|&t| {
                let ac = schedule.at(t);
                let next = schedule.at_or_end(t - stride, config.set_alpha_to_one);
                Step {
                    prediction: Prediction::new(config.prediction_type, ac.sqrt(), (1.0 - ac).sqrt()),
                    next_alpha: next.sqrt(),
                    next_sigma: (1.0 - next).sqrt(),
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

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        i: usize,
        x: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor, SchedulerError> {
        let expected = self.steps.len();
        let step = self.steps.get(i).ok_or(SchedulerError::Order { step: i, expected })?;
        if self.clip_sample {
            let clean = step.prediction.clean.of(x, model_output)?.clamp(-1.0, 1.0)?;
            let noise = step.prediction.noise.of(x, model_output)?;
            return Ok(combine([(step.next_alpha, &clean), (step.next_sigma, &noise)])?);
        }
        Ok(step
            .prediction
            .mix(step.next_alpha, step.next_sigma)
            .of(x, model_output)?)
    }
}
