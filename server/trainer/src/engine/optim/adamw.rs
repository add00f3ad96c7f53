//! AdamW (Loshchilov and Hutter 2019) as `torch.optim.AdamW` computes it, in f32, in place:
//!
//! ```text
//! p *= 1 - lr * weight_decay
//! m += (g - m) * (1 - b1)            v = v * b2 + g * g * (1 - b2)
//! p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```
//!
//! Every parameter decays, biases, norms and unused embedding rows included.

use super::{OptimizerSettings, Update, bias_corrections};

/// The numbers of one update, the same for all elements of a group.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Gradients are multiplied by it first: clipping, and the loss scale divided out.
    pub factor: f32,
    keep: f32,
    beta2: f32,
    fresh1: f32,
    fresh2: f32,
    step: f32,
    root2: f32,
    epsilon: f32,
}

impl Rates {
    pub fn new(settings: &OptimizerSettings, update: &Update, learning_rate: f64, factor: f64) -> Self {
        let (correction1, correction2) = bias_corrections(settings, update);
        Self {
            factor: factor as f32,
            keep: (1. - learning_rate * settings.weight_decay) as f32,
            beta2: settings.beta2 as f32,
            fresh1: (1. - settings.beta1) as f32,
            fresh2: (1. - settings.beta2) as f32,
            step: (learning_rate / correction1) as f32,
            root2: correction2.sqrt() as f32,
            epsilon: settings.epsilon as f32,
        }
    }

    /// One element: parameter, gradient, first and second moment.
    #[inline(always)]
    pub fn apply(&self, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        let g = g * self.factor;
        *p *= self.keep;
        *m += (g - *m) * self.fresh1;
        *v = *v * self.beta2 + g * g * self.fresh2;
        *p -= self.step * (*m / (v.sqrt() / self.root2 + self.epsilon));
    }
}
