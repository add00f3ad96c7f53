//! Optimizers: they own their moments and change the parameters in place.

pub mod adamw;
pub mod ema;
pub mod grads;

pub use adamw::{AdamW, AdamWSettings};
pub use ema::Ema;
pub use grads::Grads;
