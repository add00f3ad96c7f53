//! The linear multistep method of k-diffusion: a polynomial through the last four derivatives, integrated exactly.

use candle_core::Tensor;

use super::combine::combine;
use super::euler::Walk;
use super::{Sampler, SchedulerError, in_order, sigmas};
use crate::models::config::{PredictionType, SchedulerConfig};

const ORDER: usize = 4;

pub struct Lms {
    walk: Walk,
    prediction_type: PredictionType,
    next: usize,
    /// The newest first.
    derivatives: Vec<Tensor>,
}

impl Lms {
    /// # Errors
    /// A schedule or spacing that is not known.
    pub fn new(config: &SchedulerConfig, karras: bool, steps: usize) -> Result<Self, SchedulerError> {
        Ok(Self {
            walk: Walk::new(config, karras, steps)?,
            prediction_type: config.prediction_type,
            next: 0,
            derivatives: Vec::new(),
        })
    }

    /// Weight of the derivative `back` calls ago in the step after call `i`: the integral of its Lagrange polynomial
    /// among the last `order` sigmas.
    fn weight(&self, i: usize, back: usize, order: usize) -> f64 {
        let sigma = &self.walk.sigmas;
        let polynomial = |at: f64| -> f64 {
            (0..order)
                .filter(|&k| k != back)
                .map(|k| (at - sigma[i - k]) / (sigma[i - back] - sigma[i - k]))
                .product()
        };
        // Gauss and Legendre's two points are exact up to the third degree.
        let (middle, half) = ((sigma[i] + sigma[i + 1]) / 2.0, (sigma[i + 1] - sigma[i]) / 2.0);
        let point = half / 3f64.sqrt();
        half * (polynomial(middle - point) + polynomial(middle + point))
    }
}

impl Sampler for Lms {
    fn timesteps(&self) -> &[f64] {
        &self.walk.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.walk.init_noise_sigma
    }

    fn scale_model_input(&self, x: &Tensor, i: usize) -> Result<Tensor, SchedulerError> {
        sigmas::scale_model_input(x, self.walk.step(i)?.0)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        i: usize,
        x: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor, SchedulerError> {
        in_order(&mut self.next, i, self.walk.timesteps.len())?;
        if i == 0 {
            self.derivatives.clear();
        }
        let derivative = sigmas::derivative(self.prediction_type, self.walk.sigmas[i]).of(x, model_output)?;
        self.derivatives.insert(0, derivative);
        self.derivatives.truncate(ORDER);
        let order = self.derivatives.len();
        let mut next = x.clone();
        for (back, derivative) in self.derivatives.iter().enumerate() {
            next = combine([(1.0, &next), (self.weight(i, back, order), derivative)])?;
        }
        Ok(next)
    }
}
