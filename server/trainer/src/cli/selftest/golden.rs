//! The golden trajectory: five DreamBooth steps of a small model as PyTorch took them in f32, taken again on the GPU.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use app::recipe::Precision;
use candle_core::{DType, IndexOp, Tensor};
use trainer::device::Device;
use trainer::dreambooth::batch::{Batch, Objective};
use trainer::dreambooth::learner::{Learner, Learning};
use trainer::engine::cuda::device::Device as Gpu;
use trainer::engine::cuda::selftest::Check;
use trainer::engine::ir::Group;
use trainer::engine::nets::diffusion::Chance;
use trainer::engine::nets::networks::{Prompts, Step};
use trainer::engine::session::{Moments, OptimizerSettings, Update};
use trainer::formats;
use trainer::models::config::PredictionType;
use trainer::schedulers::NoiseSchedule;

#[derive(serde::Deserialize)]
struct Trajectories {
    variants: Variants,
}

#[derive(serde::Deserialize)]
struct Variants {
    base: Wanted,
}

#[derive(serde::Deserialize)]
struct Wanted {
    steps: Vec<WantedStep>,
}

#[derive(serde::Deserialize)]
struct WantedStep {
    loss: f64,
    grad_norm_before_clip: f64,
}

/// Follows the trajectory in `folder` in each of `precisions`. Errors are relative, the worst of all steps.
pub fn check(
    gpu: &Arc<Gpu>,
    folder: &Path,
    precisions: &[Precision],
    report: &mut dyn FnMut(Check),
) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(folder.join("train/trajectories.json"))
        .with_context(|| format!("{} holds no golden trajectory", folder.display()))?;
    let wanted = serde_json::from_str::<Trajectories>(&text)?.variants.base.steps;
    let inputs = candle_core::safetensors::load(folder.join("train/inputs.safetensors"), &candle_core::Device::Cpu)?;
    let inputs: BTreeMap<String, Tensor> = inputs.into_iter().collect();
    for &precision in precisions {
        let (name, loss_scale, tolerance) = match precision {
            Precision::No => ("f32", 1., 1e-5),
            // Half a unit in the last place of each of some hundred results on the way.
            Precision::Fp16 => ("f16", 1024., 3e-3),
            Precision::Bf16 => ("bf16", 1., 2e-2),
        };
        let got = follow(
            &Device::Cuda(gpu.clone()),
            folder,
            &inputs,
            precision,
            loss_scale,
            wanted.len(),
        )?;
        let worst = |of: &dyn Fn(&WantedStep, &(f64, f64)) -> f64| {
            let errors = wanted.iter().zip(&got).map(|(wanted, got)| of(wanted, got));
            // `max` would pass over NaN.
            errors.fold(
                0.,
                |worst, error| if error.is_nan() || error > worst { error } else { worst },
            )
        };
        report(Check {
            name: format!("{name} golden trajectory: losses of {} steps", wanted.len()),
            error: worst(&|wanted, (loss, _)| (loss / wanted.loss - 1.).abs()),
            tolerance,
        });
        report(Check {
            name: format!("{name} golden trajectory: gradient norms"),
            error: worst(&|wanted, (_, norm)| (norm / wanted.grad_norm_before_clip - 1.).abs()),
            tolerance: 5. * tolerance,
        });
    }
    Ok(())
}

/// Loss and gradient norm of each step.
fn follow(
    device: &Device,
    folder: &Path,
    inputs: &BTreeMap<String, Tensor>,
    precision: Precision,
    loss_scale: f64,
    steps: usize,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let model = formats::load(&folder.join("tiny-sd").to_string_lossy())?;
    let learning = Learning {
        text_encoder: true,
        precision,
        recompute: false,
        optimizer: OptimizerSettings {
            moments: Moments::F32,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            epsilon: 1e-8,
            low_memory: None,
        },
        keeps_an_eye: false,
        adapter: None,
        seed: 0,
    };
    let mut learner = Learner::new(model, None, &learning, device)?;
    let objective = Objective {
        schedule: NoiseSchedule::new(&learner.base().scheduler_config)?,
        prediction: PredictionType::Epsilon,
        snr_gamma: None,
        offset_noise: 0.,
    };
    // The golden latents are scaled, and drawn from their distribution already.
    let diffusion = objective.diffusion(1.)?;
    learner.networks.learn_by(diffusion.clone());
    let of_step = |name: &str, step: usize| -> anyhow::Result<Tensor> {
        Ok(inputs.get(name).with_context(|| format!("no `{name}`"))?.i(step)?)
    };
    let ids = inputs.get("input_ids").context("no `input_ids`")?;
    let ids: Vec<u32> = ids.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?;
    let mut got = Vec::new();
    for step in 0..steps {
        let latents = of_step("latents", step)?;
        let (_, c, h, w) = latents.dims4()?;
        let f32s = |tensor: Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (latents, noise) = (f32s(latents)?, f32s(of_step("noise", step)?)?);
        let timesteps: Vec<f32> = f32s(of_step("timesteps", step)?)?;
        let exact = vec![0.; latents.len()];
        let batch = Batch::new([c, h, w], timesteps.len() / 2, [latents, exact], ids.clone());
        let micro_batch = Step {
            dims: batch.dims,
            mean: &batch.mean,
            deviation: &batch.deviation,
            chance: Chance::Given {
                latents: &batch.deviation,
                noise: &noise,
                offsets: &[],
                timesteps: &timesteps,
            },
            prompts: Prompts::Ids(&batch.ids),
            shares: &batch.weighted_shares(1.),
            loss_scale,
            accumulate: false,
        };
        let update = Update {
            learning_rates: BTreeMap::from([(Group::UNet, 1e-4), (Group::TextEncoder, 1e-4)]),
            max_grad_norm: 1.,
            loss_scale,
            number: step as u64 + 1,
        };
        let told = learner.networks.train(&micro_batch, Some(&update))?;
        let losses = batch.losses(&told.losses, &diffusion.weights_at(&timesteps), 1.);
        let norm = told.updated.map_or(f64::NAN, |updated| updated.grad_norm);
        got.push((f64::from(losses.total), norm));
    }
    Ok(got)
}
