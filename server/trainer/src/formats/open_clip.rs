//! The text encoder of Stable Diffusion 2.x in a single file: OpenCLIP's names, with query, key and value in one tensor.

use candle_core::{DType, Tensor};

use super::architecture::Parameter;
use super::found::Place;
use super::weights::Tensors;
use crate::models::config::TextEncoderConfig;

pub(super) const PREFIX: &str = "cond_stage_model.model.";

/// Parts of OpenCLIP's text model that the networks have no use for.
const EXTRAS: [&str; 3] = ["text_projection", "logit_scale", "attn_mask"];
const PROJECTIONS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// Whether a text encoder is written in these names: the converter asks for a 23rd layer, too.
pub(super) fn is_open_clip(config: &TextEncoderConfig) -> bool {
    config.num_hidden_layers > 22
}

/// Where OpenCLIP has a tensor of transformers, without prefix.
fn place(path: &str) -> Option<Place> {
    let whole = |name: String| Some(Place::whole(name));
    let rest = path.strip_prefix("text_model.")?;
    match rest {
        "embeddings.token_embedding.weight" => return whole("token_embedding.weight".into()),
        "embeddings.position_embedding.weight" => return whole("positional_embedding".into()),
        _ => {}
    }
    if let Some(kind) = rest.strip_prefix("final_layer_norm.") {
        return whole(format!("ln_final.{kind}"));
    }
    let (layer, part) = rest.strip_prefix("encoder.layers.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let block = format!("transformer.resblocks.{layer}");
    if let Some(third) = PROJECTIONS.iter().position(|name| part == format!("self_attn.{name}")) {
        let (name, third) = (format!("{block}.attn.in_proj_{kind}"), Some(third));
        return Some(Place { name, third });
    }
    let theirs = match part {
        "self_attn.out_proj" => "attn.out_proj",
        "layer_norm1" => "ln_1",
        "layer_norm2" => "ln_2",
        "mlp.fc1" => "mlp.c_fc",
        "mlp.fc2" => "mlp.c_proj",
        _ => return None,
    };
    whole(format!("{block}.{theirs}.{kind}"))
}

/// Where a single file has a tensor of the text encoder.
pub(super) fn place_of(parameter: &Parameter) -> Place {
    let mut place = place(&parameter.path).unwrap_or_else(|| Place::whole(parameter.path.clone()));
    place.name.insert_str(0, PREFIX);
    place
}

/// Whether OpenCLIP has this and the network has not: besides the extras its last layer, because the model was
/// conditioned on the output of the one before.
pub(super) fn is_extra(name: &str, config: &TextEncoderConfig) -> bool {
    let unused = format!("transformer.resblocks.{}.", config.num_hidden_layers);
    let rest = name.strip_prefix(PREFIX);
    rest.is_some_and(|rest| EXTRAS.contains(&rest) || rest.starts_with(&unused))
}

/// Row below row. A merged LoRA makes f32 of those that it adds to; the others follow.
fn together(parts: &[&Tensor]) -> candle_core::Result<Tensor> {
    let types = || parts.iter().map(|part| part.dtype());
    let widest = match types().next() {
        Some(first) if types().all(|dtype| dtype == first) => first,
        _ if types().any(|dtype| dtype == DType::F64) => DType::F64,
        _ => DType::F32,
    };
    let parts: Vec<Tensor> = parts
        .iter()
        .map(|part| part.to_dtype(widest))
        .collect::<Result<_, _>>()?;
    Tensor::cat(&parts, 0)
}

/// The text encoder under OpenCLIP's names, prefix included, in the order of its own.
pub(super) fn tensors(text_encoder: &Tensors) -> candle_core::Result<Vec<(String, Tensor)>> {
    let mut out = Vec::new();
    for (path, tensor) in text_encoder {
        let Some(place) = place(path) else { continue };
        let name = format!("{PREFIX}{}", place.name);
        match place.third {
            None => out.push((name, tensor.clone())),
            // The three come one by one; the first stands for all.
            Some(0) => {
                let thirds = PROJECTIONS.map(|projection| path.replace(PROJECTIONS[0], projection));
                let thirds: Vec<&Tensor> = thirds.iter().filter_map(|path| text_encoder.get(path)).collect();
                out.push((name, together(&thirds)?));
            }
            Some(_) => {}
        }
    }
    Ok(out)
}
