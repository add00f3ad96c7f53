//! `bench`: a training step, or drawing images, on random weights of a whole architecture.

mod arithmetic;
pub mod cli;
mod programs;
mod report;
mod sampling;
mod training;
