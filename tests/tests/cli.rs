//! The command line as a person uses it: real folders, the real executables, and what is there afterwards.

mod class_images;
mod lora;
mod misuse;
mod photos;
mod results;
mod world;
