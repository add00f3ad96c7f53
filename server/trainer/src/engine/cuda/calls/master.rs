//! Exact f32 weights beside the 16-bit copies that networks read (`optimizer.cu`).
//!
//! A bf16 copy is the f32 value rounded to the nearest, halves away from zero, and its rest the signed 16 bits that it lacks:
//! `bits of the f32 value = (copy << 16) + rest`. Beside an f16 copy lies the f32 value itself. In f32 the copy is exact.

use super::{
    super::call::{Address, Argument, Call, Element},
    Launch, vector,
};

/// Bytes of an element's rest.
pub fn rest_bytes(element: Element) -> usize {
    match element {
        Element::F32 => 0,
        Element::F16 => 4,
        Element::Bf16 => 2,
    }
}

/// F32 values to copy and rest; without a rest (a frozen weight) to the copy alone. Addresses need only an element's alignment.
pub fn split(element: Element, from: Address, copy: Address, rest: Address, len: usize) -> Vec<Call> {
    let name = format!("split_master_{}", element.suffix());
    vec![Launch::flat(name, len).at([from, copy, rest]).longs([len]).0]
}

/// What [`split`] took apart, in F32; without a rest the copy.
pub fn join(element: Element, copy: Address, rest: Address, to: Address, len: usize) -> Vec<Call> {
    let name = format!("join_master_{}", element.suffix());
    vec![Launch::flat(name, len).at([copy, rest, to]).longs([len]).0]
}

/// Elements that a thread of the passes over all weights takes: what one load of sixteen bytes brings.
fn passes(name: &str, element: Element, len: usize) -> Launch {
    Launch::flat(
        format!("{name}_master_{}", element.suffix()),
        len.div_ceil(vector(element)),
    )
}

/// F32 `averages` of weights: `average -= fresh * (average - weight)`, or with 1 the weight whatever was there. `len` is a multiple
/// of 8, and so are its parts' starts.
pub fn follow(element: Element, [copy, rest, averages]: [Address; 3], fresh: f32, len: usize) -> Vec<Call> {
    if len == 0 {
        return Vec::new();
    }
    let mut launch = passes("follow", element, len).at([copy, rest, averages]);
    launch.0.arguments.push(Argument::F32(fresh));
    vec![launch.longs([len]).0]
}

/// Weights and F32 `averages` change places.
pub fn exchange(element: Element, [copy, rest, averages]: [Address; 3], len: usize) -> Vec<Call> {
    if len == 0 {
        return Vec::new();
    }
    let launch = passes("exchange", element, len);
    vec![launch.at([copy, rest, averages]).longs([len]).0]
}
