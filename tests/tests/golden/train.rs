//! Whole DreamBooth trajectories: loss, gradient norm, clipping and AdamW's updates against PyTorch's.

use std::collections::BTreeMap;
use std::path::Path;

use app::recipe::{Adam, Precision};
use candle_core::{DType, IndexOp};
use serde::Deserialize;
use serde::de::IgnoredAny;
use trainer::device::Device;
use trainer::dreambooth::batch::{Batch, Objective};
use trainer::dreambooth::learner::{Learner, Learning};
use trainer::engine::ir::{Group, ParamId};
use trainer::engine::nets::diffusion::{Chance, Diffusion};
use trainer::engine::nets::networks::{Networks, Prompts, Step, Trained};
use trainer::engine::optim::clip_factor;
use trainer::engine::session::{Moments, OptimizerSettings, Update};
use trainer::formats;
use trainer::models::config::{PredictionType, SchedulerConfig};
use trainer::schedulers::NoiseSchedule;

use super::support::{Golden, Table, json, l2, load, peek, relative, values};

const LOSS_TOLERANCE: f64 = 1e-5;
const GRAD_NORM_TOLERANCE: f64 = 5e-5;
const TENSOR_NORM_TOLERANCE: f64 = 1e-4;
const FINAL_NORM_TOLERANCE: f64 = 1e-5;
const CHANGE_TOLERANCE: f64 = 5e-3;
/// Its change is nearly all rounding of `w * (1 - 1e-6)`.
const EMBEDDING_CHANGE_TOLERANCE: f64 = 5e-2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Trajectories {
    settings: Settings,
    variants: BTreeMap<String, Wanted>,
}

/// Of all variants that say nothing else.
#[derive(Deserialize)]
struct Settings {
    lr: f64,
    betas: [f64; 2],
    weight_decay: f64,
    eps: f64,
    clip_grad_norm: f64,
    prior_loss_weight: f32,
    noise_schedule: SchedulerConfig,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// In words.
    #[serde(rename = "what")]
    _what: IgnoredAny,
    steps: Vec<WantedStep>,
}

#[derive(Deserialize)]
struct WantedStep {
    #[serde(flatten)]
    losses: Option<WantedLosses>,
    #[serde(default)]
    micro_batches: Vec<WantedLosses>,
    grad_norm_before_clip: f64,
    clip_factor: f64,
}

#[derive(Clone, Deserialize)]
struct WantedLosses {
    loss: f64,
    instance_loss: f64,
    prior_loss: Option<f64>,
    snr_weights: Option<Vec<f64>>,
}

/// How a variant differs from `base`.
pub(super) struct Variant {
    name: &'static str,
    prediction: PredictionType,
    trains_text_encoder: bool,
    pub learning_rate: f64,
    pub adam: Adam,
    prior_loss_weight: f32,
    accumulation: usize,
    /// Of the data of step 2.
    noise_factor: f64,
    offset_noise: f64,
    snr_gamma: Option<f64>,
    /// Which rows of the data are instances and class images.
    instances: Vec<usize>,
    classes: Vec<usize>,
    /// What diffusers' script makes of the rows' shares, given the weights of their timesteps, where it differs from ours.
    reweigh: fn(&mut [f32], &[f32]),
}

pub(super) fn base(name: &'static str) -> Variant {
    let Trajectories { settings, .. } = json("train/trajectories.json");
    Variant {
        name,
        prediction: PredictionType::Epsilon,
        trains_text_encoder: true,
        learning_rate: settings.lr,
        adam: Adam {
            adam_beta1: settings.betas[0],
            adam_beta2: settings.betas[1],
            adam_weight_decay: settings.weight_decay,
            adam_epsilon: settings.eps,
            max_grad_norm: settings.clip_grad_norm,
        },
        prior_loss_weight: settings.prior_loss_weight,
        accumulation: 1,
        noise_factor: 1.0,
        offset_noise: 0.0,
        snr_gamma: None,
        instances: vec![0, 1],
        classes: vec![2, 3],
        reweigh: |_, _| (),
    }
}

/// A micro-batch with the noise and the timesteps that the golden run had.
pub(super) struct Draw {
    pub batch: Batch,
    noise: Vec<f32>,
    offsets: Vec<f32>,
    pub timesteps: Vec<f32>,
}

