//! Where the time of a program goes.

use std::collections::BTreeMap;

use super::cli::{Bench, Running};
use crate::engine::ir::{Program, ValueId};
use crate::engine::operands::operands;
use crate::engine::session::{ProgramId, Update};

/// Says, on a GPU and where it was asked for, what each kind of instruction takes, with the update where one is given;
/// milliseconds by kind.
///
/// # Errors
/// What the device answers.
pub(super) fn profile(
    bench: &Bench,
    running: &mut Running,
    id: ProgramId,
    program: &Program,
    update: Option<&Update>,
) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let (Running::Gpu(session), true) = (running, bench.args.profile) else {
        return Ok(BTreeMap::new());
    };
    if update.is_some() {
        bench.say(format_args!(
            "captured  {} kernels and copies",
            session.recorded_nodes(id)
        ));
    }
    let profile = session.profile(id, update)?;
    let kinds = by_kind(&profile);
    bench.say("each instruction by itself, on warm caches:");
    for (name, millis, count) in &kinds {
        bench.say(format_args!("  {name:<16} {millis:>8.3} ms in {count}"));
    }
    for (shape, millis, count) in slowest(program, &profile) {
        bench.say(format_args!("  {millis:>8.3} ms in {count:>3}: {shape}"));
    }
    Ok(kinds.into_iter().map(|(name, millis, _)| (name, millis)).collect())
}

/// Sums by name, largest first, with how many there were.
fn by_kind(times: &[(&'static str, f32)]) -> Vec<(&'static str, f64, usize)> {
    let mut sums: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for (name, millis) in times {
        let sum = sums.entry(name).or_default();
        sum.0 += f64::from(*millis);
        sum.1 += 1;
    }
    let mut sums: Vec<_> = sums
        .into_iter()
        .map(|(name, (millis, count))| (name, millis, count))
        .collect();
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    sums
}

/// The thirty kinds of instructions, told apart by shapes, that take longest together.
fn slowest(program: &Program, profile: &[(&'static str, f32)]) -> Vec<(String, f64, usize)> {
    let mut sums: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for (op, (_, millis)) in program.code.iter().zip(profile) {
        let touched = operands(op);
        let dims = |ids: &[ValueId]| {
            ids.iter()
                .map(|&id| format!("{:?}", program.value(id).dims))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let sum = sums
            .entry(format!(
                "{} {} -> {}",
                op.name(),
                dims(&touched.reads),
                dims(&touched.writes)
            ))
            .or_default();
        sum.0 += f64::from(*millis);
        sum.1 += 1;
    }
    let mut sums: Vec<_> = sums
        .into_iter()
        .map(|(shape, (millis, count))| (shape, millis, count))
        .collect();
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    sums.truncate(30);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_summed() {
        let sums = by_kind(&[("a", 1.), ("b", 4.), ("a", 2.)]);
        assert_eq!(sums, [("b", 4., 1), ("a", 3., 2)]);
    }
}
