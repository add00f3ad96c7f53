//! UniPC of second order with B(h) = e^h - 1, on the predicted clean picture: Zhao et al. 2023, algorithms 5 and 6.

use candle_core::Tensor;

use super::combine::{Prediction, combine};
use super::dpm_solver::Walk;
use super::sigmas::Level;
use super::{Sampler, SchedulerError, in_order};
use crate::models::config::{PredictionType, SchedulerConfig};

const ORDER: usize = 2;

pub struct UniPc {
    walk: Walk,
    prediction_type: PredictionType,
    next: usize,
    /// Clean pictures that earlier calls predicted, the newest first.
    clean: Vec<Tensor>,
    /// The latents that the last step started from, and the order it had.
    last: Option<(Tensor, usize)>,
}

/// Numbers of one step of size h in lambda.
struct Step {
    /// `e^-h - 1`, which is B(h) too.
    phi1: f64,
    /// Right sides of the equations for the corrector's weights.
    b: [f64; 2],
    stay: f64,
    alpha: f64,
}

impl Step {
    fn new(from: Level, to: Level) -> Self {
        let h = -(to.lambda - from.lambda);
        let phi1 = h.exp_m1();
        let phi2 = phi1 / h - 1.0;
        let phi3 = phi2 / h - 0.5;
        Self {
            phi1,
            b: [phi2 / phi1, 2.0 * phi3 / phi1],
            stay: to.sigma / from.sigma,
            alpha: to.alpha,
        }
    }
}

impl UniPc {
    /// # Errors
    /// A schedule or spacing that is not known.
    pub fn new(config: &SchedulerConfig, karras: bool, steps: usize) -> Result<Self, SchedulerError> {
        Ok(Self {
            walk: Walk::new(config, karras, steps)?,
            prediction_type: config.prediction_type,
            next: 0,
            clean: Vec::new(),
            last: None,
        })
    }

    /// Where the difference of two clean pictures lies, in steps of call `from` to `from + 1`.
    fn ratio(&self, from: usize) -> f64 {
        let lambda = |i: usize| self.walk.levels[i].lambda;
        (lambda(from - 1) - lambda(from)) / (lambda(from + 1) - lambda(from))
    }

    /// The latents at call `i` once more, now that the model has been asked there.
    fn correct(&self, i: usize, start: &Tensor, order: usize, answer: &Tensor) -> Result<Tensor, SchedulerError> {
        let step = Step::new(self.walk.levels[i - 1], self.walk.levels[i]);
        let m0 = &self.clean[0];
        let (b, scale) = (step.b, -step.alpha * step.phi1);
        match self.clean.get(1).filter(|_| order >= 2) {
            None => Ok(combine([(step.stay, start), (scale * 0.5, m0), (scale * 0.5, answer)])?),
            Some(m1) => {
                let r = self.ratio(i - 1);
                let rho1 = (b[0] - b[1]) / (1.0 - r);
                let rho2 = b[0] - rho1;
                Ok(combine([
                    (step.stay, start),
                    (scale * (1.0 - rho1 / r - rho2), m0),
                    (scale * rho1 / r, m1),
                    (scale * rho2, answer),
                ])?)
            }
        }
    }

    fn predict(&self, i: usize, x: &Tensor, order: usize) -> Result<Tensor, SchedulerError> {
        let step = Step::new(self.walk.levels[i], self.walk.levels[i + 1]);
        let m0 = &self.clean[0];
        let scale = -step.alpha * step.phi1;
        match self.clean.get(1).filter(|_| order >= 2) {
            None => Ok(combine([(step.stay, x), (scale, m0)])?),
            Some(m1) => {
                let half = 0.5 / self.ratio(i);
                Ok(combine([
                    (step.stay, x),
                    (scale * (1.0 - half), m0),
                    (scale * half, m1),
                ])?)
            }
        }
    }
}

impl Sampler for UniPc {
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
        if i == 0 {
            self.clean.clear();
            self.last = None;
        }
        let level = self.walk.levels[i];
        let clean = Prediction::new(self.prediction_type, level.alpha, level.sigma)
            .clean
            .of(x, model_output)?;
        let x = match self.last.take() {
            Some((start, order)) => self.correct(i, &start, order, &clean)?,
            None => x.clone(),
        };
        self.clean.insert(0, clean);
        self.clean.truncate(ORDER);
        // The last step is of first order.
        let order = ORDER.min(calls - i).min(self.clean.len());
        let next = self.predict(i, &x, order)?;
        self.last = Some((x, order));
        Ok(next)
    }
}
