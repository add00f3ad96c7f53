//! The learning rate at each optimizer update: the six schedules of diffusers' `optimization.py`.

use std::f64::consts::PI;

use app::recipe::{LrScheduler, POLYNOMIAL_END, RecipeDraft};

/// A schedule with its numbers. Pure: the rate is a function of the update, so a resumed run needs no state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    pub kind: LrScheduler,
    pub base: f64,
    pub warmup_updates: u64,
    pub total_updates: u64,
    /// Hard restarts of `cosine_with_restarts`.
    pub num_cycles: u32,
    /// Exponent of `polynomial`.
    pub power: f64,
}

impl LrSchedule {
    pub fn of(recipe: &RecipeDraft) -> Self {
        let (warmup_updates, total_updates) = recipe.schedule_updates();
        Self {
            kind: recipe.lr_scheduler,
            base: recipe.learning_rate,
            warmup_updates,
            total_updates,
            num_cycles: recipe.lr_num_cycles,
            power: recipe.lr_power,
        }
    }

    /// The rate that optimizer update `update`, counted from 0, uses. Updates that were left out do not count.
    pub fn at(&self, update: u64) -> f64 {
        self.base * self.factor(update)
    }

    /// What every group's rate is multiplied by.
    pub fn factor(&self, update: u64) -> f64 {
        if self.kind == LrScheduler::Constant {
            return 1.0;
        }
        if update < self.warmup_updates {
            return update as f64 / self.warmup_updates.max(1) as f64;
        }
        let after_warmup = (update - self.warmup_updates) as f64;
        let length = self.total_updates.saturating_sub(self.warmup_updates).max(1) as f64;
        let progress = after_warmup / length;
        match self.kind {
            LrScheduler::Constant | LrScheduler::ConstantWithWarmup => 1.0,
            LrScheduler::Linear => (self.total_updates.saturating_sub(update) as f64 / length).max(0.0),
            // Half a wave.
            LrScheduler::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            LrScheduler::CosineWithRestarts if progress >= 1.0 => 0.0,
            LrScheduler::CosineWithRestarts => {
                let within = (f64::from(self.num_cycles) * progress).fract();
                (0.5 * (1.0 + (PI * within).cos())).max(0.0)
            }
            LrScheduler::Polynomial if update > self.total_updates => POLYNOMIAL_END / self.base,
            LrScheduler::Polynomial => {
                let above_end = (self.base - POLYNOMIAL_END) * (1.0 - progress).max(0.0).powf(self.power);
                (above_end + POLYNOMIAL_END) / self.base
            }
        }
    }
}
