//! What chance gives a step, and the noisy rows that are made of it (`draw.cu`).

use super::{
    super::call::{Address, Argument, Call, Element},
    Launch, THREADS,
};
use crate::engine::philox::BLOCK;
use crate::noise::Purpose;

/// Rows of `count` values, neighbouring ones of `channels` channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    pub count: usize,
    pub channels: usize,
}

/// Results of [`draw`]; offsets may be absent.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    pub latents: Address,
    pub noise: Address,
    pub offsets: Address,
    pub timesteps: Address,
}

pub fn draw(shape: &Shape, clock: Address, to: &Chance, steps: usize) -> Vec<Call> {
    let blocks = shape.count.max(shape.channels).div_ceil(BLOCK);
    let launch = Launch::new("draw".to_owned(), [blocks.div_ceil(THREADS), shape.rows, 1], THREADS);
    let purposes = [
        Purpose::Latents,
        Purpose::Noise,
        Purpose::OffsetNoise,
        Purpose::Timesteps,
    ];
    vec![
        launch
            .at([clock, to.latents, to.noise, to.offsets, to.timesteps])
            .ints([shape.count, shape.channels, steps])
            .ints(purposes.map(|purpose| purpose as usize))
            .0,
    ]
}

/// Operands of [`diffuse`], in the kernel's order: those of `Op::Diffuse` that it reads, then `noisy`, `time`, `target`, `weights`.
pub type Operands = [Address; 14];

/// `element`: of `noisy` and `time`, which has `width` values a row.
pub fn diffuse(element: Element, shape: &Shape, operands: Operands, width: usize, velocity: bool) -> Vec<Call> {
    let grid = [shape.count.max(width).div_ceil(THREADS), shape.rows, 1];
    let mut launch = Launch::new(format!("diffuse_{}", element.suffix()), grid, THREADS);
    launch.0.arguments.extend(operands.map(Argument::Address));
    vec![
        launch
            .ints([shape.count, shape.channels, width, usize::from(velocity)])
            .0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_cover_the_longest_of_what_they_write() {
        let shape = Shape {
            rows: 3,
            count: 1025,
            channels: 5,
        };
        let to = Chance {
            latents: Address(256),
            noise: Address(512),
            offsets: Address::NONE,
            timesteps: Address(768),
        };
        let call = &draw(&shape, Address(1024), &to, 1000)[0];
        assert_eq!((call.grid, call.arguments.len()), ([2, 3, 1], 12));
        let call = &diffuse(Element::Bf16, &shape, [Address(256); 14], 1400, true)[0];
        assert_eq!((call.name.as_str(), call.grid), ("diffuse_bf16", [6, 3, 1]));
        assert_eq!(call.arguments.last(), Some(&Argument::I32(1)));
        assert_eq!(call.arguments.len(), 18);
    }
}
