//! Stable Diffusion 2.x: velocity as the target, OpenCLIP's text encoder, linear projections and a head count for each
//! block, on `tiny-sd21/` (see MANIFEST.md and `scripts/tiny_sd21.py`).

use std::collections::BTreeMap;

use app::recipe::Precision;
use candle_core::{DType, IndexOp, Tensor};
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use trainer::device::Device;
use trainer::dreambooth::batch::{Batch, Objective};
use trainer::dreambooth::learner::{Learner, Learning};
use trainer::engine::nets::diffusion::Chance;
use trainer::engine::nets::networks::{Prompts, Step as TrainingStep};
use trainer::formats::{self, Container, ModelWeights, Width};
use trainer::models::config::PredictionType;
use trainer::schedulers::NoiseSchedule;

use super::engine::{ADAM, gradient, text};
use super::gradients::sum_error;
use super::support::{Golden, Table, Tensors, json, l2, load, part_of, rel_l2, relative, relmax, values};

const TEXT_TOLERANCE: f64 = 1e-5;
const TOLERANCE: f64 = 2e-5;
const LOSS_TOLERANCE: f64 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-4;

fn model() -> ModelWeights {
    formats::load(&super::dir_of("tiny-sd21").to_string_lossy()).unwrap()
}

fn ids(golden: &Golden) -> Tensor {
    golden["input_ids"].to_dtype(DType::U32).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    values(tensor).into_iter().map(|value| value as f32).collect()
}

