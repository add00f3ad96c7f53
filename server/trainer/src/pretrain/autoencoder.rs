//! The autoencoder: absolute and squared error of the pixels, and a light pull of the latents towards a normal
//! distribution (Rombach et al. 2022, without the perceptual and adversarial parts, whose networks nobody ships).

use std::path::Path;
use std::time::Instant;

use app::recipe::Precision;
use candle_core::{D, Device, Tensor};

use super::data::{Mix, StarterData};
use super::feed::feed;
use super::starter::{self, SIDE_PX};
use super::{Diary, Part, PretrainError, Student, cosine};
use crate::engine::ir::Group;
use crate::engine::nets::networks::Networks;
use crate::engine::nets::programs::{self, Plan};
use crate::engine::nets::vae::{LOGVAR_RANGE, LatentDistribution};
use crate::engine::session::{Update, Updated};
use crate::models::params::Weights;
use crate::models::{ModelConfig, random_weights};
use crate::noise::{Noise, Purpose};

/// Weight of the KL term, mean over the latents' elements.
const KL_WEIGHT: f64 = 2e-3;
/// Every tenth update.
const AVERAGE_DECAY: f64 = 0.99;
const SAVE_EVERY: u64 = 1000;

/// Trains until done or out of time. Returns whether it is done.
///
/// # Errors
/// When the data cannot be read, the loss stops being finite, or the device gives out.
pub fn train(part: &Part) -> Result<bool, PretrainError> {
    let started = Instant::now();
    let data = StarterData::open(&part.data, SIDE_PX, part.seed)?;
    let config = starter::vae_config();
    let weights = random_weights(ModelConfig::Vae(&config), starter::WEIGHTS_SEED)?;
    let plan = Plan {
        vae: Some(config),
        trains: [Group::Vae].into(),
        ..Plan::default()
    };
    let folder = part.work.join("autoencoder");
    let weights = [(programs::Part::Vae, &weights)];
    let mut student = Student::new(plan, &weights, AVERAGE_DECAY, &folder, (&part.device, Precision::No))?;
    let noise = Noise::new(part.seed);
    let mut diary = Diary::new("autoencoder");
    let side = SIDE_PX as usize;
    let rows = part.rows;
    let batches = feed(student.updates..part.updates, move |at| {
        data.batch(at, rows, Mix::PhotosAndDrawings)
    })?;
    for batch in batches {
        let at = student.updates;
        let x = Tensor::from_vec(batch.pixels, (part.rows, 3, side, side), &Device::Cpu)?;
        let update = student.update(&[Group::Vae], cosine(part.learning_rate, at, part.updates));
        let eps = |shape: &candle_core::Shape| noise.normal(Purpose::Latents, at, shape);
        let (loss, updated) = step(&mut student.networks, &x, eps, &update)?;
        student.updated(loss, updated)?;
        diary.note(student.updates, loss, updated.grad_norm);
        if student.updates.is_multiple_of(SAVE_EVERY) {
            student.save()?;
        }
        if part.time_is_up(started) {
            break;
        }
    }
    student.save()?;
    let weights = student.averaged(programs::Part::Vae)?;
    candle_core::safetensors::save(&weights.into_iter().collect(), part.work.join("vae.safetensors"))?;
    Ok(student.updates >= part.updates)
}

/// Loss and update of one batch, `x` `[rows, 3, h, w]` in -1 to 1, with a draw `eps` of the latents. What the loss asks
/// for is computed here, so both halves of the network run forward a second time, on their way back.
fn step(
    networks: &mut Networks,
    x: &Tensor,
    eps: impl FnOnce(&candle_core::Shape) -> candle_core::Result<Tensor>,
    update: &Update,
) -> Result<(f32, Updated), PretrainError> {
    let latents = networks.encode(x)?;
    let eps = eps(latents.mean.shape())?;
    let z = latents.sample_with(&eps)?;
    let (pixels, dy) = pixel_loss(&networks.decode(&z)?, x)?;
    let dz = networks.decode_backward(&z, &dy)?;
    let (kl, dmoments) = latents_loss(&latents, &eps, &dz)?;
    let updated = networks.encode_backward(x, &dmoments, update)?;
    Ok((pixels + kl, updated))
}

/// `mean |y - x| + 2 mean (y - x)^2`, and its gradient.
fn pixel_loss(y: &Tensor, x: &Tensor) -> candle_core::Result<(f32, Tensor)> {
    let apart = (y - x)?;
    let loss = (apart.abs()?.mean_all()? + apart.sqr()?.mean_all()?.affine(2.0, 0.0)?)?;
    let gradient = (apart.sign()? + apart.affine(4.0, 0.0)?)?;
    Ok((
        loss.to_scalar()?,
        gradient.affine(1.0 / apart.elem_count() as f64, 0.0)?,
    ))
}

