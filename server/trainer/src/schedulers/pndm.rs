//! PNDM without its Runge-Kutta start, also called PLMS: Liu et al. 2022, equations 9 and 12.

use candle_core::Tensor;

use super::combine::{Prediction, combine};
use super::{NoiseSchedule, Sampler, SchedulerError, Spacing, in_order};
use crate::models::config::SchedulerConfig;

pub struct Pndm {
    schedule: NoiseSchedule,
    config: SchedulerConfig,
    timesteps: Vec<f64>,
    stride: f64,
    next: usize,
    /// Answers before this one, the newest first; three at most.
    answers: Vec<Tensor>,
    /// The latents before the first step, which is made twice.
    first: Option<Tensor>,
}

impl Pndm {
    /// # Errors
    /// A schedule or spacing that is not known.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let mut timesteps = Spacing::of(config, Spacing::Leading)?.timesteps(config, steps);
        if let Some(&second) = timesteps.get(1) {
            timesteps.insert(1, second);
        }
        Ok(Self {
            schedule: NoiseSchedule::new(config)?,
            config: config.clone(),
            timesteps,
            stride: (config.num_train_timesteps / steps) as f64,
            next: 0,
            answers: Vec::new(),
            first: None,
        })
    }

    /// Equation 9: from the latents at `from` to those at `to`, along the answer.
    fn transfer(&self, x: &Tensor, from: f64, to: f64, answer: &Tensor) -> Result<Tensor, SchedulerError> {
        // A spacing other than leading can lead past the last timestep in the repeated step.
        let last = (self.schedule.len() - 1) as f64;
        let (a, b) = (
            self.schedule.at(from.min(last)),
            self.schedule.at_or_end(to, self.config.set_alpha_to_one),
        );
        let noise = Prediction::new(self.config.prediction_type, a.sqrt(), (1.0 - a).sqrt()).noise;
        let along = -(b - a) / (a * (1.0 - b).sqrt() + (a * (1.0 - a) * b).sqrt());
        let stay = (b / a).sqrt() + along * noise.x;
        Ok(combine([(stay, x), (along * noise.model, answer)])?)
    }
}

impl Sampler for Pndm {
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
        in_order(&mut self.next, i, self.timesteps.len())?;
        let t = self.timesteps[i];
        if i == 0 {
            self.answers.clear();
            self.answers.push(model_output.clone());
            self.first = Some(x.clone());
            return self.transfer(x, t, t - self.stride, model_output);
        }
        if i == 1 {
            // The first step again, along the mean of both ends.
            let mean = combine([(0.5, model_output), (0.5, &self.answers[0])])?;
            let first = self.first.take();
            return self.transfer(first.as_ref().unwrap_or(x), t + self.stride, t, &mean);
        }
        // Adams and Bashforth, of as high an order as there are answers.
        let (now, before) = (model_output, self.answers.as_slice());
        let answer = match before {
            [] => now.clone(),
            [e1] => combine([(1.5, now), (-0.5, e1)])?,
            [e1, e2] => combine([(23.0 / 12.0, now), (-16.0 / 12.0, e1), (5.0 / 12.0, e2)])?,
            [e1, e2, e3, ..] => combine([
                (55.0 / 24.0, now),
                (-59.0 / 24.0, e1),
                (37.0 / 24.0, e2),
                (-9.0 / 24.0, e3),
            ])?,
        };
        self.answers.insert(0, model_output.clone());
        self.answers.truncate(3);
        self.transfer(x, t, t - self.stride, &answer)
    }
}
