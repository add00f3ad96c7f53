//! What one micro-batch learns from, and what its losses come to.
//!
//! A `Batch` is what the host knows of it: distributions of latents, prompts, and how much each row counts. An `Objective`
//! says by what levels of noise the device makes noisy rows of it, what it asks back, and what each timestep counts. Rows are
//! all instances, then, with prior preservation, the class images.

use crate::engine::nets::diffusion::{Diffusion, Level};
use crate::models::config::PredictionType;
use crate::schedulers::{NoiseSchedule, SchedulerError};

/// What the U-Net is asked for, and how its answers are judged.
#[derive(Clone, Debug)]
pub struct Objective {
    pub schedule: NoiseSchedule,
    pub prediction: PredictionType,
    /// Min-SNR's limit (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy").
    pub snr_gamma: Option<f64>,
    /// Strength of the noise that a channel is shifted by as a whole.
    pub offset_noise: f64,
}

/// A micro-batch, before noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Channels, height and width of a row.
    pub dims: [usize; 3],
    pub instance_rows: usize,
    /// Of the latents' distributions, before scaling: `[rows, c, h, w]`.
    pub mean: Vec<f32>,
    /// Of the same shape.
    pub deviation: Vec<f32>,
    /// The prompts' token ids, `[rows, tokens]`.
    pub ids: Vec<u32>,
    /// `[rows]`; the share of a row in the loss of its half: that is `sum(share * weight(timestep) * mse)`.
    pub shares: Vec<f32>,
}

/// Losses of one micro-batch, or their mean over several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Losses {
    /// `instance + prior_loss_weight * prior`.
    pub total: f32,
    pub instance: f32,
    /// With prior preservation.
    pub prior: Option<f32>,
}

impl Objective {
    /// As a device is told. Latents are multiplied by `latents_scale`.
    ///
    /// # Errors
    /// When the schedule is broken.
    pub fn diffusion(&self, latents_scale: f64) -> Result<Diffusion, SchedulerError> {
        let timesteps: Vec<u32> = (0..self.schedule.len() as u32).collect();
        let (signal, sigma) = self.schedule.scales(&timesteps)?;
        let levels = signal.into_iter().zip(sigma).zip(self.schedule.snr());
        Ok(Diffusion {
            levels: levels
                .map(|((signal, sigma), snr)| Level {
                    signal,
                    sigma,
                    weight: self.snr_weight(snr),
                })
                .collect(),
            velocity: self.prediction == PredictionType::VPrediction,
            latents_scale: latents_scale as f32,
            offset_noise: self.offset_noise as f32,
        })
    }

    /// `min(snr, gamma) / snr`, for velocity `/ (snr + 1)`; 1 without a gamma.
    fn snr_weight(&self, snr: f32) -> f32 {
        let Some(gamma) = self.snr_gamma else { return 1.0 };
        let divisor = match self.prediction {
            PredictionType::Epsilon => snr,
            PredictionType::VPrediction => snr + 1.0,
        };
        snr.min(gamma as f32) / divisor
    }
}

impl Batch {
    /// Rows that count alike in their half. `mean`, `deviation` and `ids` are those of all rows.
    pub fn new(dims: [usize; 3], instance_rows: usize, [mean, deviation]: [Vec<f32>; 2], ids: Vec<u32>) -> Self {
        let rows = mean.len() / dims.iter().product::<usize>().max(1);
        let share = |row: usize| match row < instance_rows {
            true => 1.0 / instance_rows as f32,
            false => 1.0 / (rows - instance_rows) as f32,
        };
        Self {
            dims,
            instance_rows,
            mean,
            deviation,
            ids,
            shares: (0..rows).map(share).collect(),
        }
    }

    pub fn rows(&self) -> usize {
        self.shares.len()
    }

    /// Ids of a prompt.
    pub fn tokens(&self) -> usize {
        self.ids.len() / self.rows().max(1)
    }

    /// `[rows]`: the shares in the loss that is minimised, where the class half counts `prior_loss_weight`.
    pub fn weighted_shares(&self, prior_loss_weight: f32) -> Vec<f32> {
        let of_half = |row: usize| match row < self.instance_rows {
            true => 1.0,
            false => prior_loss_weight,
        };
        let shares = self.shares.iter().enumerate();
        shares.map(|(row, share)| of_half(row) * share).collect()
    }

    /// What the mean squared errors of the rows come to, with the weights of their timesteps.
    pub fn losses(&self, mse: &[f32], weights: &[f32], prior_loss_weight: f32) -> Losses {
        let sum =
            |rows: std::ops::Range<usize>| -> f32 { rows.map(|row| self.shares[row] * weights[row] * mse[row]).sum() };
        let instance = sum(0..self.instance_rows);
        let prior = (self.rows() > self.instance_rows).then(|| sum(self.instance_rows..self.rows()));
        Losses {
            total: instance + prior_loss_weight * prior.unwrap_or_default(),
            instance,
            prior,
        }
    }
}

impl Losses {
    /// Of micro-batches that make up one step.
    pub fn mean(all: &[Self]) -> Self {
        let mean = |of: &dyn Fn(&Self) -> f32| all.iter().map(of).sum::<f32>() / all.len().max(1) as f32;
        Self {
            total: mean(&|losses| losses.total),
            instance: mean(&|losses| losses.instance),
            prior: all
                .iter()
                .all(|losses| losses.prior.is_some())
                .then(|| mean(&|losses| losses.prior.unwrap_or_default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::config::SchedulerConfig;

    #[test]
    fn rows_share_their_half_and_the_class_half_has_its_weight() {
        let maps = || vec![0.0; 90];
        let batch = Batch::new([2, 3, 5], 2, [maps(), maps()], vec![0, 1, 2, 3, 4, 5]);
        assert_eq!((batch.rows(), batch.tokens()), (3, 2));
        assert_eq!(batch.shares, [0.5, 0.5, 1.0]);
        assert_eq!(batch.weighted_shares(0.5), [0.5, 0.5, 0.5]);
        let losses = batch.losses(&[1.0, 3.0, 4.0], &[1.0; 3], 0.5);
        assert_eq!((losses.instance, losses.prior, losses.total), (2.0, Some(4.0), 4.0));
        let eased = batch.losses(&[1.0, 3.0, 4.0], &[0.0, 1.0, 0.25], 0.5);
        assert_eq!((eased.instance, eased.prior, eased.total), (1.5, Some(1.0), 2.0));
    }

    #[test]
    fn easy_timesteps_count_less() {
        let objective = Objective {
            schedule: NoiseSchedule::new(&SchedulerConfig::default()).expect("known"),
            prediction: PredictionType::Epsilon,
            snr_gamma: Some(5.0),
            offset_noise: 0.0,
        };
        let snr = objective.schedule.snr();
        let of = |objective: &Objective| {
            let diffusion = objective.diffusion(0.18).expect("levels");
            diffusion.weights_at(&[10.0, 500.0, 999.0])
        };
        assert_eq!(of(&objective), [5.0 / snr[10], 1.0, 1.0]);
        let velocity = Objective {
            prediction: PredictionType::VPrediction,
            ..objective.clone()
        };
        assert_eq!(of(&velocity)[0], 5.0 / (snr[10] + 1.0));
        let plain = Objective {
            snr_gamma: None,
            ..objective
        };
        assert_eq!(of(&plain), [1.0; 3]);
    }
}
