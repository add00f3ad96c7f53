//! A model's weights, by diffusers' parameter paths, and how they can fail to be those that its configuration asks for.

use std::collections::BTreeMap;

use candle_core::Tensor;

/// Tensors by their diffusers path, for example `down_blocks.0.resnets.1.conv1.weight`.
pub type Weights = BTreeMap<String, Tensor>;

/// Tensors that old checkpoints hold and no model reads.
const NOT_WEIGHTS: &[&str] = &["position_ids"];

#[derive(Debug, thiserror::Error)]
pub enum ParamError {
    #[error("the weight `{path}` is missing; the model's config.json and its weights do not belong together")]
    Missing { path: String },
    #[error("the weight `{path}` has the shape {got:?}, and the model's config.json asks for {expected:?}")]
    Shape {
        path: String,
        expected: Vec<usize>,
        got: Vec<usize>,
    },
    #[error("{} weights belong to no part of the model, the first is `{}`", paths.len(), paths[0])]
    Unused { paths: Vec<String> },
    #[error("the setting `{setting}` of the model's config.json is `{got}`, which is not supported ({supported})")]
    Config {
        setting: &'static str,
        got: String,
        supported: &'static str,
    },
    #[error("the weight `{path}` cannot be taken over")]
    Tensor {
        path: String,
        #[source]
        source: candle_core::Error,
    },
}

/// Old checkpoints hold some tensors that no network reads.
pub fn is_not_a_weight(path: &str) -> bool {
    NOT_WEIGHTS.iter().any(|name| path.rsplit('.').next() == Some(name))
}