/// How far the latents are from a standard normal distribution, times its weight, and the gradient of means and
/// log-variances `[rows, 8, h / 8, w / 8]` with what the draw `mean + exp(logvar / 2) eps` hands back.
fn latents_loss(latents: &LatentDistribution, eps: &Tensor, dz: &Tensor) -> candle_core::Result<(f32, Tensor)> {
    let LatentDistribution { mean, logvar } = latents;
    let variance = logvar.exp()?;
    let kl = ((mean.sqr()? + &variance)? - logvar.affine(1.0, 1.0)?)?.mean_all()?;
    let weight = KL_WEIGHT / mean.elem_count() as f64;
    let dmean = (dz + mean.affine(weight, 0.0)?)?;
    let through_draw = ((dz * eps)? * latents.std()?)?.affine(0.5, 0.0)?;
    let dlogvar = (through_draw + variance.affine(0.5 * weight, -0.5 * weight)?)?;
    // Where it was cut off it has no part in the loss.
    let free = (logvar.gt(LOGVAR_RANGE.0)? * logvar.lt(LOGVAR_RANGE.1)?)?.to_dtype(dlogvar.dtype())?;
    let dmoments = Tensor::cat(&[dmean, (dlogvar * free)?], 1)?;
    Ok((kl.affine(0.5 * KL_WEIGHT, 0.0)?.to_scalar()?, dmoments))
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
///
/// # Errors
/// What the device answers.
pub fn reconstruction_psnr_db(networks: &mut Networks, x: &Tensor) -> Result<(Tensor, Vec<f32>), PretrainError> {
    let z = networks.encode(x)?.mean;
    let y = networks.decode(&z)?.clamp(-1.0, 1.0)?;
    let mse = (&y - x)?.affine(0.5, 0.0)?.sqr()?.flatten_from(1)?.mean(D::Minus1)?;
    let db = mse
        .to_vec1::<f32>()?
        .into_iter()
        .map(|mse| -10.0 * mse.max(1e-10).log10())
        .collect();
    Ok((y, db))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ir::ParamId;
    use crate::models::config::VaeConfig;
    use std::collections::BTreeMap;

    fn student() -> Student {
        let json = r#"{"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2}"#;
        let config: VaeConfig = serde_json::from_str(json).unwrap();
        let weights = random_weights(ModelConfig::Vae(&config), 1).unwrap();
        let plan = Plan {
            vae: Some(config),
            trains: [Group::Vae].into(),
            ..Plan::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let weights = [(programs::Part::Vae, &weights)];
        Student::new(
            plan,
            &weights,
            AVERAGE_DECAY,
            folder.path(),
            (&crate::device::Device::Cpu, Precision::No),
        )
        .unwrap()
    }

    fn wave(shape: impl Into<candle_core::Shape>, k: f32) -> Tensor {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count()).map(|i| (i as f32 * k).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Without an update's change.
    fn still(student: &Student) -> Update {
        student.update(&[Group::Vae], 0.0)
    }

    #[test]
    fn the_gradient_is_the_losss() {
        let mut student = student();
        let (x, eps) = (wave((1, 3, 6, 4), 0.7), wave((1, 4, 3, 2), 1.3));
        let update = still(&student);
        let loss = |networks: &mut Networks| step(networks, &x, |_| Ok(eps.clone()), &update).unwrap().0;
        loss(&mut student.networks);
        let mut ends: BTreeMap<String, ParamId> = BTreeMap::new();
        for (id, param) in student.networks.trained() {
            ends.insert(param.name, id);
        }
        for name in [
            "vae.encoder.conv_in.weight",
            "vae.quant_conv.bias",
            "vae.decoder.conv_in.bias",
        ] {
            let session = student.networks.session();
            let (id, gradient) = (ends[name], session.gradient(ends[name]).unwrap());
            let weights = session.weight(id).unwrap();
            // Along the gradient, where the change is largest over the rounding of an f32 loss; short, for |y - x| has kinks.
            let norm = gradient.iter().map(|v| v * v).sum::<f32>().sqrt();
            let length = 2e-3;
            let mut moved = |sign: f32| {
                let moved = weights.iter().zip(&gradient).map(|(w, g)| w + sign * length * g / norm);
                let values: Vec<f32> = moved.collect();
                student.networks.session().set_weight(id, &values).unwrap();
                loss(&mut student.networks)
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * length);
            student.networks.session().set_weight(id, &weights).unwrap();
            assert!(((slope - norm) / norm).abs() < 0.02, "{name}: {slope} {norm}");
        }
    }

    #[test]
    fn a_picture_is_learnt() {
        let mut student = student();
        let (x, eps) = (wave((1, 3, 6, 4), 0.7), wave((1, 4, 3, 2), 1.3));
        let mut losses = Vec::new();
        for _ in 0..60 {
            let update = student.update(&[Group::Vae], 1e-2);
            let (loss, updated) = step(&mut student.networks, &x, |_| Ok(eps.clone()), &update).unwrap();
            student.updated(loss, updated).unwrap();
            losses.push(loss);
        }
        assert!(losses[59] < 0.5 * losses[0], "{losses:?}");
    }
}
