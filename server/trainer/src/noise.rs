//! Randomness that can be repeated.
//!
//! `Noise` is for what training draws on the host: a pure function of seed, purpose and step, so that a resumed run draws what
//! the uninterrupted one would have drawn; so is what devices draw (`engine::philox`). `TorchGenerator` is for first latents: torch's CPU generator, so that a seed
//! gives the picture that it gives in diffusers.

use candle_core::{Device, Shape, Tensor};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a draw is for. The numbers are part of saved states: append, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Sampling the VAE's distribution of latents.
    Latents = 1,
    /// The noise that is added to latents and asked back.
    Noise = 2,
    Timesteps = 3,
    /// Order of photos in an epoch.
    Shuffle = 4,
    Flip = 5,
    Crop = 6,
    /// First latents and step noise of samples and class images.
    Sampling = 7,
    OffsetNoise = 8,
    /// First weights of a model that is trained from nothing.
    Weights = 9,
    /// Leaving captions out.
    Dropout = 10,
    /// Order of photos, once for a run: which class image each meets.
    Pairing = 11,
    /// First weights of adapters.
    Adapters = 12,
    /// Which photo is not trained on.
    HoldOut = 13,
}

/// Counter-based random numbers: nothing is remembered between draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    seed: u64,
}

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The stream of one purpose at one step.
    fn stream(&self, purpose: Purpose, step: u64) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
        key[16..24].copy_from_slice(&step.to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// Normal values with mean 0 and standard deviation 1, f32.
    pub fn normals(&self, purpose: Purpose, step: u64, count: usize) -> Vec<f32> {
        let mut stream = self.stream(purpose, step);
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            // Box and Muller; u1 in (0, 1] keeps the logarithm finite.
            let u1 = (f64::from(stream.next_u32()) + 1.0) / 4_294_967_296.0;
            let u2 = f64::from(stream.next_u32()) / 4_294_967_296.0;
            let radius = (-2.0 * u1.ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * u2).sin_cos();
            values.push((radius * cos) as f32);
            values.push((radius * sin) as f32);
        }
        values.truncate(count);
        values
    }

    /// `normals` as a tensor. Drawn on the host, so that every device gets the same.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn normal(&self, purpose: Purpose, step: u64, shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
        let shape = shape.into();
        Tensor::from_vec(self.normals(purpose, step, shape.elem_count()), shape, &Device::Cpu)
    }

    /// Values in [0, 1).
    pub fn uniform(&self, purpose: Purpose, step: u64, count: usize) -> Vec<f64> {
        let mut stream = self.stream(purpose, step);
        // 53 bits, as many as an f64 holds.
        let scale = 1.0 / (1u64 << 53) as f64;
        (0..count).map(|_| (stream.next_u64() >> 11) as f64 * scale).collect()
    }

    /// `0..count` in random order.
    pub fn permutation(&self, purpose: Purpose, epoch: u64, count: usize) -> Vec<usize> {
        let mut stream = self.stream(purpose, epoch);
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            // Fisher and Yates.
            order.swap(last, below(&mut stream, last as u32 + 1) as usize);
        }
        order
    }
}

/// An unbiased value in `0..max`, by rejection.
fn below(stream: &mut ChaCha8Rng, max: u32) -> u32 {
    let max = max.max(1);
    let limit = u32::MAX - u32::MAX % max;
    loop {
        let value = stream.next_u32();
        if value < limit {
            return value % max;
        }
    }
}

/// torch's CPU generator: mt19937, and `randn` as ATen's `DistributionTemplates.h` draws it for f32.
#[derive(Clone)]
pub struct TorchGenerator {
    state: [u32; MT_LENGTH],
    next: usize,
    /// The second value of a Box-Muller pair, kept by short `randn` calls for the next one.
    spare: Option<f64>,
}

const MT_LENGTH: usize = 624;
const MT_MIDDLE: usize = 397;
/// From so many values on, torch draws in blocks.
const BLOCK: usize = 16;

impl TorchGenerator {
    /// `torch.Generator("cpu").manual_seed(seed)`: only the lower 32 bits of the seed count.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; MT_LENGTH];
        state[0] = seed as u32;
        for i in 1..MT_LENGTH {
            let last: u32 = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(last ^ (last >> 30))
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: MT_LENGTH,
            spare: None,
        }
    }

    /// `torch.randn(shape, generator=self)`, f32.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn randn(&mut self, shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
        let shape = shape.into();
        Tensor::from_vec(self.normals(shape.elem_count()), shape, &Device::Cpu)
    }

    /// As `randn`, flat.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.one_normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        for block in values.chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        if !count.is_multiple_of(BLOCK) {
            // The last 16 are drawn afresh, some of them a second time.
            let tail = &mut values[count - BLOCK..];
            for value in tail.iter_mut() {
                *value = self.uniform_f32();
            }
            box_muller(tail);
        }
        values
    }

    /// `torch.randint(max, (count,), generator=self)` for `max` up to 2^32.
    pub fn integers(&mut self, max: u32, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.next_u32() % max.max(1)).collect()
    }

    /// `torch.randperm(count, generator=self)`.
    pub fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in 0..count.saturating_sub(1) {
            let further = self.next_u32() as usize % (count - i);
            order.swap(i, i + further);
        }
        order
    }

    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & ((1 << 24) - 1)) as f32 / (1u32 << 24) as f32
    }

    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn one_normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// Matsumoto and Nishimura 1998.
    fn next_u32(&mut self) -> u32 {
        if self.next == MT_LENGTH {
            for i in 0..MT_LENGTH {
                let (here, after) = (self.state[i], self.state[(i + 1) % MT_LENGTH]);
                let mixed = (here & 0x8000_0000) | (after & 0x7fff_ffff);
                let twist = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + MT_MIDDLE) % MT_LENGTH] ^ (mixed >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}

/// 16 uniform values become normal ones: the first half gives radii, the second angles.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *first).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * *second).sin_cos();
        (*first, *second) = (radius * cos, radius * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_seed_purpose_and_step_alone() {
        let noise = Noise::new(7);
        let first = noise.normals(Purpose::Noise, 3, 100);
        assert_eq!(first, Noise::new(7).normals(Purpose::Noise, 3, 100));
        assert_eq!(first[..10], noise.normals(Purpose::Noise, 3, 10));
        assert_ne!(first, noise.normals(Purpose::Noise, 4, 100));
        assert_ne!(first, noise.normals(Purpose::Latents, 3, 100));
        assert_ne!(first, Noise::new(8).normals(Purpose::Noise, 3, 100));
    }

    #[test]
    fn normals_have_the_moments_of_a_normal_distribution() {
        let values = Noise::new(0).normals(Purpose::Noise, 0, 100_000);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let moment = |power: i32| values.iter().map(|&v| (f64::from(v) - mean).powi(power)).sum::<f64>() / n;
        // Five standard errors of each.
        assert!(mean.abs() < 0.016, "mean {mean}");
        assert!((moment(2) - 1.0).abs() < 0.023, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.04, "third moment {}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.16, "fourth moment {}", moment(4));
    }

    #[test]
    fn a_permutation_holds_everything_once() {
        let mut order = Noise::new(1).permutation(Purpose::Shuffle, 5, 50);
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
        assert!(Noise::new(1).permutation(Purpose::Shuffle, 5, 0).is_empty());
    }
}
