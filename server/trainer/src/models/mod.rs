//! What a model is: its configuration, its weights by diffusers' paths, and first weights for one that is to be trained from
//! nothing. The networks themselves are in `engine/nets/`.

pub mod config;
mod init;
pub mod params;

pub use init::{ModelConfig, parameter_shapes, random_weights};
