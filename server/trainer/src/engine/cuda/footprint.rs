//! A session's [`Footprint`], from the sizes that it asks memory for. No GPU is needed to know it.

use super::{
    super::{
        footprint::{Footprint, Kept},
        ir::{ParamTable, Program},
        operands::operands,
        session::{OptimizerSettings, Result},
    },
    averages,
    call::Element,
    gradient_sums,
    session::places,
    store::Layout,
    update,
};

/// Only timing on the card says what algorithms ask for: in all that was measured it was never more, nor more than
/// activations.
const WORKSPACE_BYTES: u64 = 64 << 20;
/// What appears on a card from the opening of its libraries to some steps later, beyond what a session asks for;
/// measured, see docs/measurements-gpu.md.
const LIBRARIES_BYTES: u64 = 56 << 20;

/// Of a session that runs `programs` and, where any computes gradients, updates from them and keeps what is asked for.
///
/// # Errors
/// As the session, when a program does what low memory cannot.
pub fn footprint<'a>(
    params: &ParamTable,
    element: Element,
    optimizer: &OptimizerSettings,
    kept: Kept,
    programs: impl IntoIterator<Item = &'a Program>,
) -> Result<Footprint> {
    let layout = Layout::new(params, optimizer.moments);
    let low_memory = optimizer.low_memory.is_some();
    let mut footprint = Footprint {
        weights: layout.weight_bytes(element, low_memory) as u64,
        libraries: LIBRARIES_BYTES,
        ..Footprint::default()
    };
    for program in programs {
        let (places, _) = places(program, params, element, optimizer)?;
        footprint.activations = footprint.activations.max(places.arena_bytes as u64);
        footprint.inputs_and_outputs += places.kept_bytes as u64;
        let trains = |op| operands(op).trained_gradients(params).next().is_some();
        if program.code.iter().any(trains) {
            if !low_memory {
                footprint.gradients = layout.gradient_bytes(element) as u64;
                if kept.sums && element != Element::F32 {
                    footprint.gradients += gradient_sums::bytes(&layout) as u64;
                }
            }
            footprint.moments = update::moment_bytes(&layout) as u64;
            footprint.averages = if kept.averages {
                averages::bytes(&layout) as u64
            } else {
                0
            };
        }
    }
    footprint.workspace = footprint.activations.min(WORKSPACE_BYTES);
    Ok(footprint)
}
