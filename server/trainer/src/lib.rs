//! The engine: models, DreamBooth, samplers, checkpoint formats, CPU and CUDA ops. The only crate that touches candle.

pub mod formats;
pub mod lr;
pub mod models;
pub mod noise;
pub mod ops;
pub mod schedulers;
pub mod tokenizer;
