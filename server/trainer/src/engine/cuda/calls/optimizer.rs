//! The update of all trained weights (`optimizer.cu`): the gradients' norm, then one pass that unscales, clips, updates the moments
//! and the exact weights and writes the copies that networks read.
//!
//! Trained weights lie in one flat arena, each starting on a multiple of [`BLOCK`] elements with zeros in between, those with
//! moments in f32 first. What changes from update to update is read from the device, so that a recorded graph can be
//! replayed.

use std::ops::Range;

use super::{
    super::{
        super::{
            ir::Group,
            optim::{
                adamw_8bit::{BLOCK, Code, Codes},
                bias_corrections, rounding,
            },
            session::{Moments, OptimizerSettings, Update},
        },
        call::{Address, Call, Element},
    },
    Launch, THREADS, vector,
};

/// Blocks of the norm; fixed, so that sums are made alike on every card.
const NORM_BLOCKS: usize = 1056;
/// Blocks that a warp of the 8-bit update has one after the other. By itself many, because each block of threads first copies the
/// tables; beside other work few, so that what it holds is soon free for that.
const ROUNDS_ALONE: usize = 11;
const ROUNDS_BESIDE: usize = 2;
/// Shared memory that a block of threads asks for beside other work and does not use: so few of them fit a multiprocessor
/// that there is room left.
const SPACER_BYTES: u32 = 30 << 10;
/// What a warp updates at a time.
const BLOCKS_OF_THREADS: usize = THREADS / 32;

/// Bytes of what the update reports at [`Arena::result`]: three F32, namely the norm of the gradients before clipping and
/// without the loss scale, the factor that gradients were multiplied by, and 1, or 0 when the norm was not finite and
/// nothing was changed.
pub const RESULT_BYTES: usize = 12;

/// Where the optimizer's memory is. `T` elements are trained, the first `S` of them with moments in f32 (all in
/// [`Moments::F32`]); both are multiples of [`BLOCK`].
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    /// `T` elements.
    pub weights: Address,
    /// `T` rests (`master::rest_bytes`).
    pub rests: Address,
    /// `T` elements; none in low memory.
    pub gradients: Address,
    /// F32, `S`.
    pub first: Address,
    /// F32, `S`.
    pub second: Address,
    /// u8, `T - S`, as `adamw_8bit` codes them.
    pub first_codes: Address,
    /// F32, `(T - S) / BLOCK`.
    pub first_largest: Address,
    pub second_codes: Address,
    pub second_largest: Address,
    /// u8, `T / BLOCK`: [`group_index`] of each block's owner.
    pub groups: Address,
    /// A copy of [`tables`].
    pub tables: Address,
    /// A copy of [`numbers`], new before each norm, then [`RESULT_BYTES`]: together [`SLIP_BYTES`].
    pub slip: Address,
    /// What [`apply`] goes by: a copy of the slip after [`norm`].
    pub due: Address,
    /// Of [`WORKSPACE_BYTES`].
    pub workspace: Address,
}

/// Bytes of the numbers and the result of an update.
pub const SLIP_BYTES: usize = 4 * NUMBERS + RESULT_BYTES;

/// Bytes that [`norm`] needs besides its operands.
pub const WORKSPACE_BYTES: usize = NORM_BLOCKS * 4;

pub fn group_index(group: Group) -> u8 {
    match group {
        Group::UNet => 0,
        Group::TextEncoder => 1,
        Group::Vae => 2,
    }
}

/// The numbers of one update, in the kernels' order. A group without a learning rate is neither counted in the norm nor
/// changed.
pub fn numbers(settings: &OptimizerSettings, update: &Update) -> Vec<f32> {
    let (correction1, correction2) = bias_corrections(settings, update);
    let root2 = correction2.sqrt();
    let (beta1, beta2) = (settings.beta1 as f32, settings.beta2 as f32);
    // As `optim` rounds them: bitsandbytes subtracts in f32 and moves the second correction into step and epsilon.
    let (fresh, epsilon) = match settings.moments {
        Moments::F32 => (
            [1. - settings.beta1, 1. - settings.beta2].map(|fresh| fresh as f32),
            settings.epsilon,
        ),
        Moments::EightBit => ([1. - beta1, 1. - beta2], settings.epsilon * root2),
    };
    let mut numbers = vec![update.loss_scale as f32, update.max_grad_norm as f32, beta1, beta2];
    numbers.extend(fresh);
    numbers.extend([epsilon as f32, root2 as f32]);
    for group in [Group::UNet, Group::TextEncoder, Group::Vae] {
        let Some(rate) = update.learning_rates.get(&group) else {
            numbers.extend([0.; 3]);
            continue;
        };
        let step = match settings.moments {
            Moments::F32 => rate / correction1,
            Moments::EightBit => -rate * root2 / correction1,
        };
        numbers.extend([1., (1. - rate * settings.weight_decay) as f32, step as f32]);
    }
    // In halves, which an f32 holds exactly.
    let key = (settings.low_memory).map_or(0, |low_memory| rounding::key(low_memory.seed, update.number));
    numbers.extend([(key >> 16) as f32, (key & 0xffff) as f32]);
    numbers
}

