//! The networks as instructions: U-Net, CLIP text encoder and VAE, a file per block, with diffusers' parameter paths.

pub mod diffusion;
pub mod error;
pub mod networks;
pub mod programs;
mod resnet;
pub mod text_encoder;
mod tiles;
mod transformer;
pub mod unet;
mod unet_blocks;
pub mod vae;
mod weights;

use super::ir::Window;

/// A 3x3 convolution that keeps the map's size.
const SAME: Window = Window {
    kernel: 3,
    stride: 1,
    before: 1,
    after: 1,
};

#[cfg(test)]
mod tests;
