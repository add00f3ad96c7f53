//! What a step learns from: chance, and rows with noise in them.

use super::Builder;
use crate::engine::ir::{Kind, Op, ValueId};

/// What chance gave; see [`Op::Draw`].
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    pub latents: ValueId,
    pub noise: ValueId,
    pub offsets: Option<ValueId>,
    pub timesteps: ValueId,
}

/// What rows are made of besides; see [`Op::Diffuse`].
#[derive(Clone, Copy, Debug)]
pub struct Clean {
    pub mean: ValueId,
    pub deviation: ValueId,
    pub shares: ValueId,
}

/// The tables and numbers that stay the same from step to step; see [`Op::Diffuse`].
#[derive(Clone, Copy, Debug)]
pub struct Levels {
    pub schedule: ValueId,
    pub times: ValueId,
    pub strengths: ValueId,
    pub velocity: bool,
}

/// Rows as a network reads them, and what it is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Noisy {
    pub latents: ValueId,
    pub time: ValueId,
    pub target: ValueId,
    pub weights: ValueId,
}

impl Builder<'_> {
    /// For maps of `dims`, at one of `steps` timesteps a row.
    pub fn draw(&mut self, clock: ValueId, dims: [usize; 4], steps: usize, with_offsets: bool) -> Chance {
        let [rows, _, _, channels] = dims;
        let latents = self.value(dims.to_vec(), Kind::F32);
        let noise = self.value(dims.to_vec(), Kind::F32);
        let offsets = with_offsets.then(|| self.value(vec![rows, channels], Kind::F32));
        let timesteps = self.value(vec![rows], Kind::F32);
        self.program.code.push(Op::Draw {
            clock,
            steps,
            latents,
            noise,
            offsets,
            timesteps,
        });
        Chance {
            latents,
            noise,
            offsets,
            timesteps,
        }
    }

    pub fn diffuse(&mut self, clean: Clean, chance: Chance, levels: Levels) -> Noisy {
        let dims = self.dims(clean.mean).to_vec();
        let time = vec![dims[0], self.channels(levels.times)];
        let weights = self.value(vec![dims[0]], Kind::F32);
        let target = self.value(dims.clone(), Kind::F32);
        let (latents, time) = (self.activation(dims), self.activation(time));
        self.program.code.push(Op::Diffuse {
            mean: clean.mean,
            deviation: clean.deviation,
            latents: chance.latents,
            noise: chance.noise,
            offsets: chance.offsets,
            timesteps: chance.timesteps,
            schedule: levels.schedule,
            times: levels.times,
            shares: clean.shares,
            strengths: levels.strengths,
            velocity: levels.velocity,
            noisy: latents,
            target,
            time,
            weights,
        });
        Noisy {
            latents,
            time,
            target,
            weights,
        }
    }
}
