//! The engine: models, DreamBooth, samplers, checkpoint formats, CPU and CUDA ops. The only crate that touches candle.

pub mod base_model;
pub mod bench;
mod bytes;
pub mod dataset;
pub mod defaults;
pub mod device;
pub mod dreambooth;
pub mod engine;
pub mod events;
pub mod formats;
pub mod hub;
pub mod lr;
pub mod models;
pub mod noise;
pub mod pipeline;
pub mod pretrain;
pub mod schedulers;
pub mod store;
pub mod threads;
pub mod tokenizer;
