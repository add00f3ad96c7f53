//! Pictures that the autoencoder has encoded ahead: a step of diffusion then reads 4 KiB a row in place of composing and
//! encoding 192 KiB of pixels, and a GPU trains several times as fast.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;

use super::PretrainError;
use super::data::{Mix, StarterData};
use super::feed::feed;
use super::starter::SIDE_PX;
use crate::engine::nets::networks::{Networks, values};
use crate::noise::{Noise, Purpose};
use crate::schedulers::NoiseSchedule;
use crate::tokenizer::Tokenizer;

/// Pictures that are encoded at once.
const ENCODED_ROWS: usize = 256;
/// Where the weight of a nearly clean timestep is cut off (gamma of min-SNR, Hang et al. 2023).
const MOST_SNR: f32 = 5.0;

/// Encoded pictures with their captions.
pub(super) struct Pool {
    /// `[pictures, 4, h / 8, w / 8]`, times the scaling factor.
    latents: Vec<f32>,
    /// `[pictures, tokens]`
    ids: Vec<u32>,
    pictures: usize,
}

/// What a step of training reads; see [`Step`](crate::engine::nets::networks::Step).
pub(super) struct Rows {
    pub noisy: Vec<f32>,
    pub target: Vec<f32>,
    pub timesteps: Vec<f32>,
    pub ids: Vec<u32>,
    pub weights: Vec<f32>,
}

/// Random numbers and noise levels.
pub(super) struct Noising {
    seed: u64,
    /// `sqrt(alpha)` and `sqrt(1 - alpha)` of each timestep.
    scales: (Vec<f32>, Vec<f32>),
    /// In the loss, of each timestep.
    weights: Vec<f32>,
}

impl Pool {
    /// At least `pictures` of them; those of another `generation` are others.
    ///
    /// # Errors
    /// What the device or the tokenizer answers.
    pub(super) fn fill(
        networks: &mut Networks,
        data: &Arc<StarterData>,
        tokenizer: &Tokenizer,
        noise: &Noise,
        scale: f64,
        (generation, pictures): (u64, usize),
    ) -> Result<Self, PretrainError> {
        let side = SIDE_PX as usize;
        let batches = pictures.div_ceil(ENCODED_ROWS) as u64;
        let first = generation * batches;
        let mut pool = Self {
            latents: Vec::new(),
            ids: Vec::new(),
            pictures: batches as usize * ENCODED_ROWS,
        };
        let composed = Arc::clone(data);
        let composed = feed(first..first + batches, move |at| {
            composed.batch(at, ENCODED_ROWS, Mix::Drawings)
        })?;
        for (at, batch) in (first..).zip(composed) {
            let x = Tensor::from_vec(batch.pixels, (ENCODED_ROWS, 3, side, side), &Device::Cpu)?;
            let distribution = networks.encode(&x)?;
            let eps = noise.normal(Purpose::Latents, at, distribution.mean.shape())?;
            let latents = distribution.sample_with(&eps)?.affine(scale, 0.0)?;
            pool.latents.extend(values(&latents)?);
            for caption in &batch.captions {
                pool.ids.extend(tokenizer.encode(caption, true)?.ids);
            }
        }
        Ok(pool)
    }

    /// The rows of an update: pictures, timesteps and noise are drawn anew, a function of seed and update alone.
    pub(super) fn rows(&self, noising: &Noising, update: u64, rows: usize) -> Rows {
        let (size, tokens) = (self.latents.len() / self.pictures, self.ids.len() / self.pictures);
        let mut made = Rows {
            noisy: vec![0.0; rows * size],
            target: vec![0.0; rows * size],
            timesteps: vec![0.0; rows],
            ids: vec![0; rows * tokens],
            weights: vec![0.0; rows],
        };
        (made.noisy.par_chunks_mut(size))
            .zip(made.target.par_chunks_mut(size))
            .zip(made.ids.par_chunks_mut(tokens))
            .zip(made.timesteps.par_iter_mut())
            .zip(made.weights.par_iter_mut())
            .enumerate()
            .for_each(|(row, ((((noisy, target), ids), timestep), weight))| {
                let mut rng = noising.stream(update, row as u64);
                let picture = rng.random_range(0..self.pictures);
                let at = rng.random_range(0..noising.weights.len());
                let (kept, added) = (noising.scales.0[at], noising.scales.1[at]);
                let clean = &self.latents[picture * size..][..size];
                for ((noisy, target), clean) in noisy.iter_mut().zip(target).zip(clean) {
                    *target = rng.sample(StandardNormal);
                    *noisy = kept * clean + added * *target;
                }
                ids.copy_from_slice(&self.ids[picture * tokens..][..tokens]);
                *timestep = at as f32;
                *weight = noising.weights[at] / rows as f32;
            });
        made
    }
}

impl Noising {
    /// # Errors
    /// When the schedule is broken.
    pub(super) fn new(schedule: &NoiseSchedule, seed: u64) -> Result<Self, PretrainError> {
        let timesteps: Vec<u32> = (0..schedule.len() as u32).collect();
        // Of the error of the noise, whose own weight is the signal-to-noise ratio.
        let weights = schedule.snr().into_iter().map(|snr| snr.min(MOST_SNR) / snr);
        Ok(Self {
            seed,
            scales: schedule.scales(&timesteps)?,
            weights: weights.collect(),
        })
    }

    fn stream(&self, update: u64, row: u64) -> ChaCha8Rng {
        let mut key = [0; 32];
        for (part, value) in key.chunks_mut(8).zip([self.seed, Purpose::Noise as u64, update, row]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        ChaCha8Rng::from_seed(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::config::SchedulerConfig;

    #[test]
    fn rows_are_a_function_of_the_update_and_noised_as_their_timestep_says() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
        let noising = Noising::new(&schedule, 5).unwrap();
        // Picture 0 is all 3 and says 7; picture 1 is all -3 and says 8.
        let pool = Pool {
            latents: [[3f32; 8], [-3.0; 8]].concat(),
            ids: vec![7, 7, 8, 8],
            pictures: 2,
        };
        let (rows, again, next) = (
            pool.rows(&noising, 9, 64),
            pool.rows(&noising, 9, 64),
            pool.rows(&noising, 10, 64),
        );
        assert_eq!(rows.noisy, again.noisy);
        assert_eq!(rows.ids, again.ids);
        assert_ne!(rows.noisy, next.noisy);
        for row in 0..64 {
            let alpha = schedule.alphas_cumprod()[rows.timesteps[row] as usize];
            let clean = if rows.ids[2 * row] == 7 { 3.0 } else { -3.0 };
            for at in 8 * row..8 * row + 8 {
                let noisy = alpha.sqrt() * clean + (1.0 - alpha).sqrt() * rows.target[at];
                assert!((rows.noisy[at] - noisy).abs() < 1e-5);
            }
            let snr = alpha / (1.0 - alpha);
            assert!((64.0 * rows.weights[row] - (5.0 / snr).min(1.0)).abs() < 1e-4);
        }
    }
}
