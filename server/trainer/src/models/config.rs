//! Shapes of the models, read from the `config.json` files of a diffusers folder.
//!
//! Field names and defaults are diffusers' and transformers', so that SD 1.5, SD 2.x and tiny models run through the
//! same code.

use serde::{Deserialize, Serialize};

/// `unet/config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UNetConfig {
    /// Latent side the model was trained at; times 8 it is the resolution in pixels.
    pub sample_size: usize,
    #[serde(default = "four")]
    pub in_channels: usize,
    #[serde(default = "four")]
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    /// `CrossAttnDownBlock2D` or `DownBlock2D`.
    pub down_block_types: Vec<String>,
    /// `CrossAttnUpBlock2D` or `UpBlock2D`.
    pub up_block_types: Vec<String>,
    #[serde(default = "two")]
    pub layers_per_block: usize,
    pub cross_attention_dim: usize,
    /// diffusers' misnomer: the number of heads, one for all blocks or one a block.
    pub attention_head_dim: HeadCount,
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Linear instead of 1x1 convolution around the transformer blocks (SD 2.x).
    #[serde(default)]
    pub use_linear_projection: bool,
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    #[serde(default)]
    pub freq_shift: f64,
}

/// One number for all blocks, or one a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeadCount {
    All(usize),
    PerBlock(Vec<usize>),
}

impl HeadCount {
    /// Heads of down block `block`.
    pub fn of(&self, block: usize) -> usize {
        match self {
            Self::All(heads) => *heads,
            Self::PerBlock(heads) => heads[block.min(heads.len() - 1)],
        }
    }
}

/// `vae/config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeConfig {
    #[serde(default = "three")]
    pub in_channels: usize,
    #[serde(default = "three")]
    pub out_channels: usize,
    #[serde(default = "four")]
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    #[serde(default = "two")]
    pub layers_per_block: usize,
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Latents are VAE samples times this; SD 1.5's file leaves it out.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f64,
    #[serde(default)]
    pub sample_size: Option<usize>,
}

/// `text_encoder/config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextEncoderConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    #[serde(default = "seventy_seven")]
    pub max_position_embeddings: usize,
    /// `quick_gelu` (CLIP) or `gelu` (OpenCLIP).
    #[serde(default = "quick_gelu")]
    pub hidden_act: String,
    #[serde(default = "norm_eps")]
    pub layer_norm_eps: f64,
}

/// `scheduler/scheduler_config.json`: the noise schedule the model was trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchedulerConfig {
    #[serde(default = "beta_start")]
    pub beta_start: f64,
    #[serde(default = "beta_end")]
    pub beta_end: f64,
    #[serde(default = "scaled_linear")]
    pub beta_schedule: String,
    #[serde(default = "thousand")]
    pub num_train_timesteps: usize,
    #[serde(default)]
    pub prediction_type: PredictionType,
    #[serde(default)]
    pub steps_offset: usize,
    #[serde(default)]
    pub set_alpha_to_one: bool,
    #[serde(default)]
    pub clip_sample: bool,
    /// SD 1.5's file has none: each sampler then keeps its own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<String>,
}

/// What the U-Net's output is asked to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    #[default]
    Epsilon,
    VPrediction,
}

impl Default for SchedulerConfig {
    /// As SD 1.5 publishes it.
    fn default() -> Self {
        Self {
            beta_start: beta_start(),
            beta_end: beta_end(),
            beta_schedule: scaled_linear(),
            num_train_timesteps: thousand(),
            prediction_type: PredictionType::Epsilon,
            steps_offset: 1,
            set_alpha_to_one: false,
            clip_sample: false,
            timestep_spacing: None,
        }
    }
}

fn two() -> usize {
    2
}
fn three() -> usize {
    3
}
fn four() -> usize {
    4
}
fn thirty_two() -> usize {
    32
}
fn seventy_seven() -> usize {
    77
}
fn thousand() -> usize {
    1000
}
fn norm_eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}
fn scaling_factor() -> f64 {
    0.18215
}
fn quick_gelu() -> String {
    "quick_gelu".into()
}
fn beta_start() -> f64 {
    0.00085
}
fn beta_end() -> f64 {
    0.012
}
fn scaled_linear() -> String {
    "scaled_linear".into()
}