/// Numbers in [`numbers`].
pub const NUMBERS: usize = 8 + 3 * 3 + 2;

/// Powers of two below 1 that the index of boundaries tells apart; smaller values are 0 in both codes.
const OCTAVES: usize = 23;

/// Bits of an f32's fraction that the index of a code goes by.
fn fraction_bits(signed: bool) -> u32 {
    if signed { 6 } else { 7 }
}

/// Entries of the index that share a sign; the last octave is that of 1. Both codes have 3072 in all.
fn cells_of_a_sign(signed: bool) -> usize {
    (OCTAVES + 1) << fraction_bits(signed)
}

/// The smallest value of a cell, sign aside.
fn start_of_cell(cell: usize, signed: bool) -> f32 {
    let first = (127 - OCTAVES as u32) << fraction_bits(signed);
    match cell {
        0 => 0.,
        _ => f32::from_bits((first + cell as u32) << (23 - fraction_bits(signed))),
    }
}

/// By the leading bits of a value, the code of the lowest value that has them. A cell holds at most one boundary, so one
/// comparison finishes the search.
fn index(code: &Code, signed: bool) -> Vec<u8> {
    let of_a_sign = cells_of_a_sign(signed);
    let positive = (0..of_a_sign).map(|cell| code.nearest(start_of_cell(cell, signed)));
    // The lowest of a negative cell is the one farthest from zero.
    let negative = (0..of_a_sign).map(|cell| code.nearest(-start_of_cell(cell + 1, signed)));
    positive.chain(negative.filter(|_| signed)).collect()
}

