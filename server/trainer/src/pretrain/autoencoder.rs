//! The autoencoder: absolute and squared error of the pixels, and a light pull of the latents towards a normal
//! distribution (Rombach et al. 2022, without the perceptual and adversarial parts, whose networks nobody ships).

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{D, DType, Tensor};

use super::data::{Mix, StarterData};
use super::feed::feed;
use super::optimizer::{FlatAdam, cosine};
use super::starter::{self, SIDE_PX};
use super::{Diary, Part, PretrainError};
use crate::models::params::{Params, Weights};
use crate::models::vae::AutoencoderKl;
use crate::models::{ModelConfig, random_weights};
use crate::noise::{Noise, Purpose};

/// Weight of the KL term, mean over the latents' elements.
const KL_WEIGHT: f64 = 2e-3;
const AVERAGE_DECAY: f64 = 0.999;
const SAVE_EVERY: u64 = 1000;

/// Trains until done or out of time. Returns whether it is done.
///
/// # Errors
/// When the data cannot be read, the loss stops being finite, or the device gives out.
pub fn train(part: &Part) -> Result<bool, PretrainError> {
    let started = Instant::now();
    let data = Arc::new(StarterData::open(&part.data, SIDE_PX, part.seed)?);
    let config = starter::vae_config();
    let params = Params::trainable(
        &random_weights(ModelConfig::Vae(&config), starter::WEIGHTS_SEED)?,
        DType::F32,
        &part.device,
    )?;
    let vae = AutoencoderKl::new(&config, &params)?;
    let mut adam = FlatAdam::new(params.vars(), AVERAGE_DECAY)?;
    let state = part.work.join("autoencoder.state");
    adam.resume(&state)?;
    let noise = Noise::new(part.seed);
    let mut diary = Diary::new("autoencoder");
    let side = SIDE_PX as usize;
    for batch in feed(data, adam.updates, part.updates, part.rows, Mix::PhotosAndDrawings)? {
        let x = Tensor::from_vec(batch.pixels, (part.rows, 3, side, side), &part.device)?;
        let latents = vae.encode(&x)?;
        let eps = noise.normal(Purpose::Latents, adam.updates, latents.mean.shape(), &part.device)?;
        let y = vae.decode(&latents.sample_with(&eps)?)?;
        let apart = (&y - &x)?;
        let pixels = (apart.abs()?.mean_all()? + apart.sqr()?.mean_all()?.affine(2.0, 0.0)?)?;
        let kl = ((latents.mean.sqr()? + latents.logvar.exp()?)? - latents.logvar.affine(1.0, 1.0)?)?.mean_all()?;
        let loss = (pixels + kl.affine(0.5 * KL_WEIGHT, 0.0)?)?;
        let grads = loss.backward()?;
        let norm = adam.update(&grads, cosine(part.learning_rate, adam.updates, part.updates), 1.0)?;
        let value = loss.to_scalar::<f32>()?;
        if !value.is_finite() || !norm.is_finite() {
            let update = adam.updates;
            return Err(PretrainError::NotFinite { loss: value, update });
        }
        diary.note(adam.updates, value, norm);
        if adam.updates.is_multiple_of(SAVE_EVERY) {
            adam.save(&state)?;
        }
        if part.time_is_up(started) {
            break;
        }
    }
    adam.save(&state)?;
    let weights = adam.averaged()?;
    candle_core::safetensors::save(&weights.into_iter().collect(), part.work.join("vae.safetensors"))?;
    Ok(adam.updates >= part.updates)
}

/// The finished autoencoder's weights.
pub(super) fn load(work: &Path) -> Result<Weights, PretrainError> {
    let path = work.join("vae.safetensors");
    if !path.is_file() {
        return Err(PretrainError::NoAutoencoder { path });
    }
    Ok(candle_core::safetensors::load(&path, &candle_core::Device::Cpu)?
        .into_iter()
        .collect())
}

/// Peak signal-to-noise ratio in dB of each picture's reconstruction from the mean of its latents.
/// `x` `[rows, 3, h, w]` in -1..1.
pub fn reconstruction_psnr_db(vae: &AutoencoderKl, x: &Tensor) -> Result<(Tensor, Vec<f32>), PretrainError> {
    let y = vae.decode(&vae.encode(x)?.mean)?.clamp(-1.0, 1.0)?;
    let mse = (&y - x)?.affine(0.5, 0.0)?.sqr()?.flatten_from(1)?.mean(D::Minus1)?;
    let db = mse
        .to_vec1::<f32>()?
        .into_iter()
        .map(|mse| -10.0 * mse.max(1e-10).log10())
        .collect();
    Ok((y, db))
}
