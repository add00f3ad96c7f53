//! The U-Net and the text encoder together: noise prediction on the frozen autoencoder's latents (Ho et al. 2020 with
//! SD's schedule), captions left out a tenth of the time (Ho and Salimans 2022), weights averaged.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::data::{Mix, StarterData};
use super::feed::feed;
use super::starter::{self, SIDE_PX};
use super::{Diary, Part, PretrainError, Student, autoencoder, cosine};
use crate::engine::ir::Group;
use crate::engine::nets::networks::{Networks, Prompts, Step, values};
use crate::engine::nets::programs::{self, Plan};
use crate::models::config::SchedulerConfig;
use crate::models::{ModelConfig, random_weights};
use crate::noise::{Noise, Purpose};
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
    let data = Arc::new(StarterData::open(&part.data, SIDE_PX, part.seed)?);
    let (unet_config, text_config) = (starter::unet_config(), starter::text_encoder_config());
    let vae_weights = autoencoder::load(&part.work)?;
    let unet_weights = random_weights(ModelConfig::UNet(&unet_config), starter::WEIGHTS_SEED)?;
    let text_weights = random_weights(ModelConfig::TextEncoder(&text_config), starter::WEIGHTS_SEED)?;
    let plan = Plan {
        unet: Some(unet_config),
        text_encoder: Some(text_config),
        vae: Some(starter::vae_config()),
        trains: [Group::UNet, Group::TextEncoder].into(),
        ..Plan::default()
    };
    let weights = [
        (programs::Part::UNet, &unet_weights),
        (programs::Part::TextEncoder, &text_weights),
        (programs::Part::Vae, &vae_weights),
    ];
    let folder = part.work.join("diffusion");
    let mut student = Student::new(plan, &weights, AVERAGE_DECAY, &folder, &part.device)?;
    let scale = scaling_factor(&mut student.networks, &data)?;
    let noise = Noise::new(part.seed);
    let schedule = NoiseSchedule::new(&SchedulerConfig::default())?;
    let tokenizer = Tokenizer::clip()?;
    let mut diary = Diary::new("diffusion");
    let side = SIDE_PX as usize;
    for batch in feed(data, student.updates, part.updates, part.rows, Mix::Drawings)? {
        let at = student.updates;
        let x = Tensor::from_vec(batch.pixels, (part.rows, 3, side, side), &Device::Cpu)?;
        let distribution = student.networks.encode(&x)?;
        let eps = noise.normal(Purpose::Latents, at, distribution.mean.shape())?;
        let latents = distribution.sample_with(&eps)?.affine(scale, 0.0)?;
        let target = noise.normal(Purpose::Noise, at, latents.shape())?;
        let timesteps = noise.timesteps(at, part.rows, 1000);
        let noisy = schedule.add_noise(&latents, &target, &timesteps)?;
        let times: Vec<f32> = timesteps.iter().map(|t| *t as f32).collect();
        let (_, channels, height, width) = latents.dims4()?;
        let step = Step {
            dims: [channels, height, width],
            noisy: &values(&noisy)?,
            timesteps: &times,
            prompts: Prompts::Ids(&token_ids(&tokenizer, &batch.captions)?),
            target: &values(&target)?,
            weights: &vec![1.0 / part.rows as f32; part.rows],
            loss_scale: 1.0,
            accumulate: false,
        };
        let rate = cosine(part.learning_rate, at, part.updates);
        let update = student.update(&[Group::UNet, Group::TextEncoder], rate);
        let told = student.networks.train(&step, Some(&update))?;
        let loss = told.losses.iter().sum::<f32>() / part.rows as f32;
        if let Some(updated) = told.updated {
            student.updated(loss, updated)?;
            diary.note(student.updates, loss, updated.grad_norm);
        }
        if student.updates.is_multiple_of(SAVE_EVERY) {
            student.save()?;
        }
        if part.time_is_up(started) {
            break;
        }
    }
    student.save()?;
    let trained = [programs::Part::UNet, programs::Part::TextEncoder].map(|part| student.averaged(part));
    let [unet, text] = trained;
    starter::write(
        &part.work.join("starter"),
        &vae_weights,
        &unet?,
        text?,
        scale,
        &text_weights,
    )?;
    Ok(student.updates >= part.updates)
}

/// `[rows, tokens]`
fn token_ids(tokenizer: &Tokenizer, captions: &[String]) -> Result<Vec<u32>, PretrainError> {
    let mut ids = Vec::new();
    for caption in captions {
        ids.extend(tokenizer.encode(caption, true)?.ids);
    }
    Ok(ids)
}

/// One over the standard deviation of the latents, so that the U-Net sees values of size one.
fn scaling_factor(networks: &mut Networks, data: &StarterData) -> Result<f64, PretrainError> {
    let side = SIDE_PX as usize;
    let mut squares = 0f64;
    for step in 0..SCALE_BATCHES {
        let batch = data.batch(u64::MAX - step, 32, Mix::Drawings);
        let x = Tensor::from_vec(batch.pixels, (32, 3, side, side), &Device::Cpu)?;
        let mean = networks.encode(&x)?.mean;
        squares += f64::from(mean.sqr()?.mean_all()?.to_scalar::<f32>()?);
    }
    Ok((SCALE_BATCHES as f64 / squares).sqrt())
}