/// What the kernels of the 8-bit update look up: entries and boundaries of the signed and of the unsigned code, F32, then
/// their indices, u8.
pub fn tables() -> Vec<u8> {
    let codes = Codes::default();
    let mut bytes = Vec::new();
    for code in [&codes.first, &codes.second] {
        for values in [code.values(), code.midpoints()] {
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    bytes.extend(index(&codes.first, true));
    bytes.extend(index(&codes.second, false));
    bytes
}

/// The norm of all gradients from sums of squares, and what they are to be multiplied by.
pub fn clip(at: &Arena, sums: Address, count: usize) -> Call {
    let clip = Launch::new("clip".to_owned(), [1, 1, 1], THREADS)
        .at([sums, at.slip, at.slip.offset(4 * NUMBERS)])
        .ints([count]);
    clip.0
}

/// The norm of `trained` gradients, and what they are to be multiplied by.
pub fn norm(element: Element, at: &Arena, trained: usize) -> Vec<Call> {
    let norm = Launch::new(format!("squares_{}", element.suffix()), [NORM_BLOCKS, 1, 1], THREADS)
        .at([at.gradients, at.groups, at.slip, at.workspace])
        .longs([trained]);
    vec![norm.0, clip(at, at.workspace, NORM_BLOCKS)]
}

/// The update of the first `exact` elements, whose moments are f32.
pub fn apply_exact(element: Element, moments: Moments, at: &Arena, exact: usize) -> Option<Call> {
    let kind = match moments {
        Moments::F32 => "adamw",
        Moments::EightBit => "adamw_small",
    };
    let launch = Launch::flat(format!("{kind}_{}", element.suffix()), exact / 4)
        .at([at.weights, at.rests, at.gradients, at.first, at.second])
        .at([at.groups, at.due, at.due.offset(4 * NUMBERS)])
        .longs([exact]);
    (exact > 0).then_some(launch.0)
}

/// The update of a range of elements whose moments are coded, behind the first `exact`; `beside` other work or by itself.
/// Padding stays zero.
pub fn apply_coded(element: Element, at: &Arena, exact: usize, range: Range<usize>, beside: bool) -> Call {
    let (start, blocks) = (range.start, range.len() / BLOCK);
    let (codes, largest) = (start - exact, (start - exact) / BLOCK * 4);
    let (rounds, spacer_bytes) = if beside {
        (ROUNDS_BESIDE, SPACER_BYTES)
    } else {
        (ROUNDS_ALONE, 0)
    };
    let grid = [blocks.div_ceil(BLOCKS_OF_THREADS * rounds), 1, 1];
    let mut launch = Launch::new(format!("adamw_8bit_{}", element.suffix()), grid, THREADS)
        .at([
            at.weights.offset(start * element.bytes()),
            at.rests.offset(start * super::master::rest_bytes(element)),
            at.gradients.offset(start * element.bytes()),
            at.first_codes.offset(codes),
            at.first_largest.offset(largest),
            at.second_codes.offset(codes),
            at.second_largest.offset(largest),
            at.groups.offset(start / BLOCK),
            at.tables,
            at.due,
            at.due.offset(4 * NUMBERS),
        ])
        .ints([blocks]);
    launch.0.shared_bytes = spacer_bytes;
    launch.0
}

/// Which of the programs whose gradients are added up one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adding {
    /// Its gradients become the sums, whatever these were.
    First,
    More,
    /// The sums with its gradients take the place of these.
    Last,
}

/// Adds `len` gradients to F32 `sums`. `len` is a multiple of [`BLOCK`].
pub fn add(element: Element, gradients: Address, sums: Address, adding: Adding, len: usize) -> Call {
    let name = format!("add_gradients_{}", element.suffix());
    Launch::flat(name, len.div_ceil(vector(element)))
        .at([gradients, sums])
        .ints([
            usize::from(adding == Adding::First),
            usize::from(adding == Adding::Last),
        ])
        .longs([len])
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with the tables.
    fn nearest(index: &[u8], code: &Code, signed: bool, value: f32) -> u8 {
        let bits = value.abs().to_bits() >> (23 - fraction_bits(signed));
        let first = (127 - OCTAVES as u32) << fraction_bits(signed);
        let of_a_sign = cells_of_a_sign(signed);
        let cell = (bits.saturating_sub(first) as usize).min(of_a_sign - 1);
        let base = index[cell + if value.is_sign_negative() { of_a_sign } else { 0 }];
        base + u8::from(code.midpoints()[usize::from(base)] < value)
    }

    #[test]
    fn the_index_finds_the_code_that_a_search_finds() {
        let codes = Codes::default();
        for (code, signed) in [(&codes.first, true), (&codes.second, false)] {
            let index = index(code, signed);
            assert_eq!(index.len(), 3072);
            let mut values: Vec<f32> = (0..200_000).map(|i| 10f32.powf(i as f32 * -5e-5)).collect();
            // Around every boundary.
            for midpoint in &code.midpoints()[..255] {
                values.extend((-2..=2).map(|step| f32::from_bits((midpoint.abs().to_bits() as i32 + step) as u32)));
            }
            values.extend([0., 1., 1.000_000_1, f32::MIN_POSITIVE, 1e-42]);
            for value in values {
                assert_eq!(nearest(&index, code, signed, value), code.nearest(value), "{value}");
                if signed {
                    assert_eq!(nearest(&index, code, signed, -value), code.nearest(-value), "-{value}");
                }
            }
        }
    }

    #[test]
    fn numbers_have_their_places() {
        let settings = OptimizerSettings {
            moments: Moments::EightBit,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            epsilon: 1e-8,
            low_memory: None,
        };
        let update = Update {
            learning_rates: [(Group::TextEncoder, 1e-3)].into(),
            max_grad_norm: 1.,
            loss_scale: 1024.,
            number: 1,
        };
        let numbers = numbers(&settings, &update);
        assert_eq!(numbers.len(), NUMBERS);
        assert_eq!(numbers[..2], [1024., 1.]);
        assert_eq!(numbers[8..11], [0.; 3]);
        assert_eq!(numbers[11], 1.);
        assert!((numbers[12] - (1. - 1e-5)).abs() < 1e-7);
        assert_eq!(numbers[17..], [0.; 2], "nothing is rounded by chance");
    }
}
