//! The GPU checks itself: every instruction against the f64 reference on ragged shapes, whole training steps against the
//! CPU session, the captured step against the eager one, two runs against each other, a run that is resumed against one that
//! is not, training in low memory against the CPU's and against f32, and what phases leave in memory.

mod instructions;
mod low_memory;
mod memory;
mod networks;
mod resumed;
mod runs;
mod updates;

use std::sync::Arc;

use super::{call::Element, device::Device};
use crate::engine::session::EngineError;

#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("a test network could not be written")]
    Build(#[from] crate::engine::builder::BuildError),
    #[error("a test network could not be written")]
    Autodiff(#[from] crate::engine::autodiff::AutodiffError),
    #[error("a test network could not be written")]
    Param(#[from] crate::models::params::ParamError),
    #[error("a test network's configuration")]
    Config(#[from] serde_json::Error),
}

type Result<T> = std::result::Result<T, SelfTestError>;

/// One thing that was checked.
#[derive(Clone, Debug)]
pub struct Check {
    pub name: String,
    /// How far off, in the test's own measure; NaN where a value was NaN.
    pub error: f64,
    pub tolerance: f64,
}

impl Check {
    /// NaN fails.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// Runs all checks in all types that the card computes in, and hands each to `report`.
///
/// # Errors
/// When something could not even be run.
pub fn run(device: &Arc<Device>, report: &mut dyn FnMut(Check)) -> Result<()> {
    let mut elements = vec![Element::F32, Element::F16];
    if device.card().has_bf16() {
        elements.push(Element::Bf16);
    }
    for &element in &elements {
        instructions::check(device, element, report)?;
    }
    for &element in &elements {
        runs::check(device, element, report)?;
        resumed::check(device, element, report)?;
    }
    if device.card().has_bf16() {
        low_memory::check(device, report)?;
    }
    memory::check(device, device.usual_element(), report)
}

/// Below it fp16's numbers are evenly spaced, and a relative error means nothing.
const LEAST_F16: f64 = 1. / (1 << 13) as f64;

/// The largest difference, as a share of the largest expected value, or of `least` where that is more. NaN when any
/// value is.
fn relative(got: &[f32], expected: impl Iterator<Item = f64>, least: f64) -> f64 {
    let (mut difference, mut largest) = (0f64, least.max(1e-30));
    for (&got, expected) in got.iter().zip(expected) {
        let off = (f64::from(got) - expected).abs();
        // `max` would pass over NaN.
        difference = if off.is_nan() || difference.is_nan() {
            f64::NAN
        } else {
            difference.max(off)
        };
        largest = largest.max(expected.abs());
    }
    difference / largest
}

/// Values around -1 to 1, the same for the same seed.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 / (1u64 << 53) as f64 - 0.5) as f32 * 2.
    };
    // The first values after a small seed are much alike.
    (0..8 + len).map(|_| next()).skip(8).collect()
}

/// What `element` keeps of a value.
fn rounded(value: f32, element: Element) -> f32 {
    match element {
        Element::F32 => value,
        Element::F16 => half::f16::from_f32(value).to_f32(),
        Element::Bf16 => half::bf16::from_f32(value).to_f32(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_never_passes() {
        let check = |got: &[f32]| Check {
            name: String::new(),
            error: relative(got, [1., 2.].into_iter(), 0.),
            tolerance: 1e-3,
        };
        assert!(check(&[1., 2.]).passed());
        assert!(!check(&[1., 2.1]).passed());
        assert!(!check(&[f32::NAN, 2.]).passed() && !check(&[1., f32::NAN]).passed());
    }
}
