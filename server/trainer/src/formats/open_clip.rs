//! The text encoder of Stable Diffusion 2.x in a single file: OpenCLIP's names, with query, key and value in one tensor.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use super::architecture;
use super::error::ModelError;
use super::tensor_file::TensorFile;
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

/// A tensor of transformers in OpenCLIP.
struct Place {
    /// Without prefix.
    name: String,
    /// Which third of it, for query, key and value.
    third: Option<usize>,
}

fn place(path: &str) -> Option<Place> {
    let whole = |name: String| Some(Place { name, third: None });
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

/// Reads the text encoder under transformers' names and takes what it used out of `names`.
pub(super) fn read(
    file: &TensorFile,
    names: &mut BTreeMap<String, String>,
    config: &TextEncoderConfig,
) -> Result<Tensors, ModelError> {
    let mut tensors = Tensors::new();
    let mut used = BTreeSet::new();
    for parameter in architecture::text_encoder(config) {
        let wrong = |source| ModelError::Tensor {
            path: file.path().into(),
            tensor: parameter.path.clone(),
            source: Box::new(source),
        };
        let Some(place) = place(&parameter.path) else { continue };
        let name = format!("{PREFIX}{}", place.name);
        let stored = file.read(&name)?;
        used.insert(name);
        let tensor = match place.third {
            None => stored,
            Some(third) => {
                let rows = parameter.shape[0];
                // A copy, so that the whole isn't kept for its third.
                let part = stored
                    .narrow(0, third * rows, rows)
                    .and_then(|part| part.force_contiguous());
                part.map_err(wrong)?
            }
        };
        tensors.insert(parameter.path, tensor);
    }
    names.retain(|name, _| !used.contains(name));
    Ok(tensors)
}

/// Whether OpenCLIP has this and the network has not: besides the extras its last layer, because the model was
/// conditioned on the output of the one before.
pub(super) fn is_extra(name: &str, config: &TextEncoderConfig) -> bool {
    let unused = format!("transformer.resblocks.{}.", config.num_hidden_layers);
    let rest = name.strip_prefix(PREFIX);
    rest.is_some_and(|rest| EXTRAS.contains(&rest) || rest.starts_with(&unused))
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
                out.push((name, Tensor::cat(&thirds, 0)?));
            }
            Some(_) => {}
        }
    }
    Ok(out)
}
