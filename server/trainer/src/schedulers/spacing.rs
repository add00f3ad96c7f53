//! Which timesteps a sampler visits.

use std::str::FromStr;

use super::SchedulerError;
use crate::models::config::SchedulerConfig;

/// diffusers' `timestep_spacing`, table 2 of Lin et al. 2023.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

impl FromStr for Spacing {
    type Err = SchedulerError;
    fn from_str(name: &str) -> Result<Self, SchedulerError> {
        match name {
            "leading" => Ok(Self::Leading),
            "trailing" => Ok(Self::Trailing),
            "linspace" => Ok(Self::Linspace),
            other => Err(SchedulerError::Spacing(other.into())),
        }
    }
}

impl Spacing {
    /// The configuration's, else the sampler's own.
    pub(super) fn of(config: &SchedulerConfig, default: Self) -> Result<Self, SchedulerError> {
        config.timestep_spacing.as_deref().map_or(Ok(default), str::parse)
    }

    /// `steps` timesteps, descending.
    pub(super) fn timesteps(self, config: &SchedulerConfig, steps: usize) -> Vec<f64> {
        let total = config.num_train_timesteps;
        match self {
            Self::Leading => (0..steps)
                .rev()
                // With as many steps as timesteps the offset would lead past the last.
                .map(|i| (i * (total / steps) + config.steps_offset).min(total - 1) as f64)
                .collect(),
            Self::Trailing => trailing(total, steps),
            Self::Linspace => linspace(total, steps)
                .into_iter()
                .map(f64::round_ties_even)
                .rev()
                .collect(),
        }
    }
}

/// numpy's `round(arange(total, 0, -total / steps)) - 1`.
pub(super) fn trailing(total: usize, steps: usize) -> Vec<f64> {
    let stride = total as f64 / steps as f64;
    (0..steps)
        .map(|i| (total as f64 - i as f64 * stride).round_ties_even() - 1.0)
        .collect()
}

/// numpy's `linspace(0, total - 1, points)`.
pub(super) fn linspace(total: usize, points: usize) -> Vec<f64> {
    let last = (total - 1) as f64;
    let step = last / (points.max(2) - 1) as f64;
    (0..points)
        .map(|i| {
            if i > 0 && i + 1 == points {
                last
            } else {
                i as f64 * step
            }
        })
        .collect()
}
