//! One DreamBooth step: prediction, loss and every gradient against PyTorch's.

use std::collections::BTreeMap;

use candle_core::{DType, Device, IndexOp, Tensor};
use serde::Deserialize;
use serde::de::IgnoredAny;
use trainer::engine::ir::Group;
use trainer::engine::nets::diffusion::{Chance, Diffusion, Level};
use trainer::engine::nets::networks::{Prompts, Step as TrainingStep};
use trainer::engine::nets::programs::{Part, Plan};

use super::{
    engine::{gradient, networks, text},
    forward::{text_encoder_weights, unet_weights},
    support::{Table, json, l2, load, peek, rel_l2, relative, relmax, values},
};

/// f16 storage of the golden gradients alone is 3.5e-4.
const GRADIENT_TOLERANCE: f64 = 1e-3;
const NORM_TOLERANCE: f64 = 1e-4;
const LOSS_TOLERANCE: f64 = 1e-5;
const PREDICTION_TOLERANCE: f64 = 2e-5;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GradsIndex {
    /// What the numbers are, in words.
    #[serde(rename = "columns")]
    _columns: IgnoredAny,

    /// By name: the exponent of the stored scale, the gradient's norm, its sum.
    tensors: BTreeMap<String, (i32, f64, f64)>,
}

#[derive(Deserialize)]
struct Trajectories {
    variants: Variants,
}

#[derive(Deserialize)]
struct Variants {
    base: Variant,
}

#[derive(Deserialize)]
struct Variant {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    instance_loss: f64,
    prior_loss: f64,
    grad_norm_before_clip: f64,
}

/// What one step of the `base` variant computes.
struct Trained {
    prediction: Tensor,
    loss: f64,
    instance_loss: f64,
    prior_loss: f64,
    /// By `unet.` or `text_encoder.` and path.
    gradients: BTreeMap<String, Vec<f64>>,
}

/// `recompute`: with gradient checkpointing. The rows are taken in so many micro-batches.
fn one_step(recompute: bool, parts: usize) -> Trained {
    let plan = Plan {
        unet: Some(json("tiny-sd/unet/config.json")),
        text_encoder: Some(json("tiny-sd/text_encoder/config.json")),
        trains: [Group::UNet, Group::TextEncoder].into(),
        recompute,
        ..Plan::default()
    };
    let (unet, text_encoder) = (unet_weights(), text_encoder_weights());
    let mut networks = networks(plan, &[(Part::UNet, &unet), (Part::TextEncoder, &text_encoder)]);

    let inputs = peek("train/inputs.safetensors");
    let of_step = |name: &str| inputs[name].i(0).unwrap();
    let (latents, noise, timesteps) = (of_step("latents"), of_step("noise"), of_step("timesteps"));
    let noisy = add_noise(&latents, &noise, &timesteps);
    let timesteps: Vec<f32> = timesteps
        .to_vec1::<i64>()
        .unwrap()
        .into_iter()
        .map(|t| t as f32)
        .collect();
    let ids = inputs["input_ids"].to_dtype(DType::U32).unwrap();
    let context = text(&mut networks, &ids, 1);
    let prediction = networks.predict(&noisy, &timesteps, &context).unwrap();
    let ids: Vec<u32> = ids.flatten_all().unwrap().to_vec1().unwrap();
    let f32s = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let dims = noisy.dims();
    let latents = f32s(&latents);
    let noise = f32s(&noise);
    let exact = vec![0.; latents.len()];
    let rows = timesteps.len() / parts;
    networks.learn_by(golden_diffusion());
    let mut losses = Vec::new();
    for part in 0..parts {
        let of = |values: usize| part * values / parts..(part + 1) * values / parts;
        let step = TrainingStep {
            dims: [dims[1], dims[2], dims[3]],
            mean: &latents[of(latents.len())],
            deviation: &exact[of(exact.len())],
            chance: Chance::Given {
                latents: &exact[of(exact.len())],
                noise: &noise[of(noise.len())],
                offsets: &[],
                timesteps: &timesteps[of(timesteps.len())],
            },
            prompts: Prompts::Ids(&ids[of(ids.len())]),
            // Means over two instances and over two class images.
            shares: &vec![0.5; rows],
            loss_scale: 1.,
            accumulate: part > 0,
        };
        let trained = networks.train(&step, None).unwrap();
        losses.extend(trained.losses.into_iter().map(f64::from));
    }
    let gradients = (networks.trained().into_iter())
        .map(|(id, param)| (param.name.clone(), values(&gradient(&mut networks, id, &param))))
        .collect();
    let (instance_loss, prior_loss) = ((losses[0] + losses[1]) / 2., (losses[2] + losses[3]) / 2.);
    Trained {
        prediction,
        loss: instance_loss + prior_loss,
        instance_loss,
        prior_loss,
        gradients,
    }
}

/// What is left of latents, and added of noise, by the golden schedule.
fn golden_diffusion() -> Diffusion {
    let alphas = peek("train/noise_schedule.safetensors")["alphas_cumprod"].to_vec1::<f32>();
    let level = |alpha: f32| Level {
        signal: alpha.sqrt(),
        sigma: (1. - alpha).sqrt(),
        weight: 1.,
    };
    Diffusion {
        levels: alphas.unwrap().into_iter().map(level).collect(),
        velocity: false,
        latents_scale: 1.,
        offset_noise: 0.,
    }
}

