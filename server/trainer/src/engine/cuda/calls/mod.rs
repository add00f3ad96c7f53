//! Instructions as launches of our kernels (`server/trainer/kernels`): pure functions of shapes and addresses.
//!
//! Weights and their gradients are of the element type, statistics F32, all sums are made in f32 in an order that is
//! fixed by the shape alone. An address of 0 stands for an operand that is not there. Every buffer starts on a multiple
//! of 256 bytes, except where a comment says otherwise. What a `.._workspace` function names is scratch memory for that one
//! list of calls; its contents do not matter before and mean nothing after.

pub mod attention;
pub mod diffusion;
pub mod embedding;
pub mod group_norm;
pub mod layer_norm;
pub mod loss;
pub mod low_memory;
pub mod master;
pub mod optimizer;
pub mod pointwise;
pub mod rearrange;
pub mod sums;

use super::call::{Address, Argument, Call, Element};

/// Threads of a block where nothing else decides.
const THREADS: usize = 256;

fn addresses(all: &[Address]) -> Vec<Argument> {
    all.iter().copied().map(Argument::Address).collect()
}

/// Elements in the sixteen bytes that a thread moves at once.
fn vector(element: Element) -> usize {
    16 / element.bytes()
}

/// Neighbouring elements that a thread moves at once: sixteen bytes' worth where rows of `channels` allow it, else one.
fn vector_of(element: Element, channels: usize) -> usize {
    let most = vector(element);
    if channels.is_multiple_of(most) { most } else { 1 }
}

/// A launch that is being written down; arguments in the kernel's order.
struct Launch(Call);

impl Launch {
    fn new(name: String, grid: [usize; 3], threads: usize) -> Self {
        Self(Call {
            name,
            grid: grid.map(|size| size as u32),
            block: [threads as u32, 1, 1],
            shared_bytes: 0,
            arguments: Vec::new(),
        })
    }

    /// A thread for each of `count` things.
    fn flat(name: String, count: usize) -> Self {
        Self::new(name, [count.div_ceil(THREADS).max(1), 1, 1], THREADS)
    }

    fn at<const N: usize>(mut self, addresses: [Address; N]) -> Self {
        self.0.arguments.extend(addresses.map(Argument::Address));
        self
    }

    fn ints<const N: usize>(mut self, sizes: [usize; N]) -> Self {
        self.0.arguments.extend(sizes.map(|size| Argument::I32(size as i32)));
        self
    }

    /// Sizes that may not fit 32 bits.
    fn longs<const N: usize>(mut self, sizes: [usize; N]) -> Self {
        self.0.arguments.extend(sizes.map(|size| Argument::I64(size as i64)));
        self
    }
}
