//! `CLIPTextModel`: token ids to the states that the U-Net attends to.

use candle_core::{DType, Result, Tensor};

use super::{
    config::TextEncoderConfig,
    layers::{LayerNorm, Linear},
    params::{ParamError, Params},
    probe::Probe,
};
use crate::ops::{self, Mask};

pub struct ClipTextModel {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
}

impl ClipTextModel {
    /// # Errors
    /// When a weight is missing or has another shape than `config` asks for, or the activation is unknown.
    pub fn new(config: &TextEncoderConfig, params: &Params) -> std::result::Result<Self, ParamError> {
        let params = params.pp("text_model");
        let (width, embeddings) = (config.hidden_size, params.pp("embeddings"));
        let layer = |index| EncoderLayer::new(config, &params.pp(format!("encoder.layers.{index}")));
        Ok(Self {
            token_embedding: embeddings.get((config.vocab_size, width), "token_embedding.weight")?,
            position_embedding: embeddings.get((config.max_position_embeddings, width), "position_embedding.weight")?,
            layers: (0..config.num_hidden_layers)
                .map(layer)
                .collect::<std::result::Result<_, _>>()?,
            final_layer_norm: LayerNorm::new(width, config.layer_norm_eps, &params.pp("final_layer_norm"))?,
        })
    }

    /// `ids` u32 `[rows, tokens]`, at most 77 tokens, to `[rows, tokens, width]`. Padding is attended, as in training.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.forward_clip_skip(ids, 1)
    }

    /// As the field counts: 1 takes the last layer, 2 the one before it; the final norm comes after either.
    pub fn forward_clip_skip(&self, ids: &Tensor, clip_skip: usize) -> Result<Tensor> {
        self.forward_probed(ids, clip_skip, Probe::off())
    }

    /// The state at each row's first `end_id`, `[rows, width]`; `states` as [`Self::forward`] gives them.
    pub fn pooled(&self, states: &Tensor, ids: &Tensor, end_id: u32) -> Result<Tensor> {
        let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        let pick = |(row, ids): (usize, &Vec<u32>)| {
            let position = ids.iter().position(|&id| id == end_id).unwrap_or(ids.len() - 1);
            states.get(row)?.get(position)
        };
        Tensor::stack(&rows.iter().enumerate().map(pick).collect::<Result<Vec<_>>>()?, 0)
    }

    /// [`Self::forward_clip_skip`], with `hidden_states.i` shown to `probe`: 0 the embeddings, i what layer i puts out.
    pub fn forward_probed(&self, ids: &Tensor, clip_skip: usize, mut probe: Probe) -> Result<Tensor> {
        let (_, tokens) = ids.dims2()?;
        let wanted = self.layers.len().saturating_sub(clip_skip.saturating_sub(1));
        let positions = self.position_embedding.narrow(0, 0, tokens)?;
        let mut hidden = ops::embedding(&self.token_embedding, ids)?.broadcast_add(&positions)?;
        probe.see("hidden_states.0", &hidden);
        for (index, layer) in self.layers[..wanted].iter().enumerate() {
            hidden = layer.forward(&hidden)?;
            probe.see(&format!("hidden_states.{}", index + 1), &hidden);
        }
        self.final_layer_norm.forward(&hidden)
    }
}

#[derive(Clone, Copy)]
enum Activation {
    QuickGelu,
    Gelu,
}

struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl EncoderLayer {
    fn new(config: &TextEncoderConfig, params: &Params) -> std::result::Result<Self, ParamError> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| LayerNorm::new(width, config.layer_norm_eps, &params.pp(name));
        let projection = |name| Linear::new(width, width, &params.pp("self_attn").pp(name));
        let activation = match config.hidden_act.as_str() {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            other => {
                let (setting, supported) = ("hidden_act", "quick_gelu, gelu");
                return Err(ParamError::Config {
                    setting,
                    got: other.to_string(),
                    supported,
                });
            }
        };
        Ok(Self {
            layer_norm1: norm("layer_norm1")?,
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            heads: config.num_attention_heads,
            layer_norm2: norm("layer_norm2")?,
            fc1: Linear::new(width, inner, &params.pp("mlp.fc1"))?,
            fc2: Linear::new(inner, width, &params.pp("mlp.fc2"))?,
            activation,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.layer_norm1.forward(x)?;
        let (q, k, v) = (
            self.q_proj.forward(&normed)?,
            self.k_proj.forward(&normed)?,
            self.v_proj.forward(&normed)?,
        );
        let x = (self
            .out_proj
            .forward(&ops::attention(&q, &k, &v, self.heads, Mask::Causal)?)?
            + x)?;
        let hidden = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        let hidden = match self.activation {
            Activation::QuickGelu => ops::quick_gelu(&hidden)?,
            Activation::Gelu => ops::gelu(&hidden)?,
        };
        self.fc2.forward(&hidden)? + x
    }
}