fn add_noise(latents: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Tensor {
    let alphas = peek("train/noise_schedule.safetensors")["alphas_cumprod"]
        .to_vec1::<f32>()
        .unwrap();
    let timesteps = timesteps.to_vec1::<i64>().unwrap();
    let factor = |of: fn(f32) -> f32| {
        let factors: Vec<f32> = timesteps.iter().map(|&t| of(alphas[t as usize])).collect();
        Tensor::from_vec(factors, (timesteps.len(), 1, 1, 1), &Device::Cpu).unwrap()
    };
    let signal = latents.broadcast_mul(&factor(f32::sqrt)).unwrap();
    (signal + noise.broadcast_mul(&factor(|alpha| (1. - alpha).sqrt())).unwrap()).unwrap()
}

/// The golden gradients in f64, unscaled, the token embedding's filled up with zeros.
fn golden_gradients(index: &GradsIndex, width: usize, vocabulary: usize) -> BTreeMap<String, Vec<f64>> {
    let [unet, text_encoder] = ["unet", "text_encoder"].map(|model| load(&format!("train/grads_{model}.safetensors")));
    let of = |name: &str, k: i32| {
        let unscale = |t: &Tensor| values(t).into_iter().map(|v| v * 2f64.powi(-k)).collect::<Vec<_>>();
        let (stored, path) = match name.strip_prefix("unet.") {
            Some(path) => (&unet, path),
            None => (&text_encoder, name.trim_start_matches("text_encoder.")),
        };
        if let Some(dense) = stored.get(path) {
            return unscale(dense);
        }
        let part = |part: &str| &stored[format!("{path}#{part}").as_str()];
        let rows = part("rows").to_vec1::<i64>().unwrap();
        let mut dense = vec![0.; vocabulary * width];
        for (&row, values) in rows.iter().zip(unscale(part("values")).chunks(width)) {
            dense[row as usize * width..][..width].copy_from_slice(values);
        }
        dense
    };
    index
        .tensors
        .iter()
        .map(|(name, &(k, ..))| (name.clone(), of(name, k)))
        .collect()
}

/// How far a sum is off, as a share of the most that values of this norm can add up to: their signs may cancel.
pub fn sum_error(got: &[f64], norm: f64, sum: f64) -> f64 {
    (got.iter().sum::<f64>() - sum).abs() / (norm * (got.len() as f64).sqrt())
}

/// Softmax does not see a constant added to all scores of a row, so this gradient is rounding noise.
fn is_noise(name: &str) -> bool {
    name.starts_with("text_encoder.") && name.ends_with("k_proj.bias")
}

#[test]
fn the_first_step_has_the_reference_loss_and_gradients() {
    let trained = one_step(false, 1);
    assert_eq!(
        one_step(true, 1).gradients,
        trained.gradients,
        "recomputing changes no bit"
    );
    let index: GradsIndex = json("train/grads_index.json");
    let config: trainer::models::config::TextEncoderConfig = json("tiny-sd/text_encoder/config.json");
    let golden = golden_gradients(&index, config.hidden_size, config.vocab_size);
    let step = &json::<Trajectories>("train/trajectories.json").variants.base.steps[0];

    let mut table = Table::new("first training step");
    let prediction = load("train/model_pred_step1.safetensors");
    table.check(
        "prediction",
        relmax(&trained.prediction, &prediction["model_pred"]),
        PREDICTION_TOLERANCE,
    );
    table.check("loss", relative(trained.loss, step.loss), LOSS_TOLERANCE);
    table.check(
        "instance loss",
        relative(trained.instance_loss, step.instance_loss),
        LOSS_TOLERANCE,
    );
    table.check(
        "prior loss",
        relative(trained.prior_loss, step.prior_loss),
        LOSS_TOLERANCE,
    );
    let norms: Vec<f64> = trained.gradients.values().map(|g| l2(g)).collect();
    table.check("gradient norm", relative(l2(&norms), step.grad_norm_before_clip), 5e-5);
    table.finish();

    let mut table = Table::new("gradients");
    assert_eq!(
        trained.gradients.keys().collect::<Vec<_>>(),
        golden.keys().collect::<Vec<_>>(),
        "the trained tensors are the golden ones"
    );
    for (name, want) in &golden {
        let got = &trained.gradients[name];
        if is_noise(name) {
            table.check(format!("{name} (norm)"), l2(got), 1e-6);
            continue;
        }
        table.check(name, rel_l2(got, want), GRADIENT_TOLERANCE);
        let (_, norm, sum) = index.tensors[name];
        table.check(format!("{name} (norm)"), relative(l2(got), norm), NORM_TOLERANCE);
        table.check(format!("{name} (sum)"), sum_error(got, norm, sum), NORM_TOLERANCE);
    }
    table.finish();
}

#[test]
fn micro_batches_add_up_to_the_gradients_of_the_whole_batch() {
    let whole = one_step(false, 1);
    for parts in [2, 4] {
        let added = one_step(false, parts);
        let mut table = Table::new("gradients of micro-batches, added up");
        table.check("loss", relative(added.loss, whole.loss), LOSS_TOLERANCE);
        for (name, want) in whole.gradients.iter().filter(|(name, _)| !is_noise(name)) {
            table.check(name, rel_l2(&added.gradients[name], want), 1e-5);
        }
        table.finish();
    }
}

#[test]
fn every_trained_weight_gets_a_finite_gradient_that_is_not_zero() {
    for (name, gradient) in one_step(false, 1).gradients {
        let norm = l2(&gradient);
        assert!(norm.is_finite() && norm > 0., "{name}: |gradient| = {norm}");
    }
}
