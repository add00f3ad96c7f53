//! `CLIPTextModel`: token ids to the states that the U-Net attends to.

use candle_core::{DType, Tensor};

use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{Activation, ValueId};
use crate::models::config::TextEncoderConfig;
use crate::models::params::ParamError;

/// `ids` `[rows, tokens]`, at most 77 tokens, to `[rows, tokens, width]`. Padding is attended, as in training.
///
/// `clip_skip` as the field counts: 1 takes the last layer, 2 the one before it; the final norm comes after either.
/// Probes `hidden_states.i`: 0 the embeddings, i what layer i puts out.
///
/// # Errors
/// When the activation is unknown.
pub fn text_encoder(
    b: &mut Builder,
    config: &TextEncoderConfig,
    ids: ValueId,
    clip_skip: usize,
    scope: &Scope,
) -> Result<ValueId, ParamError> {
    let activation = match config.hidden_act.as_str() {
        "quick_gelu" => Activation::QuickGelu,
        "gelu" => Activation::Gelu,
        other => {
            return Err(ParamError::Config {
                setting: "hidden_act",
                got: other.to_string(),
                supported: "quick_gelu, gelu",
            });
        }
    };
    let scope = scope.at("text_model");
    let (embeddings, width) = (scope.at("embeddings"), config.hidden_size);
    let table = b.weight(&embeddings, "token_embedding.weight", &[config.vocab_size, width]);
    let positions = [config.max_position_embeddings, width];
    let positions = b.weight(&embeddings, "position_embedding.weight", &positions);
    let mut hidden = b.embedding(ids, table, positions);
    b.probe(&scope, "hidden_states.0", hidden);
    let layers = config.num_hidden_layers.saturating_sub(clip_skip.saturating_sub(1));
    for index in 0..layers {
        let layer_scope = scope.at(format_args!("encoder.layers.{index}"));
        hidden = b.segment(|b| layer(b, config, activation, hidden, &layer_scope));
        b.probe(&scope, &format!("hidden_states.{}", index + 1), hidden);
    }
    Ok(b.layer_norm(hidden, &scope.at("final_layer_norm"), config.layer_norm_eps))
}

/// The state at each row's first `end_id`, `[rows, width]`; `states` `[rows, tokens, width]`, `ids` `[rows, tokens]`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn pooled(states: &Tensor, ids: &Tensor, end_id: u32) -> candle_core::Result<Tensor> {
    let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
    let pick = |(row, ids): (usize, &Vec<u32>)| {
        let position = ids.iter().position(|&id| id == end_id).unwrap_or(ids.len() - 1);
        states.get(row)?.get(position)
    };
    Tensor::stack(
        &rows
            .iter()
            .enumerate()
            .map(pick)
            .collect::<candle_core::Result<Vec<_>>>()?,
        0,
    )
}

fn layer(b: &mut Builder, config: &TextEncoderConfig, activation: Activation, x: ValueId, scope: &Scope) -> ValueId {
    let (width, eps) = (config.hidden_size, config.layer_norm_eps);
    let normed = b.layer_norm(x, &scope.at("layer_norm1"), eps);
    let own = scope.at("self_attn");
    let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| b.adapted(normed, &own.at(name), width, Bias::Own, None));
    let attended = b.attention(qkv, config.num_attention_heads, true);
    let x = b.adapted(attended, &own.at("out_proj"), width, Bias::Own, Some(x));
    let normed = b.layer_norm(x, &scope.at("layer_norm2"), eps);
    let hidden = b.linear(normed, &scope.at("mlp.fc1"), config.intermediate_size, Bias::Own, None);
    let hidden = b.activate(activation, hidden);
    b.linear(hidden, &scope.at("mlp.fc2"), width, Bias::Own, Some(x))
}
