//! The U-Net and the text encoder together: noise prediction on the frozen autoencoder's latents (Ho et al. 2020 with
//! SD's schedule), captions left out a tenth of the time (Ho and Salimans 2022), weights averaged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};

use super::data::{Mix, StarterData};
use super::feed::feed;
use super::optimizer::{FlatAdam, cosine};
use super::starter::{self, SIDE_PX};
use super::{Diary, Part, PretrainError, autoencoder};
use crate::models::config::SchedulerConfig;
use crate::models::params::Params;
use crate::models::text_encoder::ClipTextModel;
use crate::models::unet::UNet2DConditionModel;
use crate::models::vae::AutoencoderKl;
use crate::models::{ModelConfig, random_weights};
use crate::noise::{Noise, Purpose};
use crate::ops;
use crate::schedulers::NoiseSchedule;
use crate::tokenizer::Tokenizer;

const AVERAGE_DECAY: f64 = 0.9995;
const SAVE_EVERY: u64 = 1000;
/// Batches whose latents' spread sets the scaling factor.
const SCALE_BATCHES: u64 = 8;

/// Trains until done or out of time. Returns whether it is done.
///
/// # Errors
/// When there is no autoencoder yet, the data cannot be read, the loss stops being finite, or the device gives out.
pub fn train(part: &Part) -> Result<bool, PretrainError> {
    let started = Instant::now();
    let device = &part.device;
    let data = Arc::new(StarterData::open(&part.data, SIDE_PX, part.seed)?);
    let vae_weights = autoencoder::load(&part.work)?;
    let vae = AutoencoderKl::new(
        &starter::vae_config(),
        &Params::frozen(&vae_weights, DType::F32, device)?,
    )?;
    let scale = scaling_factor(&vae, &data, part)?;
    let (unet_config, text_config) = (starter::unet_config(), starter::text_encoder_config());
    let unet_weights = random_weights(ModelConfig::UNet(&unet_config), starter::WEIGHTS_SEED)?;
    let text_weights = random_weights(ModelConfig::TextEncoder(&text_config), starter::WEIGHTS_SEED)?;
    let unet_params = Params::trainable(&unet_weights, DType::F32, device)?;
    let text_params = Params::trainable(&text_weights, DType::F32, device)?;
    let unet = UNet2DConditionModel::new(&unet_config, &unet_params)?;
    let text = ClipTextModel::new(&text_config, &text_params)?;
    let mut vars = BTreeMap::new();
    vars.extend(
        unet_params
            .vars()
            .into_iter()
            .map(|(name, var)| (format!("unet.{name}"), var)),
    );
    vars.extend(
        text_params
            .vars()
            .into_iter()
            .map(|(name, var)| (format!("text_encoder.{name}"), var)),
    );
    let mut adam = FlatAdam::new(vars, AVERAGE_DECAY)?;
    let state = part.work.join("diffusion.state");
    adam.resume(&state)?;
    let noise = Noise::new(part.seed);
    let schedule = NoiseSchedule::new(&SchedulerConfig::default())?;
    let tokenizer = Tokenizer::clip()?;
    let mut diary = Diary::new("diffusion");
    let side = SIDE_PX as usize;
    for batch in feed(data, adam.updates, part.updates, part.rows, Mix::Drawings)? {
        let at = adam.updates;
        let x = Tensor::from_vec(batch.pixels, (part.rows, 3, side, side), device)?;
        let distribution = vae.encode(&x)?;
        let eps = noise.normal(Purpose::Latents, at, distribution.mean.shape(), device)?;
        let latents = distribution.sample_with(&eps)?.affine(scale, 0.0)?.detach();
        let ids = token_ids(&tokenizer, &batch.captions, device)?;
        let target = noise.normal(Purpose::Noise, at, latents.shape(), device)?;
        let timesteps = noise.timesteps(at, part.rows, 1000);
        let noisy = schedule.add_noise(&latents, &target, &timesteps)?;
        let times: Vec<f32> = timesteps.iter().map(|t| *t as f32).collect();
        let times = Tensor::new(times, device)?;
        let loss = ops::mse(&unet.forward(&noisy, &times, &text.forward(&ids)?)?, &target)?;
        let grads = loss.backward()?;
        let norm = adam.update(&grads, cosine(part.learning_rate, at, part.updates), 1.0)?;
        let value = loss.to_scalar::<f32>()?;
        if !value.is_finite() || !norm.is_finite() {
            return Err(PretrainError::NotFinite {
                loss: value,
                update: at,
            });
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
    starter::write(
        &part.work.join("starter"),
        &vae_weights,
        &adam.averaged()?,
        scale,
        &text_weights,
    )?;
    Ok(adam.updates >= part.updates)
}

fn token_ids(
    tokenizer: &Tokenizer,
    captions: &[String],
    device: &candle_core::Device,
) -> Result<Tensor, PretrainError> {
    let mut rows = Vec::with_capacity(captions.len());
    for caption in captions {
        let encoded = tokenizer.encode(caption, true)?;
        rows.push(Tensor::new(encoded.ids, device)?);
    }
    Ok(Tensor::stack(&rows, 0)?)
}

/// One over the standard deviation of the latents, so that the U-Net sees values of size one.
fn scaling_factor(vae: &AutoencoderKl, data: &StarterData, part: &Part) -> Result<f64, PretrainError> {
    let side = SIDE_PX as usize;
    let mut squares = 0f64;
    for step in 0..SCALE_BATCHES {
        let batch = data.batch(u64::MAX - step, 32, Mix::Drawings);
        let x = Tensor::from_vec(batch.pixels, (32, 3, side, side), &part.device)?;
        squares += f64::from(vae.encode(&x)?.mean.sqr()?.mean_all()?.to_scalar::<f32>()?);
    }
    Ok((SCALE_BATCHES as f64 / squares).sqrt())
}
