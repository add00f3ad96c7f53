//! A session's [`Footprint`], from the sizes that it asks memory for.

use std::collections::BTreeSet;

use super::{
    super::{
        footprint::{Footprint, Kept},
        gradients,
        ir::{ParamId, ParamTable, Program},
        operands::operands,
        plan::plan,
        session::{OptimizerSettings, Result},
    },
    optimizer::moment_bytes,
};

/// Of a session that runs `programs` and, where any computes gradients, updates from them and keeps what is asked for.
///
/// # Errors
/// As the session, when a program does what low memory cannot.
pub fn footprint<'a>(
    params: &ParamTable,
    optimizer: &OptimizerSettings,
    kept: Kept,
    programs: impl IntoIterator<Item = &'a Program>,
) -> Result<Footprint> {
    let bytes = |id: ParamId| (params.get(id).len() * size_of::<f32>()) as u64;
    let all = (0..params.params.len() as u32).map(ParamId);
    let mut footprint = Footprint {
        weights: all.map(bytes).sum(),
        ..Footprint::default()
    };
    let (mut learning, mut at_once) = (BTreeSet::new(), 0);
    for program in programs {
        let places = plan(program, |_| size_of::<f32>());
        footprint.activations = footprint.activations.max(places.arena_bytes as u64);
        footprint.inputs_and_outputs += places.kept_bytes as u64;
        for op in &program.code {
            learning.extend(operands(op).trained_gradients(params));
        }
        if optimizer.low_memory.is_some() {
            let lives = gradients::lives(program, params)?;
            for index in 0..program.code.len() {
                let living = lives
                    .iter()
                    .filter(|(_, life)| (life.first..=life.last).contains(&index));
                at_once = at_once.max(living.map(|(&id, _)| bytes(id)).sum());
            }
        }
    }
    footprint.gradients = match optimizer.low_memory {
        Some(_) => at_once,
        None => learning.iter().copied().map(bytes).sum(),
    };
    if !learning.is_empty() {
        footprint.moments = moment_bytes(params, optimizer.moments) as u64;
        if kept.averages {
            let trained = params.params.iter().filter(|param| param.trained);
            footprint.averages = trained.map(|param| (param.len() * size_of::<f32>()) as u64).sum();
        }
    }
    Ok(footprint)
}
