//! The engine: models, DreamBooth, samplers, checkpoint formats, CPU and CUDA ops. The only crate that touches candle.

pub mod models;
pub mod ops;