pub(super) fn draw(inputs: &Golden, step: usize, variant: &Variant) -> Draw {
    let rows: Vec<usize> = variant.instances.iter().chain(&variant.classes).copied().collect();
    let of = |name: &str| -> Vec<f32> {
        let of_row = |row: &usize| inputs[name].i((step, *row)).unwrap().flatten_all().unwrap();
        rows.iter()
            .flat_map(|row| of_row(row).to_vec1::<f32>().unwrap())
            .collect()
    };
    let factor = if step == 1 { variant.noise_factor } else { 1.0 };
    let timesteps = inputs["timesteps"].i(step).unwrap().to_vec1::<i64>().unwrap();
    let ids = inputs["input_ids"]
        .to_dtype(DType::U32)
        .unwrap()
        .to_vec2::<u32>()
        .unwrap();
    let shape = inputs["latents"].dims();
    let dims = [shape[2], shape[3], shape[4]];
    // The golden latents are scaled, and drawn from their distribution already.
    let latents = of("latents");
    let deviation = vec![0.0; latents.len()];
    let ids = rows.iter().flat_map(|row| ids[*row].clone()).collect();
    Draw {
        batch: Batch::new(dims, variant.instances.len(), [latents, deviation], ids),
        noise: of("noise")
            .into_iter()
            .map(|noise| (f64::from(noise) * factor) as f32)
            .collect(),
        offsets: of("offset_noise"),
        timesteps: rows.iter().map(|row| timesteps[*row] as f32).collect(),
    }
}

/// All trained weights, by name.
pub(super) fn weights(networks: &mut Networks) -> BTreeMap<String, Vec<f64>> {
    read(networks, |networks, id| networks.session().weight(id).unwrap())
}

pub(super) fn gradients(networks: &mut Networks) -> BTreeMap<String, Vec<f64>> {
    read(networks, |networks, id| networks.session().gradient(id).unwrap())
}

fn read(networks: &mut Networks, of: impl Fn(&mut Networks, ParamId) -> Vec<f32>) -> BTreeMap<String, Vec<f64>> {
    let trained = networks.trained().into_iter();
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
    trained
        .map(|(id, param)| (param.name, wide(of(networks, id))))
        .collect()
}

impl Variant {
    pub fn optimizer(&self, moments: Moments) -> OptimizerSettings {
        OptimizerSettings {
            moments,
            beta1: self.adam.adam_beta1,
            beta2: self.adam.adam_beta2,
            weight_decay: self.adam.adam_weight_decay,
            epsilon: self.adam.adam_epsilon,
            low_memory: None,
        }
    }

    pub fn update(&self, number: u64) -> Update {
        let groups = [Group::UNet, Group::TextEncoder];
        let trained = if self.trains_text_encoder { 2 } else { 1 };
        Update {
            learning_rates: groups[..trained]
                .iter()
                .map(|group| (*group, self.learning_rate))
                .collect(),
            max_grad_norm: self.adam.max_grad_norm,
            loss_scale: 1.0,
            number,
        }
    }
}

/// The small reference model in `folder`, ready to learn.
pub(super) fn learner(folder: &Path, variant: &Variant, optimizer: OptimizerSettings) -> (Learner, Diffusion) {
    let Trajectories { settings, .. } = json("train/trajectories.json");
    let model = formats::load(folder.to_str().unwrap()).unwrap();
    let learning = Learning {
        text_encoder: variant.trains_text_encoder,
        precision: Precision::No,
        recompute: optimizer.low_memory.is_some(),
        optimizer,
        keeps_an_eye: false,
        adapter: None,
        seed: 0,
    };
    let mut learner = Learner::new(model, None, &learning, &Device::Cpu).unwrap();
    let objective = Objective {
        schedule: NoiseSchedule::new(&settings.noise_schedule).unwrap(),
        prediction: variant.prediction,
        snr_gamma: variant.snr_gamma,
        offset_noise: variant.offset_noise,
    };
    let diffusion = objective.diffusion(1.0).unwrap();
    learner.networks.learn_by(diffusion.clone());
    (learner, diffusion)
}

