//! What one micro-batch learns from, as numbers on the host: the same on every device.
//!
//! A `Draw` is what chance gave: latents from their distributions, noise, timesteps. An `Objective` turns it into a `Batch`:
//! noisy latents, what the U-Net is to answer, and how much each row counts. Rows are all instances, then, with prior
//! preservation, the class images. Everything is computed in f32.

use crate::models::config::PredictionType;
use crate::schedulers::{NoiseSchedule, SchedulerError};

/// What chance gave a micro-batch, and the prompts that go with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Channels, height and width of a row.
    pub dims: [usize; 3],
    /// How many of the rows are instances; they come first.
    pub instance_rows: usize,
    /// `[rows, c, h, w]`, times the VAE's scaling factor.
    pub latents: Vec<f32>,
    /// `[rows, c, h, w]`, standard normal.
    pub noise: Vec<f32>,
    /// `[rows, c]`, standard normal; empty when there is no offset noise.
    pub offsets: Vec<f32>,
    /// `[rows]`
    pub timesteps: Vec<u32>,
    /// The prompts' token ids, `[rows, tokens]`.
    pub ids: Vec<u32>,
}

/// What the U-Net is asked for, and how its answers are judged.
#[derive(Clone, Debug)]
pub struct Objective {
    pub schedule: NoiseSchedule,
    pub prediction: PredictionType,
    pub prior_loss_weight: f64,
    /// Min-SNR's limit (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy").
    pub snr_gamma: Option<f64>,
    /// Strength of `Draw::offsets`.
    pub offset_noise: f64,
}