#[test]
fn sd21_networks_give_the_reference_outputs() {
    let golden = part_of("tiny-sd21/golden.safetensors", "networks");
    let mut learner = Learner::for_drawing(model(), &Device::Cpu).unwrap();
    let networks = &mut learner.networks;
    let states = text(networks, &ids(&golden), 1);
    let timesteps: Vec<f32> = numbers(&golden["unet_timesteps"]);
    let out = networks.predict(&golden["sample"], &timesteps, &states).unwrap();
    let first = states.i(..1).unwrap();
    let odd = networks.predict(&golden["odd_sample"], &[500.0], &first).unwrap();
    let latents = networks.encode(&golden["image"]).unwrap();
    let decoded = networks.decode(&golden["z"]).unwrap();
    let mut table = Table::new("stable diffusion 2.1");
    let mut check = |name: &str, got: &Tensor, tolerance| table.check(name, relmax(got, &golden[name]), tolerance);
    check("text.last_hidden_state", &states, TEXT_TOLERANCE);
    check("unet.out", &out, TOLERANCE);
    check("unet.odd.out", &odd, TOLERANCE);
    check("vae.mean", &latents.mean, TOLERANCE);
    check("vae.logvar", &latents.logvar, TOLERANCE);
    check("vae.decoded", &decoded, TOLERANCE);
    table.finish();
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// Where the tolerances come from.
    #[serde(rename = "f32_against_f64")]
    _f32_against_f64: IgnoredAny,
    loss: f64,
    instance_loss: f64,
    prior_loss: f64,
    grad_norm: f64,
    gradients: BTreeMap<String, Gradient>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gradient {
    norm: f64,
    sum: f64,
}

#[test]
fn sd21_a_step_on_velocity_gives_the_reference_loss_and_gradients() {
    let golden = part_of("tiny-sd21/golden.safetensors", "step");
    let stored = load("tiny-sd21/gradients.safetensors");
    let wanted: Step = json("tiny-sd21/train.json");
    let learning = Learning {
        text_encoder: true,
        precision: Precision::No,
        recompute: false,
        optimizer: ADAM,
        keeps_an_eye: false,
        adapter: None,
        seed: 0,
    };
    let mut learner = Learner::new(model(), None, &learning, &Device::Cpu).unwrap();
    let scheduler = &learner.base().scheduler_config;
    assert_eq!(scheduler.prediction_type, PredictionType::VPrediction);
    let objective = Objective {
        schedule: NoiseSchedule::new(scheduler).unwrap(),
        prediction: scheduler.prediction_type,
        snr_gamma: None,
        offset_noise: 0.0,
    };
    let diffusion = objective.diffusion(1.0).unwrap();
    let timesteps = golden["timesteps"].to_vec1::<i64>().unwrap();
    let timesteps: Vec<f32> = timesteps.into_iter().map(|t| t as f32).collect();
    // The golden latents are scaled, and drawn from their distribution already.
    let latents = numbers(&golden["latents"]);
    let maps = [latents.clone(), vec![0.0; latents.len()]];
    let flat = ids(&golden).flatten_all().unwrap().to_vec1().unwrap();
    let batch = Batch::new([4, 8, 8], 1, maps, flat);
    let networks = &mut learner.networks;
    networks.learn_by(diffusion.clone());
    let step = TrainingStep {
        dims: batch.dims,
        mean: &batch.mean,
        deviation: &batch.deviation,
        chance: Chance::Given {
            latents: &batch.deviation,
            noise: &numbers(&golden["noise"]),
            offsets: &[],
            timesteps: &timesteps,
        },
        prompts: Prompts::Ids(&batch.ids),
        shares: &batch.weighted_shares(1.0),
        loss_scale: 1.0,
        accumulate: false,
    };
    let told = networks.train(&step, None).unwrap();
    let losses = batch.losses(&told.losses, &diffusion.weights_at(&timesteps), 1.0);
    let mut table = Table::new("stable diffusion 2.1, one step");
    let whole: Vec<u32> = timesteps.iter().map(|t| *t as u32).collect();
    let (clean, noise) = (&golden["latents"], &golden["noise"]);
    let noisy = objective.schedule.add_noise(clean, noise, &whole).unwrap();
    let target = objective.schedule.velocity(clean, noise, &whole).unwrap();
    let states = text(networks, &ids(&golden), 1);
    let prediction = networks.predict(&noisy, &timesteps, &states).unwrap();
    for (name, got) in [("noisy", &noisy), ("target", &target), ("prediction", &prediction)] {
        let name = format!("train.{name}");
        table.check(&name, relmax(got, &golden[name.as_str()]), TOLERANCE);
    }
    for (name, got, want) in [
        ("loss", losses.total, wanted.loss),
        ("instance loss", losses.instance, wanted.instance_loss),
        ("prior loss", losses.prior.unwrap(), wanted.prior_loss),
    ] {
        table.check(name, relative(f64::from(got), want), LOSS_TOLERANCE);
    }
    let trained = networks.trained();
    let grads: Tensors = (trained.into_iter())
        .map(|(id, param)| (param.name.clone(), gradient(networks, id, &param)))
        .collect();
    let norm = grads.values().map(|grad| l2(&values(grad)).powi(2)).sum::<f64>().sqrt();
    table.check("gradient norm", relative(norm, wanted.grad_norm), GRADIENT_TOLERANCE);
    assert_eq!(grads.len(), wanted.gradients.len());
    for (name, want) in &wanted.gradients {
        let got = &grads[name];
        let all = values(got);
        // Zero but for rounding: a bias that softmax takes no notice of, and attention among the mid block's one pixel.
        if name.ends_with("k_proj.bias") || want.norm == 0.0 {
            table.check(name.clone(), l2(&all), 1e-6);
            let stored = &stored[format!("{name}#stride7").as_str()];
            table.check(format!("{name} of the reference"), l2(&values(stored)), 1e-6);
            continue;
        }
        table.check(
            format!("{name} norm"),
            relative(l2(&all), want.norm),
            GRADIENT_TOLERANCE,
        );
        table.check(
            format!("{name} sum"),
            sum_error(&all, want.norm, want.sum),
            GRADIENT_TOLERANCE,
        );
        let (kept, stored) = match stored.get(&format!("{name}#stride7")) {
            Some(stored) => (all.into_iter().step_by(7).collect(), values(stored)),
            None => {
                let rows = &stored[format!("{name}#rows").as_str()];
                let kept = got.index_select(&rows.to_dtype(DType::U32).unwrap(), 0).unwrap();
                (values(&kept), values(&stored[format!("{name}#values").as_str()]))
            }
        };
        // Every 7th value of a small tensor may be a small one: held to the whole gradient's size.
        let scale = l2(&stored).max(0.1 * want.norm);
        table.check(
            name.clone(),
            rel_l2(&kept, &stored) * l2(&stored) / scale,
            10.0 * GRADIENT_TOLERANCE,
        );
    }
    table.finish();
}

#[test]
fn sd21_a_single_file_is_the_converters_bit_for_bit_and_reads_back() {
    let wanted: BTreeMap<String, (Vec<usize>, String, String)> = json("tiny-sd21/single_file.json");
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    for (name, container) in [("a.safetensors", Container::Safetensors), ("a.ckpt", Container::Ckpt)] {
        let path = folder.path().join(name);
        formats::save_single_file(&path, &model, Width::Half, container).unwrap();
        let file = formats::TensorFile::open(&path).unwrap();
        let names: Vec<&String> = file.entries().keys().collect();
        assert_eq!(names, wanted.keys().collect::<Vec<_>>());
        for (key, (shape, dtype, sha256)) in &wanted {
            let got = file.read(key).unwrap();
            assert_eq!((got.dims(), dtype.as_str()), (shape.as_slice(), "float16"), "{key}");
            let numbers = got.flatten_all().unwrap().to_vec1::<half::f16>().unwrap();
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            assert_eq!(&hex::encode(Sha256::digest(bytes)), sha256, "{key}");
        }
        let read = formats::load(&path.to_string_lossy()).unwrap();
        assert_eq!(read.config_files, model.config_files);
        for (before, after) in [
            (&model.unet, &read.unet),
            (&model.vae, &read.vae),
            (&model.text_encoder, &read.text_encoder),
        ] {
            assert_eq!(before.len(), after.len());
            for (path, tensor) in before {
                assert!(relmax(&after[path], tensor) == 0.0, "{path}");
            }
        }
    }
}
