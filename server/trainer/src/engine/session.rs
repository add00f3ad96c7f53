//! What the engine asks of a device: weights, programs over them, an optimizer. One implementation a device.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::ir::{Group, ParamId, ParamTable, Program};

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the program has no input or output named `{0}`")]
    NoSuchValue(String),
    #[error("`{name}` takes {want} values and got {got}")]
    Length { name: String, want: usize, got: usize },
    #[error("{what} needs {wanted_bytes} bytes of memory and there are {free_bytes}")]
    OutOfMemory {
        what: String,
        wanted_bytes: u64,
        free_bytes: u64,
    },
    #[error("the program is not a sound one")]
    Program(#[from] super::verify::ProgramError),
    /// Whatever the device's libraries answer, with what was asked of them.
    #[error("{what}: {why}")]
    Device { what: String, why: String },
}

/// An output was asked for whose memory was released.
pub(super) fn given_back(output: &str) -> EngineError {
    EngineError::Device {
        what: format!("the output `{output}` cannot be read"),
        why: "the program's memory was given back".to_owned(),
    }
}

pub type Result<T> = std::result::Result<T, EngineError>;

/// A compiled program of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(pub usize);

/// What a program's input is filled with.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    F32(&'a [f32]),
    Ids(&'a [u32]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moments {
    /// `torch.optim.AdamW`'s, in f32.
    F32,
    /// bitsandbytes' block-wise dynamic 8-bit code, blocks of 256; tensors of fewer than 4096 elements in f32.
    EightBit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    pub moments: Moments,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub epsilon: f64,
    pub low_memory: Option<LowMemory>,
}

/// Training in little memory: trained weights are bf16 and nothing else, rounded stochastically after each update; a
/// weight is updated within the backward, as soon as its gradient is finished and nobody reads the weight any more, and
/// its gradient is then gone. So nothing knows the norm of all gradients in time, and each weight's gradient is clipped
/// by its own; nor can gradients of several programs be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowMemory {
    /// Of the rounding.
    pub seed: u64,
}

/// One optimizer update.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub learning_rates: BTreeMap<Group, f64>,
    /// Gradients are scaled so that their L2 norm over all trained weights together (in [`LowMemory`] of each weight by
    /// itself) is at most this; 0 clips nothing.
    pub max_grad_norm: f64,
    /// What the loss was multiplied by; gradients are divided by it first.
    pub loss_scale: f64,
    /// Counted from 1; enters the bias corrections.
    pub number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Updated {
    /// Of all gradients together, before clipping, without the loss scale.
    pub grad_norm: f64,
    /// A gradient was not finite: weights and moments are as they were, in [`LowMemory`] those of that gradient's weight.
    pub skipped: bool,
}

/// Choices among algorithms that compute the same, to rounding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Algorithms {
    /// Device and versions of libraries that they hold for.
    pub of: String,
    /// Positions in the libraries' lists of proposals, by shape.
    pub chosen: BTreeMap<String, usize>,
}

/// No average was kept.
pub(super) fn no_averages() -> EngineError {
    EngineError::Device {
        what: "averages of the weights".to_owned(),
        why: "none are kept".to_owned(),
    }
}

/// Weights of a run on a device, the programs over them, and the optimizer that changes them.
///
/// Every method answers alike on every device, to rounding; the same session on the same device gives the same bits.
pub trait Session: Send {
    fn params(&self) -> &ParamTable;

    /// Plans buffers and keeps the program ready to run. Programs share one arena: after another program ran, outputs of
    /// this one are gone; inputs stay.
    fn compile(&mut self, program: Program) -> Result<ProgramId>;
    /// Bytes that running `program` needs besides the weights.
    fn program_bytes(&self, program: ProgramId) -> u64;
    /// Bytes that programs hold now besides the weights.
    fn held_by_programs(&self) -> u64;
    /// Gives back the memory of all programs but `going_on`, and of what programs share the part that those do not need.
    /// A program that is used again gets memory again, and has to be given all its inputs again.
    fn release(&mut self, going_on: &[ProgramId]) -> Result<()>;

    fn write(&mut self, program: ProgramId, input: &str, data: Data) -> Result<()>;
    fn run(&mut self, program: ProgramId) -> Result<()>;
    /// Runs `program`, then updates from the gradients that it and those before it left since the last update. On a GPU
    /// one captured graph.
    fn run_and_update(&mut self, program: ProgramId, update: &Update) -> Result<Updated>;
    /// Gradients are of 16 bits, which are too few for sums of many: [`Self::add_gradients`] adds them in f32, and programs need
    /// not add to what is there.
    fn sums_apart(&self) -> bool {
        false
    }
    /// Adds what the last program left to the gradients that the next update is made of together with those of its own program, where
    /// they are summed apart. `begins` forgets what was added before.
    fn add_gradients(&mut self, _begins: bool) -> Result<()> {
        Ok(())
    }
    /// In f32, row-major.
    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>>;

    /// In f32, in the engine's layout. Of trained weights the exact master.
    fn weight(&mut self, id: ParamId) -> Result<Vec<f32>>;
    fn set_weight(&mut self, id: ParamId, values: &[f32]) -> Result<()>;
    /// As the last run left it, still times the loss scale. In [`LowMemory`] it is gone.
    fn gradient(&mut self, id: ParamId) -> Result<Vec<f32>>;
    /// Its L2 norm, as the last update saw it, still times the loss scale.
    fn gradient_norm(&mut self, id: ParamId) -> Result<f64> {
        Ok(norm(&self.gradient(id)?))
    }

    /// Makes room for running averages of the trained weights, which begin at the weights as they are. Once; not in
    /// [`LowMemory`], whose weights could not take an average's place.
    fn keep_averages(&mut self) -> Result<()>;
    /// `average -= fresh * (average - weight)` for all of them; 1 copies.
    fn follow_weights(&mut self, fresh: f32) -> Result<()>;
    /// Weights and averages change places.
    fn exchange_averages(&mut self) -> Result<()>;
    /// Of a trained weight, in the engine's layout.
    fn average(&mut self, id: ParamId) -> Result<Vec<f32>>;
    fn set_average(&mut self, id: ParamId, values: &[f32]) -> Result<()>;

    /// Which of its libraries' algorithms the device has used so far; `None` where it has no choice.
    fn algorithms(&self) -> Option<Algorithms> {
        None
    }
    /// From now on these are used, where they hold for this device: another algorithm rounds otherwise.
    fn prefer(&mut self, _algorithms: &Algorithms) {}

    /// The optimizer's memory, by name, in an order that does not change; what [`Self::restore_moments`] takes.
    fn moments(&mut self) -> Result<BTreeMap<String, Vec<u8>>>;
    fn restore_moments(&mut self, moments: &BTreeMap<String, Vec<u8>>) -> Result<()>;
}

/// L2, in f64.
pub fn norm(values: &[f32]) -> f64 {
    values.par_iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}
