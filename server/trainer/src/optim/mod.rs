//! Optimizers: they own their moments and change the parameters in place.

pub mod adamw;
pub mod grads;

pub use adamw::{AdamW, AdamWSettings};
pub use grads::Grads;