fn follow(variant: &Variant) {
    let Trajectories { variants, .. } = json("train/trajectories.json");
    let wanted = &variants[variant.name].steps;
    let names: Vec<String> = json("train/tensor_names.json");
    let inputs = load("train/inputs.safetensors");
    let folder = super::dir().join("tiny-sd");
    let (mut learner, diffusion) = learner(&folder, variant, variant.optimizer(Moments::F32));
    let networks = &mut learner.networks;
    let before = weights(networks);
    let mut table = Table::new(variant.name);
    for (index, want) in wanted.iter().enumerate() {
        let losses_wanted = match &want.losses {
            Some(losses) => vec![losses.clone()],
            None => want.micro_batches.clone(),
        };
        assert_eq!(losses_wanted.len(), variant.accumulation);
        let update = variant.update(index as u64 + 1);
        let mut updated = None;
        for (micro, want) in losses_wanted.iter().enumerate() {
            let step = index * variant.accumulation + micro;
            let mut draw = draw(&inputs, step, variant);
            let weights = diffusion.weights_at(&draw.timesteps);
            if let Some(wanted) = &want.snr_weights {
                for (row, (got, want)) in weights.iter().zip(wanted).enumerate() {
                    let item = format!("step {} SNR weight {row}", step + 1);
                    table.check(item, relative(f64::from(*got), *want), LOSS_TOLERANCE);
                }
            }
            (variant.reweigh)(&mut draw.batch.shares, &weights);
            let last = micro + 1 == losses_wanted.len();
            let told = learn(networks, variant, &draw, micro > 0, last.then_some(&update));
            updated = told.updated;
            let losses = draw.batch.losses(&told.losses, &weights, variant.prior_loss_weight);
            let mut check = |what: &str, got: f32, want: f64| {
                let error = relative(f64::from(got), want);
                table.check(format!("step {} {what}", step + 1), error, LOSS_TOLERANCE);
            };
            check("loss", losses.total, want.loss);
            check("instance loss", losses.instance, want.instance_loss);
            match (losses.prior, want.prior_loss) {
                (Some(prior), Some(want)) => check("prior loss", prior, want),
                (got, want) => assert_eq!((got, want), (None, None)),
            }
        }
        if index == 0 {
            tensor_norms(&mut table, variant.name, &names, &gradients(networks));
        }
        let norm = updated.expect("an update").grad_norm;
        let factor = clip_factor(norm, variant.adam.max_grad_norm);
        let step = index + 1;
        table.check(
            format!("update {step} gradient norm"),
            relative(norm, want.grad_norm_before_clip),
            GRAD_NORM_TOLERANCE,
        );
        table.check(
            format!("update {step} clip factor"),
            relative(factor, want.clip_factor),
            GRAD_NORM_TOLERANCE,
        );
    }
    final_stats(&mut table, variant.name, &names, &before, &weights(networks));
    table.finish();
}

pub(super) fn learn(
    networks: &mut Networks,
    variant: &Variant,
    draw: &Draw,
    accumulate: bool,
    update: Option<&Update>,
) -> Trained {
    let batch = &draw.batch;
    let states = (!variant.trains_text_encoder).then(|| networks.text(&batch.ids, batch.rows(), 1).unwrap());
    let share = 1.0 / variant.accumulation as f32;
    let shares = batch.weighted_shares(variant.prior_loss_weight);
    let shares: Vec<f32> = shares.iter().map(|of_row| share * of_row).collect();
    let step = Step {
        dims: batch.dims,
        mean: &batch.mean,
        deviation: &batch.deviation,
        chance: Chance::Given {
            latents: &batch.deviation,
            noise: &draw.noise,
            offsets: &draw.offsets,
            timesteps: &draw.timesteps,
        },
        prompts: match &states {
            Some(states) => Prompts::States(states),
            None => Prompts::Ids(&batch.ids),
        },
        shares: &shares,
        loss_scale: 1.0,
        accumulate,
    };
    networks.train(&step, update).unwrap()
}

fn tensor_norms(table: &mut Table, variant: &str, names: &[String], grads: &BTreeMap<String, Vec<f64>>) {
    let wanted = values(&peek("train/grad_norms.safetensors")[variant]);
    assert_eq!(wanted.len(), names.len());
    for (name, want) in names.iter().zip(wanted) {
        if want.is_nan() {
            assert!(!grads.contains_key(name), "{name} is not trained");
        } else if name.ends_with("k_proj.bias") {
            table.check(name.clone(), l2(&grads[name]), 1e-6);
        } else {
            let got = l2(&grads[name]);
            table.check(format!("{name} gradient"), relative(got, want), TENSOR_NORM_TOLERANCE);
        }
    }
}

