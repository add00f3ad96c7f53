//! The command line as a person uses it: real folders, the real executables, and what is there afterwards.

mod class_images;
mod convert;
mod drawing;
mod holdout;
mod learning;
mod lora;
mod memory;
mod misuse;
mod photos;
mod results;
mod subjects;
mod vae;
mod wiring;
pub mod world;
