//! How clean latents become noisy ones in training, and what is asked back.

use super::unet::sinusoids;
use crate::engine::philox::Clock;
use crate::models::config::UNetConfig;

/// What stays the same from step to step.
#[derive(Clone, Debug, PartialEq)]
pub struct Diffusion {
    pub levels: Vec<Level>,
    /// Velocity is asked back in place of noise (Salimans and Ho 2022, appendix D).
    pub velocity: bool,
    /// What latents are multiplied by.
    pub latents_scale: f32,
    /// What a channel's noise is shifted by as a whole, times a normal value; nothing is drawn for 0.
    pub offset_noise: f32,
}

/// A timestep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// What is left of the latents.
    pub signal: f32,
    /// What is added of the noise.
    pub sigma: f32,
    /// What a row counts in the loss.
    pub weight: f32,
}

/// Noise and timesteps of a step, a row each.
#[derive(Clone, Copy, Debug)]
pub enum Chance<'a> {
    /// By the device.
    Drawn(Clock),
    /// By whoever asks. Maps lie channels first.
    Given {
        /// `[rows, c, h, w]`, where in their distribution latents are: times its standard deviation.
        latents: &'a [f32],
        /// `[rows, c, h, w]`
        noise: &'a [f32],
        /// `[rows, c]`, read where there is offset noise.
        offsets: &'a [f32],
        /// `[rows]`
        timesteps: &'a [f32],
    },
}

/// As much of it as a program depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Form {
    /// Noise and timesteps are drawn by the device.
    pub drawn: bool,
    pub velocity: bool,
    pub with_offsets: bool,
    pub timesteps: usize,
}

impl Diffusion {
    pub fn form(&self, chance: &Chance) -> Form {
        Form {
            drawn: matches!(chance, Chance::Drawn(_)),
            velocity: self.velocity,
            with_offsets: self.offset_noise > 0.,
            timesteps: self.levels.len(),
        }
    }

    /// What rows at these timesteps count in the loss.
    pub fn weights_at(&self, timesteps: &[f32]) -> Vec<f32> {
        timesteps.iter().map(|t| self.levels[*t as usize].weight).collect()
    }

    /// The tables that programs read, by the names of their inputs.
    pub fn tables(&self, unet: &UNetConfig) -> [(&'static str, Vec<f32>); 3] {
        let levels = self.levels.iter();
        let timesteps: Vec<f32> = (0..self.levels.len()).map(|t| t as f32).collect();
        [
            (
                "schedule",
                levels
                    .flat_map(|level| [level.signal, level.sigma, level.weight])
                    .collect(),
            ),
            ("times", sinusoids(unet, &timesteps)),
            ("strengths", vec![self.latents_scale, self.offset_noise]),
        ]
    }
}