fn final_stats(
    table: &mut Table,
    variant: &str,
    names: &[String],
    before: &BTreeMap<String, Vec<f64>>,
    after: &BTreeMap<String, Vec<f64>>,
) {
    let wanted = peek("train/final_stats.safetensors")[variant]
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec2::<f64>()
        .unwrap();
    assert_eq!(wanted.len(), names.len());
    for (name, want) in names.iter().zip(&wanted) {
        let Some(got) = after.get(name) else {
            assert!(want.iter().all(|number| number.is_nan()), "{name} is not trained");
            continue;
        };
        // Its gradient is rounding noise, which Adam turns into full steps.
        if name.ends_with("k_proj.bias") {
            continue;
        }
        let change: Vec<f64> = got.iter().zip(&before[name]).map(|(a, b)| a - b).collect();
        table.check(format!("{name} norm"), relative(l2(got), want[1]), FINAL_NORM_TOLERANCE);
        let tolerance = match name.ends_with("token_embedding.weight") {
            true => EMBEDDING_CHANGE_TOLERANCE,
            false => CHANGE_TOLERANCE,
        };
        table.check(format!("{name} change"), relative(l2(&change), want[2]), tolerance);
        let sum_error = (got.iter().sum::<f64>() - want[0]).abs();
        table.check(format!("{name} sum"), sum_error, 1e-2 * want[2] + 1e-6 * want[1]);
    }
}

/// Each has a test below, which names it.
#[test]
fn every_variant_of_the_reference_data_is_followed() {
    let Trajectories { variants, .. } = json("train/trajectories.json");
    let here = include_str!("train.rs");
    for name in variants.keys() {
        assert!(here.contains(&format!("base(\"{name}\")")), "nobody follows {name}");
    }
    for file in ["train/grad_norms.safetensors", "train/final_stats.safetensors"] {
        assert!(peek(file).names().eq(variants.keys()), "{file}");
    }
}

#[test]
fn the_base_trajectory() {
    follow(&base("base"));
}

#[test]
fn v_prediction() {
    follow(&Variant {
        prediction: PredictionType::VPrediction,
        ..base("v_prediction")
    });
}

#[test]
fn without_prior_preservation() {
    follow(&Variant {
        classes: Vec::new(),
        ..base("no_prior")
    });
}

#[test]
fn two_micro_batches_an_update() {
    follow(&Variant {
        accumulation: 2,
        ..base("grad_accum2")
    });
}

#[test]
fn without_clipping() {
    follow(&Variant {
        adam: Adam {
            max_grad_norm: 0.0,
            ..base("no_clip").adam
        },
        ..base("no_clip")
    });
}

#[test]
fn strong_decay_shows_its_order() {
    follow(&Variant {
        learning_rate: 1e-3,
        adam: Adam {
            adam_weight_decay: 0.5,
            max_grad_norm: 0.05,
            ..base("strong").adam
        },
        ..base("strong")
    });
}

#[test]
fn a_spike_is_clipped() {
    follow(&Variant {
        noise_factor: 20.0,
        ..base("spike")
    });
}

#[test]
fn a_frozen_text_encoder() {
    follow(&Variant {
        trains_text_encoder: false,
        ..base("text_encoder_frozen")
    });
}

#[test]
fn offset_noise_is_added_and_asked_back() {
    follow(&Variant {
        offset_noise: 0.1,
        ..base("offset_noise_0.1")
    });
}

#[test]
fn min_snr_weighs_rows_by_their_timesteps() {
    follow(&Variant {
        snr_gamma: Some(5.0),
        classes: Vec::new(),
        ..base("min_snr5_no_prior")
    });
}

#[test]
fn min_snr_of_velocity() {
    follow(&Variant {
        snr_gamma: Some(5.0),
        prediction: PredictionType::VPrediction,
        classes: Vec::new(),
        ..base("min_snr5_v_no_prior")
    });
}

/// As one may read diffusers' script: instances are weighed, class images are not. We weigh both halves.
#[test]
fn min_snr_of_the_instances_alone() {
    follow(&Variant {
        snr_gamma: Some(5.0),
        reweigh: |shares, weights| {
            for (share, weight) in shares[2..].iter_mut().zip(&weights[2..]) {
                *share = 0.5 / weight;
            }
        },
        ..base("min_snr5_prior_instance_weights")
    });
}

/// diffusers' fault: the weights of both timesteps are broadcast over the one instance, and the class image has none.
#[test]
fn min_snr_as_diffusers_script_broadcasts_it() {
    follow(&Variant {
        snr_gamma: Some(5.0),
        instances: vec![0],
        classes: vec![2],
        reweigh: |shares, weights| {
            shares.copy_from_slice(&[(weights[0] + weights[1]) / 2.0 / weights[0], 1.0 / weights[1]]);
        },
        ..base("min_snr5_prior_hf_broadcast_b1")
    });
}
