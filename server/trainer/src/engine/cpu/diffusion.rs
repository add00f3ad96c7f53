//! What chance gives a step, and the noisy rows that are made of it.

use rayon::prelude::*;

use super::super::philox::Clock;
use crate::noise::Purpose;

/// Standard normal values, `[rows, ..]`.
pub(crate) fn normals(to: &mut [f32], clock: Clock, purpose: Purpose, rows: usize) {
    let count = to.len() / rows;
    to.par_chunks_exact_mut(count).enumerate().for_each(|(row, to)| {
        let drawn = clock.normals(purpose, row, count);
        to.iter_mut().zip(drawn).for_each(|(to, value)| *to = value as f32);
    });
}

/// `[rows]`, below `steps`.
pub(crate) fn timesteps(to: &mut [f32], clock: Clock, steps: usize) {
    for (row, to) in to.iter_mut().enumerate() {
        *to = clock.below(Purpose::Timesteps, row, steps) as f32;
    }
}

/// What goes into [`diffuse`]; see `Op::Diffuse`.
#[derive(Clone, Copy)]
pub(crate) struct Diffusion<'a> {
    pub mean: &'a [f32],
    pub deviation: &'a [f32],
    pub latents: &'a [f32],
    pub noise: &'a [f32],
    pub offsets: Option<&'a [f32]>,
    pub timesteps: &'a [f32],
    pub schedule: &'a [f32],
    pub times: &'a [f32],
    pub shares: &'a [f32],
    pub strengths: &'a [f32],
    pub velocity: bool,
}

/// What comes out of it.
pub(crate) struct Diffused<'a> {
    pub noisy: &'a mut [f32],
    pub target: &'a mut [f32],
    pub time: &'a mut [f32],
    pub weights: &'a mut [f32],
}

pub(crate) fn diffuse(out: Diffused, of: Diffusion, channels: usize) {
    let rows = of.timesteps.len();
    let (count, width) = (of.noise.len() / rows, out.time.len() / rows);
    for (row, timestep) in of.timesteps.iter().map(|t| *t as usize).enumerate() {
        let (signal, sigma) = (of.schedule[3 * timestep], of.schedule[3 * timestep + 1]);
        for at in row * count..(row + 1) * count {
            let clean = (of.mean[at] + of.deviation[at] * of.latents[at]) * of.strengths[0];
            let offset = of.offsets.map_or(0., |offsets| offsets[row * channels + at % channels]);
            let noise = of.noise[at] + of.strengths[1] * offset;
            out.noisy[at] = signal * clean + sigma * noise;
            out.target[at] = match of.velocity {
                true => signal * noise - sigma * clean,
                false => noise,
            };
        }
        out.time[row * width..][..width].copy_from_slice(&of.times[timestep * width..][..width]);
        out.weights[row] = of.shares[row] * of.schedule[3 * timestep + 2];
    }
}
