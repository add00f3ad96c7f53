//! The command.

use std::process::ExitCode;
use std::sync::Arc;

use super::programs::Arch;
use super::report::Machine;
use super::{sampling, training, whole_run};
use crate::engine::cpu::CpuSession;
use crate::engine::cuda::call::Element;
use crate::engine::cuda::device::Device;
use crate::engine::cuda::session::{CudaSession, Settings};
use crate::engine::ir::ParamTable;
use crate::engine::session::{LowMemory, Moments, OptimizerSettings, Session};

#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct BenchArgs {
    /// A training step, drawing images, or the tutorial's run from start to checkpoint
    pub what: What,
    #[arg(long, default_value = "sd15")]
    pub arch: Arch,
    /// On a GPU; by default bf16 where it has that, else fp16. The CPU computes in fp32
    #[arg(long)]
    pub dtype: Option<Dtype>,
    /// Images a step, or images drawn together
    #[arg(long, default_value_t = 2)]
    pub rows: usize,
    #[arg(long)]
    pub train_text_encoder: bool,
    #[arg(long)]
    pub use_8bit_adam: bool,
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// As `train --low_memory`: 8-bit moments and gradient checkpointing with it
    #[arg(long)]
    pub low_memory: bool,
    /// Timed training steps (50), sampling steps an image (24), or training steps of the run (800)
    #[arg(long)]
    pub steps: Option<usize>,
    /// cpu or cuda; by default what this build is for
    #[arg(long)]
    pub device: Option<String>,
    /// Every kernel started by itself, for comparison
    #[arg(long)]
    pub eager: bool,
    /// Time by kind of instruction, too
    #[arg(long)]
    pub profile: bool,
    /// One line of JSON and nothing else
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    Train,
    Sample,
    Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    Bf16,
    Fp16,
    Fp32,
}

impl BenchArgs {
    pub(super) fn steps(&self) -> usize {
        self.steps.unwrap_or(match self.what {
            What::Train => 50,
            What::Sample => 24,
            What::Run => 800,
        })
    }

    /// # Errors
    /// When the device does not do what is asked.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let bench = match self.device.as_deref().unwrap_or(crate::device::build()) {
            "cuda" => Bench {
                args: self,
                machine: Machine::Gpu(Device::open()?),
            },
            "cpu" => Bench {
                args: self,
                machine: Machine::Cpu,
            },
            other => anyhow::bail!("--device: unknown device `{other}`; known: cpu, cuda"),
        };
        match self.what {
            What::Train => training::run(&bench),
            What::Sample => sampling::run(&bench),
            What::Run => whole_run::run(&bench),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What is asked for, and where.
pub(super) struct Bench<'a> {
    pub args: &'a BenchArgs,
    pub machine: Machine,
}

impl Bench<'_> {
    pub fn element(&self) -> Element {
        match (&self.machine, self.args.dtype) {
            (Machine::Cpu, _) | (_, Some(Dtype::Fp32)) => Element::F32,
            (_, Some(Dtype::Fp16)) => Element::F16,
            (_, Some(Dtype::Bf16)) => Element::Bf16,
            (Machine::Gpu(device), None) => device.usual_element(),
        }
    }

    pub fn optimizer(&self) -> OptimizerSettings {
        OptimizerSettings {
            moments: if self.args.use_8bit_adam || self.args.low_memory {
                Moments::EightBit
            } else {
                Moments::F32
            },
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            epsilon: 1e-8,
            low_memory: self.args.low_memory.then_some(LowMemory { seed: 1 }),
        }
    }

    pub fn session(&self, table: ParamTable) -> anyhow::Result<Running> {
        let optimizer = self.optimizer();
        Ok(match &self.machine {
            Machine::Cpu => Running::Cpu(Box::new(CpuSession::new(table, optimizer)?)),
            Machine::Gpu(device) => Running::Gpu(Box::new(self.on(device, table, optimizer)?)),
        })
    }

    fn on(&self, device: &Arc<Device>, table: ParamTable, optimizer: OptimizerSettings) -> anyhow::Result<CudaSession> {
        let settings = Settings {
            element: self.element(),
            optimizer,
            eager: self.args.eager,
            poison: false,
        };
        Ok(CudaSession::new(table, settings, device)?)
    }

    /// For people, beside the line of JSON.
    pub fn say(&self, line: impl std::fmt::Display) {
        if !self.args.json {
            println!("{line}");
        }
    }
}

/// A session with what only one kind of device can tell.
pub(super) enum Running {
    Cpu(Box<CpuSession>),
    Gpu(Box<CudaSession>),
}

impl Running {
    pub fn session(&mut self) -> &mut dyn Session {
        match self {
            Self::Cpu(session) => &mut **session,
            Self::Gpu(session) => &mut **session,
        }
    }
}
