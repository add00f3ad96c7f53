//! Training in low memory: against the CPU's, captured against eager, and its losses against those of exact f32.

use std::sync::Arc;

use super::{
    Check, Result,
    instructions::ADAM,
    networks,
    runs::{self, Run, settings},
};
use crate::engine::{
    cuda::{call::Element, device::Device, session::CudaSession},
    session::{LowMemory, Moments, OptimizerSettings},
};

/// Steps of the loss curve, over batches that come again and again.
const STEPS: u64 = 120;
const BATCHES: u64 = 4;
/// How far the mean loss of any round of batches may lie from f32's, as a share of the first round's.
const TOLERANCE: f64 = 0.1;

pub(super) fn check(device: &Arc<Device>, report: &mut dyn FnMut(Check)) -> Result<()> {
    let network = networks::dreambooth(2, [16, 12], 77)?;
    let low = OptimizerSettings {
        low_memory: Some(LowMemory { seed: 3 }),
        ..ADAM
    };
    runs::against_cpu(device, Element::Bf16, &network, low, report)?;
    runs::same_bits(device, Element::Bf16, &network, low, report)?;

    let exact = OptimizerSettings {
        moments: Moments::F32,
        ..ADAM
    };
    let curve = |element, optimizer| -> Result<Vec<f64>> {
        let session = CudaSession::new(network.table.clone(), settings(element, optimizer, false), device)?;
        let mut run = Run::new(session, &network)?;
        (1..=STEPS).try_for_each(|number| run.step_with(number % BATCHES, number, 1.))?;
        let a_round = run.losses.len() / (STEPS / BATCHES) as usize;
        let mean = |losses: &[f32]| losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
        Ok(run.losses.chunks(a_round).map(mean).collect())
    };
    let wanted = curve(Element::F32, exact)?;
    // Beside it what bf16 and 8 bits do without it.
    for (name, optimizer) in [("low memory", low), ("bf16 over exact weights", ADAM)] {
        // `max` would pass over NaN.
        let worst = (curve(Element::Bf16, optimizer)?.iter().zip(&wanted))
            .map(|(got, expected)| (got - expected).abs() / wanted[0])
            .fold(
                0f64,
                |worst, next| if next >= worst || next.is_nan() { next } else { worst },
            );
        report(Check {
            name: format!(
                "{name}: losses of {STEPS} steps over {BATCHES} batches follow f32's, which go from {:.3} to {:.3}",
                wanted[0],
                wanted[wanted.len() - 1]
            ),
            error: worst,
            tolerance: TOLERANCE,
        });
    }
    Ok(())
}
