//! What can go wrong between a model and a device.

use crate::engine::autodiff::AutodiffError;
use crate::engine::builder::BuildError;
use crate::engine::session::EngineError;
use crate::models::params::ParamError;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Param(#[from] ParamError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Autodiff(#[from] AutodiffError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("the model has no timestep {timestep}; it has {count}")]
    Timestep { timestep: f32, count: usize },
    #[error("this session holds no {0}")]
    NotHeld(&'static str),
}

pub type Result<T> = std::result::Result<T, NetworkError>;
