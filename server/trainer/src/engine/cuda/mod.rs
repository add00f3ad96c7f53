//! The engine on an NVIDIA GPU.

mod blas;
pub mod call;
mod choices;
mod descriptor;
mod dnn;
mod driver;
mod gpu;
mod graph;
mod library;

pub use gpu::{Card, card};
