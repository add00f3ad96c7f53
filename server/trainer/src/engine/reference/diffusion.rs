//! What chance gives a step, and the noisy rows that are made of it.

use super::{Values, channels};
use crate::engine::ir::Op;
use crate::engine::philox::Clock;
use crate::noise::Purpose;

pub fn execute(op: &Op, values: &mut Values) {
    match *op {
        Op::Draw {
            clock,
            steps,
            latents,
            noise,
            offsets,
            timesteps,
        } => {
            let rows = values.dims(noise)[0];
            let count = values.dims(noise)[1..].iter().product();
            let words: Vec<u32> = values.get(clock).iter().map(|&word| word as u32).collect();
            let clock = Clock::of_words([words[0], words[1], words[2], words[3]]);
            let normals = |purpose, count: usize| -> Vec<f64> {
                (0..rows).flat_map(|row| clock.normals(purpose, row, count)).collect()
            };
            values.set(latents, normals(Purpose::Latents, count));
            values.set(noise, normals(Purpose::Noise, count));
            if let Some(offsets) = offsets {
                values.set(offsets, normals(Purpose::OffsetNoise, channels(values, noise)));
            }
            let drawn = (0..rows).map(|row| clock.below(Purpose::Timesteps, row, steps) as f64);
            values.set(timesteps, drawn.collect());
        }
        Op::Diffuse {
            mean,
            deviation,
            latents,
            noise,
            offsets,
            timesteps,
            schedule,
            times,
            shares,
            strengths,
            velocity,
            noisy,
            target,
            time,
            weights,
        } => {
            let (rows, channels) = (values.dims(noise)[0], channels(values, noise));
            let count = values.get(noise).len() / rows;
            let width = values.dims(times)[1];
            let (scale, strength) = (values.get(strengths)[0], values.get(strengths)[1]);
            let (mut mixed, mut asked, mut of_time, mut counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for row in 0..rows {
                let t = values.get(timesteps)[row] as usize;
                let level = &values.get(schedule)[3 * t..3 * t + 3];
                for at in row * count..(row + 1) * count {
                    let spread = values.get(deviation)[at] * values.get(latents)[at];
                    let clean = (values.get(mean)[at] + spread) * scale;
                    let offset = offsets.map_or(0., |id| values.get(id)[row * channels + at % channels]);
                    let n = values.get(noise)[at] + strength * offset;
                    mixed.push(level[0] * clean + level[1] * n);
                    asked.push(match velocity {
                        true => level[0] * n - level[1] * clean,
                        false => n,
                    });
                }
                of_time.extend_from_slice(&values.get(times)[t * width..(t + 1) * width]);
                counts.push(values.get(shares)[row] * level[2]);
            }
            values.set(noisy, mixed);
            values.set(target, asked);
            values.set(time, of_time);
            values.set(weights, counts);
        }
        _ => {}
    }
}
