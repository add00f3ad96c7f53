//! The operations that the networks are made of, each with a right gradient on every device.
//!
//! candle's own are not enough: some have no gradient and say nothing, some have a wrong or a naive one. Here each op
//! has a file: formula, forward, backward, a plain reference in f64. On the CPU in f32 they run on own kernels; on
//! other devices and types they are composed of candle's ops whose gradients are right.

mod activation;
mod attention;
mod conv2d;
mod elementwise;
mod embedding;
mod group_norm;
mod layer_norm;
mod linear;
mod loss;
mod node;
#[cfg(test)]
mod testing;
mod threads;
mod upsample;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use attention::{Mask, attention};
pub use conv2d::{Conv2dShape, conv2d};
pub use elementwise::{add_per_channel, transpose};
pub use embedding::embedding;
pub use group_norm::{Fused, group_norm};
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use loss::mse;
pub use threads::keep_candle_on_one_thread;
pub use upsample::upsample_nearest;

use crate::engine::cpu::{kernel, math};
