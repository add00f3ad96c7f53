//! The networks: U-Net, CLIP text encoder and VAE, a file per block, with diffusers' parameter paths.

pub mod config;
mod init;
mod layers;
pub mod params;
pub mod probe;
mod resnet;
pub mod text_encoder;
mod transformer;
pub mod unet;
mod unet_blocks;
pub mod vae;

pub use init::{ModelConfig, parameter_shapes, random_weights};
