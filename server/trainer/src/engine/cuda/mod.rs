//! The engine on an NVIDIA GPU.

pub mod call;
pub mod calls;
