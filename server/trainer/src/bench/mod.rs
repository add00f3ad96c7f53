//! `bench`: a training step, drawing images, or a whole run, on random weights of a whole architecture.

mod arithmetic;
pub mod cli;
mod profile;
mod programs;
mod report;
mod sampling;
mod training;
mod whole_run;
