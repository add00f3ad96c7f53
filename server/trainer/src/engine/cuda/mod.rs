//! The engine on an NVIDIA GPU.
//!
//! `library` finds NVIDIA's libraries and `gpu` opens the card; `lower` turns instructions into `work`: launches of our
//! kernels (`calls`, over `server/trainer/kernels`), matrix products (`blas`), convolutions (`dnn`). `session` runs the lot, captured
//! in one graph; `store` holds weights and gradients, `update` the optimizer.

mod averages;
mod blas;
pub mod call;
pub mod calls;
mod choices;
mod convert;
mod descriptor;
pub mod device;
mod dnn;
mod driver;
pub mod footprint;
mod gpu;
mod gradient_sums;
mod graph;
pub mod library;
mod lower;
mod lower_attention;
mod lower_small;
mod scratch;
pub mod selftest;
pub mod session;
mod store;
mod update;
mod work;

pub use gpu::{Card, card};
