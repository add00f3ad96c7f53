//! Numbers for people and programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::cli::{Bench, Running};
use crate::engine::cuda::device::Device;

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

/// Sums by name, largest first, with how many there were.
pub(super) fn by_kind(times: &[(&'static str, f32)]) -> Vec<(&'static str, f64, usize)> {
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

    #[test]
    fn kinds_are_summed() {
        let sums = by_kind(&[("a", 1.), ("b", 4.), ("a", 2.)]);
        assert_eq!(sums, [("b", 4., 1), ("a", 3., 2)]);
    }
}
