//! What the engine asks of a device: weights, programs over them, an optimizer. One implementation a device.

use std::collections::BTreeMap;

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
}

/// One optimizer update.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub learning_rates: BTreeMap<Group, f64>,
    /// Gradients are scaled so that their L2 norm over all trained weights together is at most this; 0 clips nothing.
    pub max_grad_norm: f64,
    /// What the loss was multiplied by; gradients are divided by it first.
    pub loss_scale: f64,
    /// Counted from 1; enters the bias corrections.
    pub number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Updated {
    /// Before clipping, without the loss scale.
    pub grad_norm: f64,
    /// A gradient was not finite: weights and moments are as they were.
    pub skipped: bool,
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

    fn write(&mut self, program: ProgramId, input: &str, data: Data) -> Result<()>;
    fn run(&mut self, program: ProgramId) -> Result<()>;
    /// Runs `program`, then updates from the gradients that it and those before it left since the last update. On a GPU
    /// one captured graph.
    fn run_and_update(&mut self, program: ProgramId, update: &Update) -> Result<Updated>;
    /// In f32, row-major.
    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>>;

    /// In f32, in the engine's layout. Of trained weights the exact master.
    fn weight(&mut self, id: ParamId) -> Result<Vec<f32>>;
    fn set_weight(&mut self, id: ParamId, values: &[f32]) -> Result<()>;
    /// As the last run left it, still times the loss scale.
    fn gradient(&mut self, id: ParamId) -> Result<Vec<f32>>;

    /// The optimizer's memory, by name, in an order that does not change; what [`Self::restore_moments`] takes.
    fn moments(&mut self) -> Result<BTreeMap<String, Vec<u8>>>;
    fn restore_moments(&mut self, moments: &BTreeMap<String, Vec<u8>>) -> Result<()>;
}
