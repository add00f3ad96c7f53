//! DPM-Solver++ of second order, multistep, midpoint: Lu et al. 2022, algorithm 2. Its last step is of first order,
//! because it ends without noise.

use candle_core::Tensor;

use super::combine::{Prediction, combine};
use super::sigmas::{Level, Sigmas, karras};
use super::spacing::{linspace, trailing};
use super::{Sampler, SchedulerError, Spacing, in_order};
use crate::models::config::{PredictionType, SchedulerConfig};

/// Timesteps and noise levels of DPM-Solver++ and UniPC.
pub(super) struct Walk {
    pub timesteps: Vec<f64>,
    /// One more than timesteps: no noise at the end.
    pub levels: Vec<Level>,
}

impl Walk {
    pub fn new(config: &SchedulerConfig, with_karras: bool, steps: usize) -> Result<Self, SchedulerError> {
        let all = Sigmas::new(config)?;
        let total = config.num_train_timesteps;
        let mut timesteps: Vec<f64> = match Spacing::of(config, Spacing::Linspace)? {
            // One point more than steps, of which the last, noiseless one is not asked for.
            Spacing::Linspace => linspace(total, steps + 1)
                .into_iter()
                .skip(1)
                .map(f64::round_ties_even)
                .rev()
                .collect(),
            Spacing::Leading => (1..=steps)
                .rev()
                .map(|i| (i * (total / (steps + 1)) + config.steps_offset).min(total - 1) as f64)
                .collect(),
            Spacing::Trailing => trailing(total, steps),
        };
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| all.at(t)).collect();
        if with_karras {
            sigmas = karras(all.most(), all.least(), steps);
            timesteps = sigmas.iter().map(|&s| all.timestep(s).round_ties_even()).collect();
        }
        sigmas.push(0.0);
        let levels = sigmas.into_iter().map(Level::new).collect();
        Ok(Self { timesteps, levels })
    }
}

pub struct DpmSolver {
    walk: Walk,
    prediction_type: PredictionType,
    next: usize,
    /// The clean picture that the call before predicted.
    before: Option<Tensor>,
}

impl DpmSolver {
    /// # Errors
    /// A schedule or spacing that is not known.
    pub fn new(config: &SchedulerConfig, karras: bool, steps: usize) -> Result<Self, SchedulerError> {
        Ok(Self {
            walk: Walk::new(config, karras, steps)?,
            prediction_type: config.prediction_type,
            next: 0,
            before: None,
        })
    }
}

impl Sampler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.walk.timesteps
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        i: usize,
        x: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor, SchedulerError> {
        let calls = self.walk.timesteps.len();
        in_order(&mut self.next, i, calls)?;
        let (now, to) = (self.walk.levels[i], self.walk.levels[i + 1]);
        let clean = Prediction::new(self.prediction_type, now.alpha, now.sigma)
            .clean
            .of(x, model_output)?;
        let before = self.before.replace(clean.clone()).filter(|_| i > 0);
        let h = to.lambda - now.lambda;
        let stay = to.sigma / now.sigma;
        let toward = -to.alpha * (-h).exp_m1();
        let Some(before) = before.filter(|_| i + 1 < calls) else {
            return Ok(combine([(stay, x), (toward, &clean)])?);
        };
        let r = (now.lambda - self.walk.levels[i - 1].lambda) / h;
        let half = 0.5 / r;
        Ok(combine([
            (stay, x),
            (toward * (1.0 + half), &clean),
            (-toward * half, &before),
        ])?)
    }
}