/// A micro-batch, ready for the U-Net.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Channels, height and width of a row.
    pub dims: [usize; 3],
    pub instance_rows: usize,
    /// `[rows, c, h, w]`
    pub noisy: Vec<f32>,
    /// `[rows, c, h, w]`
    pub target: Vec<f32>,
    /// `[rows]`
    pub timesteps: Vec<u32>,
    /// `[rows, tokens]`
    pub ids: Vec<u32>,
    /// `[rows]`; the share of a row in the loss of its half, so that a half's loss is `sum(share * mse)`.
    pub shares: Vec<f32>,
    pub prior_loss_weight: f32,
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
    /// Mixes the noise in, and says what is asked back.
    ///
    /// # Errors
    /// A timestep that the model does not have.
    pub fn batch(&self, draw: Draw) -> Result<Batch, SchedulerError> {
        let Draw {
            dims,
            instance_rows,
            latents,
            mut noise,
            offsets,
            timesteps,
            ids,
        } = draw;
        let plane = dims[1] * dims[2];
        for (plane, offset) in noise.chunks_exact_mut(plane).zip(&offsets) {
            let offset = self.offset_noise as f32 * offset;
            plane.iter_mut().for_each(|noise| *noise += offset);
        }
        let (signal, sigma) = self.schedule.scales(&timesteps)?;
        let row = dims[0] * plane;
        let mix = |a: &[f32], of_a: &[f32], b: &[f32], of_b: &[f32], sign: f32| -> Vec<f32> {
            let rows = a.chunks_exact(row).zip(b.chunks_exact(row)).zip(of_a.iter().zip(of_b));
            rows.flat_map(|((a, b), (of_a, of_b))| a.iter().zip(b).map(move |(a, b)| of_a * a + sign * (of_b * b)))
                .collect()
        };
        let noisy = mix(&latents, &signal, &noise, &sigma, 1.0);
        let target = match self.prediction {
            PredictionType::Epsilon => noise,
            // Salimans and Ho 2022, appendix D.
            PredictionType::VPrediction => mix(&noise, &signal, &latents, &sigma, -1.0),
        };
        let class_rows = timesteps.len() - instance_rows;
        let snr = self.schedule.snr();
        let shares = timesteps.iter().enumerate().map(|(row, t)| {
            let half = if row < instance_rows { instance_rows } else { class_rows };
            self.snr_weight(snr[*t as usize]) / half as f32
        });
        Ok(Batch {
            dims,
            instance_rows,
            noisy,
            target,
            shares: shares.collect(),
            timesteps,
            ids,
            prior_loss_weight: self.prior_loss_weight as f32,
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
    pub fn rows(&self) -> usize {
        self.timesteps.len()
    }

    /// Ids of a prompt.
    pub fn tokens(&self) -> usize {
        self.ids.len() / self.rows().max(1)
    }

    /// `[rows]`; the loss that is minimised is `sum(weight * mse)`.
    pub fn weights(&self) -> Vec<f32> {
        let of_half = |row: usize| match row < self.instance_rows {
            true => 1.0,
            false => self.prior_loss_weight,
        };
        let shares = self.shares.iter().enumerate();
        shares.map(|(row, share)| of_half(row) * share).collect()
    }

    /// What the mean squared errors of the rows come to.
    pub fn losses(&self, mse: &[f32]) -> Losses {
        let sum = |rows: std::ops::Range<usize>| -> f32 {
            let rows = self.shares[rows.clone()].iter().zip(&mse[rows]);
            rows.map(|(share, mse)| share * mse).sum()
        };
        let instance = sum(0..self.instance_rows);
        let prior = (self.rows() > self.instance_rows).then(|| sum(self.instance_rows..self.rows()));
        Losses {
            total: instance + self.prior_loss_weight * prior.unwrap_or_default(),
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

    /// Three rows, the last a class image, of odd shape.
    fn draw() -> Draw {
        let wave = |count: usize, k: f32| (0..count).map(|i| (i as f32 * k).sin()).collect();
        Draw {
            dims: [2, 3, 5],
            instance_rows: 2,
            latents: wave(90, 0.7),
            noise: wave(90, 0.3),
            offsets: wave(6, 1.1),
            timesteps: vec![10, 500, 999],
            ids: vec![0, 1, 2, 3, 4, 5],
        }
    }

    fn objective(prediction: PredictionType) -> Objective {
        Objective {
            schedule: NoiseSchedule::new(&SchedulerConfig::default()).expect("known"),
            prediction,
            prior_loss_weight: 0.5,
            snr_gamma: None,
            offset_noise: 0.0,
        }
    }

    #[test]
    fn rows_share_their_half_and_the_class_half_has_its_weight() {
        let batch = objective(PredictionType::Epsilon).batch(draw()).expect("a batch");
        assert_eq!((batch.rows(), batch.tokens()), (3, 2));
        assert_eq!(batch.shares, [0.5, 0.5, 1.0]);
        assert_eq!(batch.weights(), [0.5, 0.5, 0.5]);
        let losses = batch.losses(&[1.0, 3.0, 4.0]);
        assert_eq!((losses.instance, losses.prior, losses.total), (2.0, Some(4.0), 4.0));
    }

    #[test]
    fn easy_rows_count_less_by_their_own_timestep_whichever_half_they_are_of() {
        let mut objective = objective(PredictionType::Epsilon);
        objective.snr_gamma = Some(5.0);
        let snr = objective.schedule.snr();
        let plain = objective.batch(draw()).expect("a batch");
        assert_eq!(plain.shares, [5.0 / snr[10] / 2.0, 0.5, 1.0]);
        let mut swapped = draw();
        swapped.timesteps = vec![999, 500, 10];
        let swapped = objective.batch(swapped).expect("a batch");
        assert_eq!(swapped.shares, [0.5, 0.5, 5.0 / snr[10]]);
    }

    #[test]
    fn offset_noise_moves_a_channel_as_a_whole_and_is_asked_back() {
        let mut objective = objective(PredictionType::Epsilon);
        let without = objective.batch(draw()).expect("a batch").target;
        objective.offset_noise = 0.1;
        let with = objective.batch(draw()).expect("a batch").target;
        for (channel, (with, without)) in with.chunks(15).zip(without.chunks(15)).enumerate() {
            let wanted = 0.1 * draw().offsets[channel];
            for (with, without) in with.iter().zip(without) {
                assert!((with - without - wanted).abs() < 1e-6, "channel {channel}");
            }
        }
    }

    #[test]
    fn velocity_and_noise_give_the_latents_back() {
        let objective = objective(PredictionType::VPrediction);
        let batch = objective.batch(draw()).expect("a batch");
        let (signal, sigma) = objective.schedule.scales(&draw().timesteps).expect("scales");
        for (i, wanted) in draw().latents.iter().enumerate() {
            let row = i / 30;
            let clean = signal[row] * batch.noisy[i] - sigma[row] * batch.target[i];
            assert!((clean - wanted).abs() < 1e-5, "{i}: {clean} {wanted}");
        }
    }

    #[test]
    fn a_timestep_beyond_the_models_is_an_error() {
        let mut late = draw();
        late.timesteps[1] = 1000;
        assert!(objective(PredictionType::Epsilon).batch(late).is_err());
    }
}
