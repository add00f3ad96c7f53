//! Training in low memory follows a usual run: bf16 weights that are rounded by chance, against exact ones.

use trainer::engine::session::{LowMemory, Moments, OptimizerSettings};

use super::support::Golden;
use super::train::{Variant, base, draw, learn, learner};

/// Updates, over the reference data's steps again and again.
const UPDATES: u64 = 60;
/// Steps of the reference data that are used.
const BATCHES: usize = 4;
const LEARNING_RATE: f64 = 1e-3;
/// How far the mean loss of any round of batches may lie from f32's, as a share of the first round's, on the
/// repository's own set.
const TOLERANCE: f64 = 0.08;

/// The mean loss of each round of batches.
fn curve(variant: &Variant, optimizer: OptimizerSettings) -> Vec<f64> {
    let inputs = Golden::own("train/inputs.safetensors");
    let (mut learner, diffusion) = learner(&super::own_dir().join("tiny-sd"), variant, optimizer);
    let losses: Vec<f64> = (1..=UPDATES)
        .map(|number| {
            let draw = draw(&inputs, number as usize % BATCHES, variant);
            let update = variant.update(number);
            let told = learn(&mut learner.networks, variant, &draw, false, Some(&update));
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
    let mut variant = base("low memory");
    variant.learning_rate = LEARNING_RATE;
    let exact = variant.optimizer(Moments::F32);
    let low = OptimizerSettings {
        moments: Moments::EightBit,
        low_memory: Some(LowMemory { seed: 1 }),
        ..exact
    };
    let (exact, low) = (curve(&variant, exact), curve(&variant, low));
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
