//! Stochastic rounding of weights to bf16: up or down, by chance, so that the mean is the exact value (Gupta et al., "Deep
//! Learning with Limited Numerical Precision", 2015). A weight's change is often smaller than half of what bf16 tells
//! apart, and rounding to the nearest would lose it every time.
//!
//! Chance is a function of seed, update, tensor and element, so that a run that is resumed rounds alike. `kernels/low_memory.cu`
//! does the same.

use half::bf16;

/// Scatters the bits of `x` over all 32: the finalizer "lowbias32" of Wellons' hash prospector.
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Of an update.
pub fn key(seed: u64, number: u64) -> u32 {
    let halves = [seed, number].map(|value| [value as u32, (value >> 32) as u32]);
    halves
        .as_flattened()
        .iter()
        .fold(0, |key, &half| mix(key ^ half).wrapping_add(0x9e37_79b9))
}

/// Of one tensor in it.
pub fn key_of_tensor(key: u32, tensor: u32) -> u32 {
    mix(key ^ mix(tensor))
}

/// `value` of the tensor's element `at`, which has to be finite.
#[inline(always)]
pub fn stochastic(value: f32, key_of_tensor: u32, at: u32) -> f32 {
    let chance = mix(mix(at) ^ key_of_tensor) >> 16;
    f32::from_bits(value.to_bits().wrapping_add(chance) & 0xffff_0000)
}

/// To the nearest, as weights are when they are set.
pub fn nearest(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_the_value_and_a_bf16_stays() {
        let key = key_of_tensor(key(7, 3), 11);
        for value in [1.001f32, -0.337, 3.1e-5, -1.0e-20] {
            let count = 1 << 16;
            let all = (0..count).map(|at| stochastic(value, key, at));
            let mean = all.clone().map(f64::from).sum::<f64>() / f64::from(count);
            let spacing = f64::from(f32::from_bits((value.to_bits() & 0xffff_0000) + 0x1_0000))
                - f64::from(f32::from_bits(value.to_bits() & 0xffff_0000));
            // Four standard deviations of the mean of so many.
            assert!(
                (mean - f64::from(value)).abs() < spacing.abs() * 2. / 256.,
                "{value}: {mean}"
            );
            assert!(all.clone().all(|rounded| rounded == nearest(rounded)));
            let exact = nearest(value);
            assert!((0..1000).all(|at| stochastic(exact, key, at) == exact));
        }
    }

    #[test]
    fn neighbours_tensors_updates_and_seeds_have_chances_of_their_own() {
        let bits = |seed, number, tensor| -> Vec<bool> {
            let key = key_of_tensor(key(seed, number), tensor);
            // Halfway between two neighbours.
            (0..4096).map(|at| stochastic(1. + 1. / 256., key, at) > 1.).collect()
        };
        let first = bits(1, 1, 0);
        for other in [bits(2, 1, 0), bits(1, 2, 0), bits(1, 1, 1), bits(1 << 32, 1, 0)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((1850..2250).contains(&same), "{same}");
        }
        let same = first.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((1850..2250).contains(&same), "{same}");
    }
}
