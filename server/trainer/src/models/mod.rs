//! The networks: U-Net, CLIP text encoder and VAE, a file per block, with diffusers' parameter paths.

pub mod config;
