//! What an update is made of: gradients of many programs together, and none that are not finite.

use std::sync::Arc;

use super::{
    Check, Result,
    instructions::ADAM,
    networks::Network,
    runs::{Run, settings},
};
use crate::engine::{
    cuda::{call::Element, device::Device, session::CudaSession},
    session::{Moments, OptimizerSettings, Session},
};

const EIGHT_BIT: OptimizerSettings = OptimizerSettings {
    moments: Moments::EightBit,
    ..ADAM
};
/// A power of two, so that the sum of so many equal gradients is exact in f32, and in 16 bits once it is whole.
const PARTS: u32 = 256;

pub(super) fn check(
    device: &Arc<Device>,
    element: Element,
    network: &Network,
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    let new = || -> Result<Run<CudaSession>> {
        Run::new(
            CudaSession::new(network.table.clone(), settings(element, EIGHT_BIT, false), device)?,
            network,
        )
    };
    let mut report = |name: &str, failed: bool| {
        report(Check {
            name: format!("{} {name}", element.suffix()),
            error: f64::from(u8::from(failed)),
            tolerance: 0.,
        });
    };
    let scale = if element == Element::F16 { 4. } else { 1. };

    // One warm-up, so that the sums meet an update that is still due.
    let (mut one, mut many) = (new()?, new()?);
    one.step(1, scale)?;
    many.step(1, scale)?;
    one.step(2, scale)?;
    if many.session.sums_apart() {
        many.sum(2, PARTS, scale)?;
        one.step(3, scale)?;
        many.step(3, scale)?;
        let alike = one.norms == many.norms
            && one.weights()? == many.weights()?
            && one.session.moments()? == many.session.moments()?;
        report("256 equal gradients update as one of them does, same bits", !alike);
    }

    let (mut clean, mut interrupted) = (new()?, new()?);
    for number in 1..=2 {
        clean.step(number, scale)?;
        interrupted.step(number, scale)?;
    }
    let before = (interrupted.weights()?, interrupted.session.moments()?);
    let norms = interrupted.norms.len();
    interrupted.step(3, f32::INFINITY)?;
    let skipped = interrupted.norms.pop().is_some_and(f64::is_nan) && interrupted.norms.len() == norms;
    report("an update of gradients that overflow is left out", !skipped);
    let after = (interrupted.weights()?, interrupted.session.moments()?);
    report("and changes no bit of weights and moments", before != after);
    for number in 3..=4 {
        clean.step(number, scale)?;
        interrupted.step(number, scale)?;
    }
    let alike = clean.norms == interrupted.norms
        && clean.weights()? == interrupted.weights()?
        && clean.session.moments()? == interrupted.session.moments()?;
    report("nor of those that come after it", !alike);
    Ok(())
}
