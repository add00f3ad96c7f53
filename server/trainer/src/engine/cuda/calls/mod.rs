//! Instructions as launches of our kernels (`server/trainer/kernels`): pure functions of shapes and addresses.

pub mod attention;
pub mod group_norm;
pub mod layer_norm;

use super::call::{Address, Argument, Element};

fn addresses(all: &[Address]) -> Vec<Argument> {
    all.iter().copied().map(Argument::Address).collect()
}

/// Neighbouring elements that a thread moves at once: sixteen bytes' worth where rows of `channels` allow it, else one.
fn vector_of(element: Element, channels: usize) -> usize {
    let most = 16 / element.bytes();
    if channels.is_multiple_of(most) { most } else { 1 }
}
