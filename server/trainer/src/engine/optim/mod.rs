//! Optimizers as plain functions over slices: what the CPU session runs, and what a GPU's update is checked against.

pub mod adamw;
pub mod adamw_8bit;
pub mod rounding;

use super::session::{OptimizerSettings, Update};

/// `torch.nn.utils.clip_grad_norm_`'s factor. A limit of 0 clips nothing.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0. {
        (max_norm / (norm + 1e-6)).min(1.)
    } else {
        1.
    }
}

/// The exponents `1 - b1^t` and `1 - b2^t` of update `t`, which undo the moments' start at zero.
pub(super) fn bias_corrections(settings: &OptimizerSettings, update: &Update) -> (f64, f64) {
    let t = i32::try_from(update.number).unwrap_or(i32::MAX);
    (1. - settings.beta1.powi(t), 1. - settings.beta2.powi(t))
}
