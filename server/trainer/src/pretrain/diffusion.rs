//! The U-Net and the text encoder together: noise prediction on the frozen autoencoder's latents (Ho et al. 2020 with
//! SD's schedule), captions left out a tenth of the time (Ho and Salimans 2022), weights averaged.

use std::sync::Arc;
use std::time::Instant;

use app::recipe::Precision;
use candle_core::{Device, Tensor};

use super::data::{Mix, StarterData};
use super::feed::feed;
use super::latents::{Pool, Rows};
use super::starter::{self, SIDE_PX};
use super::{Diary, Part, PretrainError, Student, autoencoder, cosine};
use crate::dreambooth::batch::Objective;
use crate::engine::ir::Group;
use crate::engine::nets::diffusion::{Chance, Diffusion};
use crate::engine::nets::networks::{Networks, Prompts, Step};
use crate::engine::nets::programs::{self, Plan};
use crate::engine::philox::Clock;
use crate::engine::session::Updated;
use crate::models::config::{PredictionType, SchedulerConfig};
use crate::models::{ModelConfig, random_weights};
use crate::noise::Noise;
use crate::pipeline::LATENT_PX;
use crate::schedulers::NoiseSchedule;
use crate::tokenizer::Tokenizer;

/// Every tenth update: over the last 2,500 of them.
const AVERAGE_DECAY: f64 = 0.996;
const SAVE_EVERY: u64 = 5000;
/// Pictures that are encoded ahead, and updates that read them before others take their place.
const POOL: usize = 65_536;
const RENEW_EVERY: u64 = 8_000;
/// Where the weight of a nearly clean timestep is cut off (gamma of min-SNR, Hang et al. 2023).
const MOST_SNR: f64 = 5.0;
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
    // A card without bf16 computes in f32: fp16 would ask for a loss scale.
    let precision = match part.device.precision(Some(Precision::Bf16)) {
        Precision::Bf16 => Precision::Bf16,
        _ => Precision::No,
    };
    let folder = part.work.join("diffusion");
    let mut student = Student::new(plan, &weights, AVERAGE_DECAY, &folder, (&part.device, precision))?;
    let scale = scaling_factor(&mut student.networks, &data)?;
    let noise = Noise::new(part.seed);
    let objective = Objective {
        schedule: NoiseSchedule::new(&SchedulerConfig::default())?,
        prediction: PredictionType::Epsilon,
        snr_gamma: Some(MOST_SNR),
        offset_noise: 0.0,
    };
    // Latents of the pool are scaled.
    let diffusion = objective.diffusion(1.0)?;
    student.networks.learn_by(diffusion.clone());
    let tokenizer = Tokenizer::clip()?;
    let mut diary = Diary::new("diffusion");
    while student.updates < part.updates && !part.time_is_up(started) {
        let generation = student.updates / RENEW_EVERY;
        let end = part.updates.min((generation + 1) * RENEW_EVERY);
        let pictures = POOL.min(part.rows * (part.updates.min(RENEW_EVERY)) as usize);
        let of = (generation, pictures);
        let pool = Pool::fill(&mut student.networks, &data, &tokenizer, &noise, scale, of)?;
        tracing::info!(
            "{pictures} pictures encoded after {:.0} s",
            started.elapsed().as_secs_f64()
        );
        let (seed, rows) = (part.seed, part.rows);
        for rows in feed(student.updates..end, move |at| pool.rows(seed, at, rows))? {
            let rate = cosine(part.learning_rate, student.updates, part.updates);
            let clock = Clock {
                seed,
                number: student.updates,
            };
            let (loss, updated) = step(&mut student, &rows, clock, &diffusion, rate)?;
            student.updated(loss, updated)?;
            diary.note(student.updates, loss, updated.grad_norm);
            if student.updates.is_multiple_of(SAVE_EVERY) {
                student.save()?;
            }
            if part.time_is_up(started) {
                break;
            }
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

/// The weighted loss of `rows`, and the update that it made.
fn step(
    student: &mut Student,
    rows: &Rows,
    clock: Clock,
    diffusion: &Diffusion,
    rate: f64,
) -> Result<(f32, Updated), PretrainError> {
    let side = SIDE_PX as usize / LATENT_PX;
    let dims = [starter::vae_config().latent_channels, side, side];
    let count = rows.latents.len() / dims.iter().product::<usize>();
    let share = 1.0 / count as f32;
    let step = Step {
        dims,
        mean: &rows.latents,
        // The pool's latents were drawn from their distributions.
        deviation: &vec![0.0; rows.latents.len()],
        chance: Chance::Drawn(clock),
        prompts: Prompts::Ids(&rows.ids),
        shares: &vec![share; count],
        loss_scale: 1.0,
        accumulate: false,
    };
    let update = student.update(&[Group::UNet, Group::TextEncoder], rate);
    let told = student.networks.train(&step, Some(&update))?;
    let weights = diffusion.weights_at(&told.timesteps);
    let losses = told.losses.iter().zip(weights);
    let loss = losses.map(|(loss, weight)| share * weight * loss).sum();
    let updated = told.updated.unwrap_or(Updated {
        skipped: true,
        grad_norm: f64::NAN,
    });
    Ok((loss, updated))
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
