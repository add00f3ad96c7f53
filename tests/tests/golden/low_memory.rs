//! Training in low memory follows a usual run: bf16 weights that are rounded by chance, against exact ones.

use app::recipe::Precision;
use trainer::device::Device;
use trainer::dreambooth::batch::Objective;
use trainer::dreambooth::learner::{Learner, Learning};
use trainer::engine::ir::Group;
use trainer::engine::session::{LowMemory, Moments, OptimizerSettings, Update};
use trainer::formats;
use trainer::models::config::PredictionType;
use trainer::schedulers::NoiseSchedule;

use super::support::load;
use super::train::{base, draw, learn};

/// Updates, over the reference data's steps again and again.
const UPDATES: u64 = 60;
/// Steps of the reference data that are used.
const BATCHES: usize = 4;
const LEARNING_RATE: f64 = 1e-3;
/// How far the mean loss of any round of batches may lie from f32's, as a share of the first round's.
const TOLERANCE: f64 = 0.08;

/// The mean loss of each round of batches.
fn curve(optimizer: OptimizerSettings) -> Vec<f64> {
    let folder = super::dir().join("tiny-sd");
    let learning = Learning {
        text_encoder: true,
        precision: Precision::No,
        recompute: optimizer.low_memory.is_some(),
        optimizer,
        keeps_an_eye: false,
        adapter: None,
        seed: 0,
    };
    let model = formats::load(folder.to_str().unwrap()).unwrap();
    let mut learner = Learner::new(model, None, &learning, &Device::Cpu).unwrap();
    let (inputs, variant) = (load("train/inputs.safetensors"), base("low memory"));
    let objective = Objective {
        schedule: NoiseSchedule::new(&learner.base().scheduler_config).unwrap(),
        prediction: PredictionType::Epsilon,
        snr_gamma: None,
        offset_noise: 0.0,
    };
    let diffusion = objective.diffusion(1.0).unwrap();
    learner.networks.learn_by(diffusion.clone());
    let losses: Vec<f64> = (1..=UPDATES)
        .map(|number| {
            let step = number as usize % BATCHES;
            let draw = draw(&inputs, step, &variant);
            let update = Update {
                learning_rates: [Group::UNet, Group::TextEncoder]
                    .map(|group| (group, LEARNING_RATE))
                    .into(),
                max_grad_norm: 1.0,
                loss_scale: 1.0,
                number,
            };
            let told = learn(&mut learner.networks, &variant, &draw, false, Some(&update));
            let weights = diffusion.weights_at(&draw.timesteps);
            f64::from(draw.batch.losses(&told.losses, &weights, 1.0).total)
        })
        .collect();
    losses
        .chunks(BATCHES)
        .map(|round| round.iter().sum::<f64>() / BATCHES as f64)
        .collect()
}

#[test]
fn losses_in_low_memory_follow_those_of_f32() {
    let exact = OptimizerSettings {
        moments: Moments::F32,
        beta1: 0.9,
        beta2: 0.999,
        weight_decay: 1e-2,
        epsilon: 1e-8,
        low_memory: None,
    };
    let low = OptimizerSettings {
        moments: Moments::EightBit,
        low_memory: Some(LowMemory { seed: 1 }),
        ..exact
    };
    let (exact, low) = (curve(exact), curve(low));
    println!("{exact:.4?}\n{low:.4?}");
    let first = exact[0];
    for (round, (exact, low)) in exact.iter().zip(&low).enumerate() {
        assert!(
            (low - exact).abs() < TOLERANCE * first,
            "round {round}: {low} against {exact}"
        );
    }
    assert!(
        exact.last().unwrap() < &(0.8 * exact[0]),
        "there is something to learn: {exact:?}"
    );
}
