//! A run that is taken down and set up again from what it saved goes on with the same bits.

use std::sync::Arc;

use super::{
    Check, Result,
    instructions::ADAM,
    networks::{self, Network},
    runs::{Run, settings},
};
use crate::engine::{
    cuda::{call::Element, device::Device, session::CudaSession},
    ir::ParamId,
    session::{LowMemory, Moments, OptimizerSettings, Session},
};

/// Updates before the state is saved, and in all.
const SAVED_AFTER: u64 = 3;
const STEPS: u64 = 6;

pub(super) fn check(device: &Arc<Device>, element: Element, report: &mut dyn FnMut(Check)) -> Result<()> {
    let network = networks::dreambooth(2, [16, 12], 77)?;
    let exact = [Moments::F32, Moments::EightBit].map(|moments| OptimizerSettings { moments, ..ADAM });
    for optimizer in exact {
        let name = format!("{}, moments {:?}", element.suffix(), optimizer.moments);
        resumes(device, element, &network, optimizer, &name, report)?;
    }
    if element == Element::Bf16 {
        let optimizer = OptimizerSettings {
            low_memory: Some(LowMemory { seed: 5 }),
            ..ADAM
        };
        resumes(device, element, &network, optimizer, "low memory", report)?;
    }
    Ok(())
}

fn resumes(
    device: &Arc<Device>,
    element: Element,
    network: &Network,
    optimizer: OptimizerSettings,
    name: &str,
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    let loss_scale = if element == Element::F16 { 1024. } else { 1. };
    let run = || -> Result<Run<CudaSession>> {
        let session = CudaSession::new(network.table.clone(), settings(element, optimizer, false), device)?;
        Run::new(session, network)
    };
    let mut whole = run()?;
    (1..=STEPS).try_for_each(|number| whole.step(number, loss_scale))?;

    let mut first = run()?;
    (1..=SAVED_AFTER).try_for_each(|number| first.step(number, loss_scale))?;
    let (weights, moments) = (first.weights()?, first.session.moments()?);
    let mut second = run()?;
    for (index, weight) in weights.iter().enumerate() {
        second.session.set_weight(ParamId(index as u32), weight)?;
    }
    second.session.restore_moments(&moments)?;
    // The first one's norm is what all are clipped to.
    second.norms = first.norms[..1].to_vec();
    (SAVED_AFTER + 1..=STEPS).try_for_each(|number| second.step(number, loss_scale))?;

    let losses =
        whole.losses[first.losses.len()..] == second.losses && second.losses.iter().all(|loss| loss.is_finite());
    let states = whole.weights()? == second.weights()? && whole.session.moments()? == second.session.moments()?;
    for (what, same) in [("losses", losses), ("weights and moments", states)] {
        report(Check {
            name: format!("{name}: {what} of a run resumed at {SAVED_AFTER} of {STEPS} steps, same bits"),
            error: f64::from(u8::from(!same)),
            tolerance: 0.,
        });
    }
    Ok(())
}
