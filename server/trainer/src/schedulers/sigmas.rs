//! The noise schedule in sigmas, `sqrt((1 - ac) / ac)`: what Euler, LMS, DPM-Solver and UniPC walk down.

use candle_core::Tensor;

use super::combine::Weights;
use super::{NoiseSchedule, SchedulerError};
use crate::models::config::{PredictionType, SchedulerConfig};

/// Exponent of Karras et al. 2022, equation 5.
const RHO: f64 = 7.0;

/// Sigma at every timestep of the model, ascending.
pub(super) struct Sigmas(Vec<f64>);

impl Sigmas {
    pub fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        let schedule = NoiseSchedule::new(config)?;
        let of = |&ac: &f32| ((1.0 - f64::from(ac)) / f64::from(ac)).sqrt();
        Ok(Self(schedule.alphas_cumprod().iter().map(of).collect()))
    }

    pub fn least(&self) -> f64 {
        self.0[0]
    }

    pub fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// At fractional timesteps too, by linear interpolation.
    pub fn at(&self, timestep: f64) -> f64 {
        let last = self.0.len() - 1;
        let below = (timestep.max(0.0) as usize).min(last);
        let above = (below + 1).min(last);
        let part = timestep - below as f64;
        self.0[below] + (self.0[above] - self.0[below]) * part.clamp(0.0, 1.0)
    }

    /// The timestep, seldom whole, of a sigma: by interpolation in its logarithm.
    pub fn timestep(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let not_above = self.0.iter().take_while(|sigma| sigma.ln() <= log_sigma).count();
        let low = not_above.saturating_sub(1).min(self.0.len().saturating_sub(2));
        let high = (low + 1).min(self.0.len() - 1);
        let (a, b) = (self.0[low].ln(), self.0[high].ln());
        let part = if b > a { (log_sigma - a) / (b - a) } else { 0.0 };
        low as f64 + part.clamp(0.0, 1.0)
    }
}

/// Karras' spacing from `most` down to `least`.
pub(super) fn karras(most: f64, least: f64, steps: usize) -> Vec<f64> {
    let (from, to) = (most.powf(1.0 / RHO), least.powf(1.0 / RHO));
    let last = (steps.max(2) - 1) as f64;
    (0..steps)
        .map(|i| (from + i as f64 / last * (to - from)).powf(RHO))
        .collect()
}

/// `x / sqrt(sigma^2 + 1)`: what the model saw in training, of latents that grow with sigma.
pub(super) fn scale_model_input(x: &Tensor, sigma: f64) -> Result<Tensor, SchedulerError> {
    Ok(x.affine(1.0 / (sigma * sigma + 1.0).sqrt(), 0.0)?)
}

/// The direction `(x - x0) / sigma` of latents that grow with sigma.
pub(super) fn derivative(prediction: PredictionType, sigma: f64) -> Weights {
    match prediction {
        PredictionType::Epsilon => Weights { x: 0.0, model: 1.0 },
        PredictionType::VPrediction => {
            let squared = sigma * sigma + 1.0;
            Weights {
                x: sigma / squared,
                model: 1.0 / squared.sqrt(),
            }
        }
    }
}

/// alpha, sigma and log(alpha / sigma) of latents whose variance stays 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub alpha: f64,
    pub sigma: f64,
    /// Infinite at the end, where there is no noise.
    pub lambda: f64,
}

impl Level {
    pub fn new(sigma: f64) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self {
            alpha,
            sigma: sigma * alpha,
            lambda: -sigma.ln(),
        }
    }
}
