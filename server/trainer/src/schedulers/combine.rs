//! Weighted sums of latents, and what a model's answer says about the clean picture.

use candle_core::Tensor;

use crate::models::config::PredictionType;

/// Sum of `weight * tensor` over the terms; there is at least one.
pub(super) fn combine<const N: usize>(terms: [(f64, &Tensor); N]) -> candle_core::Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, tensor) in terms {
        // `1 * x` is exact, so it need not be computed.
        let term = if weight == 1.0 {
            tensor.clone()
        } else {
            tensor.affine(weight, 0.0)?
        };
        sum = Some(match sum {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a weighted sum of nothing".into()))
}

/// Weights of the latents and of the model's answer in some quantity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weights {
    pub x: f64,
    pub model: f64,
}

impl Weights {
    pub fn of(self, x: &Tensor, model: &Tensor) -> candle_core::Result<Tensor> {
        combine([(self.x, x), (self.model, model)])
    }
}

/// The clean picture x0 and the noise in `x = alpha * x0 + sigma * noise`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Prediction {
    pub clean: Weights,
    pub noise: Weights,
}

impl Prediction {
    /// `alpha` and `sigma` with `alpha^2 + sigma^2 = 1`.
    pub fn new(prediction: PredictionType, alpha: f64, sigma: f64) -> Self {
        match prediction {
            PredictionType::Epsilon => Self {
                clean: Weights {
                    x: 1.0 / alpha,
                    model: -sigma / alpha,
                },
                noise: Weights { x: 0.0, model: 1.0 },
            },
            // Salimans and Ho 2022, "Progressive distillation", appendix D: v = alpha * noise - sigma * x0.
            PredictionType::VPrediction => Self {
                clean: Weights {
                    x: alpha,
                    model: -sigma,
                },
                noise: Weights { x: sigma, model: alpha },
            },
        }
    }

    /// Weights of `clean * c + noise * n`.
    pub fn mix(&self, c: f64, n: f64) -> Weights {
        Weights {
            x: c * self.clean.x + n * self.noise.x,
            model: c * self.clean.model + n * self.noise.model,
        }
    }
}
