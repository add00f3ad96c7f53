//! The engine on the CPU: every value in f32, a file per family of instructions.
//!
//! Kernels are functions over slices and know nothing of programs; `execute` finds their slices, `session` holds what
//! lasts longer than an instruction. The same input gives the same bits on any number of threads.

mod attention;
mod conv;
mod diffusion;
mod embedding;
mod execute;
pub mod footprint;
mod gates;
mod group_norm;
pub(crate) mod kernel;
mod layer_norm;
mod linear;
mod loss;
pub(crate) mod math;
mod memory;
mod optimizer;
mod resample;
mod session;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use session::CpuSession;
