//! The 8-bit optimizer in a whole session: which tensors have their moments in 8 bits, and what the others do.

use std::collections::BTreeMap;

use trainer::engine::optim::clip_factor;
use trainer::engine::session::Moments;

use super::support::{Table, peek, relmax_values};
use super::train::{base, draw, gradients, learn, learner, weights};

/// bitsandbytes' `min_8bit_size`: tensors below it have moments in f32.
const IN_8_BITS: usize = 4096;
const UPDATES: u64 = 4;
/// Of the largest weight; betas are f32 there, which moves a weight by some 1e-7.
const TOLERANCE: f64 = 3e-6;

/// Both moments of a tensor, followed in f64.
struct Followed {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

#[test]
fn small_tensors_follow_the_rule_of_8_bits_with_exact_moments() {
    let (inputs, mut variant) = (peek("train/inputs.safetensors"), base("base"));
    // So that it shows whether decay comes before or after.
    variant.learning_rate = 1e-2;
    variant.adam.adam_weight_decay = 0.5;
    let optimizer = variant.optimizer(Moments::EightBit);
    let (mut learner, _) = learner(&super::dir().join("tiny-sd"), &variant, optimizer);
    let networks = &mut learner.networks;
    let mut followed: BTreeMap<String, Followed> = weights(networks)
        .into_iter()
        .map(|(name, p)| {
            let zeros = vec![0.0; p.len()];
            let (m, v) = (zeros.clone(), zeros);
            (name, Followed { p, m, v })
        })
        .collect();
    for number in 1..=UPDATES {
        let draw = draw(&inputs, number as usize, &variant);
        let update = variant.update(number);
        let told = learn(networks, &variant, &draw, false, Some(&update));
        let factor = clip_factor(told.updated.expect("an update").grad_norm, update.max_grad_norm);
        let (b1, b2) = (optimizer.beta1, optimizer.beta2);
        let (k1, k2) = (1.0 - b1.powi(number as i32), (1.0 - b2.powi(number as i32)).sqrt());
        for (name, gradient) in gradients(networks) {
            let Followed { p, m, v } = followed.get_mut(&name).unwrap();
            for (i, g) in gradient.into_iter().enumerate() {
                let g = g * factor;
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                p[i] -= variant.learning_rate * k2 / k1 * m[i] / (v[i].sqrt() + k2 * optimizer.epsilon);
                p[i] *= 1.0 - variant.learning_rate * optimizer.weight_decay;
            }
        }
    }

    let moments = networks.session().moments().unwrap();
    let mut table = Table::new("8-bit Adam in a session");
    let mut coded = 0;
    for (name, p) in weights(networks) {
        let small = p.len() < IN_8_BITS;
        let (exact, codes) = (format!("{name}.exp_avg"), format!("{name}.state1"));
        assert_eq!(moments.contains_key(&exact), small, "{name}: {} elements", p.len());
        assert_eq!(moments.contains_key(&codes), !small, "{name}: {} elements", p.len());
        let apart = relmax_values(&p, &followed[&name].p);
        if small {
            // A key's bias has no gradient but rounding, which is made full steps of.
            if !name.ends_with("k_proj.bias") {
                table.check(name, apart, TOLERANCE);
            }
        } else {
            coded += usize::from(apart > TOLERANCE);
        }
    }
    table.finish();
    assert!(coded > 0, "8 bits are coarser");
}
