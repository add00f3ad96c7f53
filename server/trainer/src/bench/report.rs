//! Numbers for people and programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::cli::{Bench, Running};
use crate::engine::cpu;
use crate::engine::cuda;
use crate::engine::cuda::device::Device;
use crate::engine::footprint::{Footprint, Kept};
use crate::engine::ir::{ParamTable, Program};

pub(super) const GIB: f64 = (1u64 << 30) as f64;

pub(super) enum Machine {
    Cpu,
    Gpu(Arc<Device>),
}

impl Machine {
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => format!("CPU, {} threads", rayon::current_num_threads()),
            Self::Gpu(device) => device.card().name.clone(),
        }
    }

    /// As `--device` names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu(_) => "cuda",
        }
    }

    /// In use now: of the GPU as its driver counts, or the most that this process had of the host's memory.
    pub fn used_bytes(&self) -> anyhow::Result<u64> {
        match self {
            Self::Gpu(device) => Ok(device.used_bytes()?),
            Self::Cpu => {
                let text = std::fs::read_to_string("/proc/self/status")?;
                let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
                Ok(kilobytes.unwrap_or(0) * 1024)
            }
        }
    }
}

/// What memory was planned before any of it was asked for.
pub(super) struct Planned {
    /// In use when the plan was made; of the host's memory 0, where the plan is of the session alone.
    before: u64,
    footprint: Footprint,
}

/// How far what is measured on a GPU may lie from the plan.
const TOLERANCE: f64 = 0.1;

impl Planned {
    pub fn new(bench: &Bench, table: &ParamTable, programs: &[&Program]) -> anyhow::Result<Self> {
        let (optimizer, programs) = (bench.optimizer(), programs.iter().copied());
        let (before, footprint) = match &bench.machine {
            Machine::Cpu => (
                0,
                cpu::footprint::footprint(table, &optimizer, Kept::default(), programs)?,
            ),
            Machine::Gpu(device) => (
                device.used_bytes()?,
                cuda::footprint::footprint(table, bench.element(), &optimizer, Kept::default(), programs)?,
            ),
        };
        let planned = Self { before, footprint };
        bench.say(format_args!(
            "plan      {:.2} GiB: {:.2?}",
            planned.peak() as f64 / GIB,
            planned.gib()
        ));
        Ok(planned)
    }

    pub fn peak(&self) -> u64 {
        self.before + self.footprint.total()
    }

    /// By what it is for.
    pub fn gib(&self) -> BTreeMap<&'static str, f64> {
        let parts = self
            .footprint
            .parts()
            .into_iter()
            .chain([("in use before", self.before)]);
        parts.map(|(what, bytes)| (what, bytes as f64 / GIB)).collect()
    }

    /// What was used over what was planned.
    ///
    /// # Errors
    /// On a GPU, when they lie apart.
    pub fn ratio(&self, bench: &Bench, used: u64) -> anyhow::Result<f64> {
        let ratio = used as f64 / self.peak() as f64;
        bench.say(format_args!(
            "          {:.2} GiB were used, {:.2} planned: ratio {ratio:.3}",
            used as f64 / GIB,
            self.peak() as f64 / GIB
        ));
        let is_gpu = matches!(bench.machine, Machine::Gpu(_));
        anyhow::ensure!(
            !is_gpu || (ratio - 1.).abs() <= TOLERANCE,
            "the memory that was used is {ratio:.3} times what was planned"
        );
        Ok(ratio)
    }
}

/// Sorted times.
pub(super) struct Times(Vec<f64>);

impl Times {
    pub fn new(mut millis: Vec<f64>) -> Self {
        millis.sort_by(f64::total_cmp);
        Self(millis)
    }

    /// Where `share` of the times are less.
    pub fn at(&self, share: f64) -> f64 {
        let index = ((self.0.len() - 1) as f64 * share).round() as usize;
        self.0[index]
    }

    pub fn json(&self) -> Value {
        json!({ "p10": self.at(0.1), "median": self.at(0.5), "p90": self.at(0.9), "min": self.at(0.) })
    }
}

/// GiB of what a session holds, by what for.
pub(super) fn held(running: &Running) -> BTreeMap<&'static str, f64> {
    match running {
        Running::Cpu(_) => BTreeMap::new(),
        Running::Gpu(session) => {
            let held = session.held_bytes().into_iter();
            held.map(|(what, bytes)| (what, bytes as f64 / GIB)).collect()
        }
    }
}

/// What was asked for, as it was understood.
pub(super) fn config(bench: &Bench) -> Value {
    let args = bench.args;
    json!({
        "what": format!("{:?}", args.what).to_lowercase(),
        "arch": format!("{:?}", args.arch).to_lowercase(),
        "dtype": bench.element().suffix(),
        "rows": args.rows,
        "train_text_encoder": args.train_text_encoder,
        "use_8bit_adam": args.use_8bit_adam,
        "gradient_checkpointing": args.gradient_checkpointing,
        "low_memory": args.low_memory,
        "steps": args.steps(),
        "eager": args.eager,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_placed_by_share() {
        let times = Times::new(vec![5., 1., 2., 4., 3.]);
        assert_eq!((times.at(0.), times.at(0.5), times.at(1.)), (1., 3., 5.));
    }
}
