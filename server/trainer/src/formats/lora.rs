//! LoRA files: low-rank additions to layers, in a `.safetensors` as kohya's trainer writes it and WebUIs read it.
//!
//! A layer's name there is its path in diffusers with `_` for `.`, after `lora_unet_` or `lora_te_`; under it lie
//! `lora_down.weight` `[rank, inputs]`, `lora_up.weight` `[outputs, rank]` and the number `alpha`. The layer's weight is
//! to become `weight + alpha / rank * up down` (kohya-ss/sd-scripts, networks/lora.py).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::configs::Configs;
use super::error::ModelError;
use super::single_file::{Outgoing, Width, read_back};
use super::tensor_file::TensorFile;
use super::weights::ModelWeights;
use super::{architecture, atomic, open_clip, safetensors_out};
use crate::models::config::PredictionType;

/// Network in a path, and what stands for it in a file.
const PREFIXES: [(&str, &str); 2] = [("unet.", "lora_unet_"), ("text_encoder.", "lora_te_")];
const DOWN: &str = "lora_down.weight";
const UP: &str = "lora_up.weight";
const ALPHA: &str = "alpha";

/// What is added to one layer.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[rank, inputs]`; of a convolution `[rank, inputs, kernel, kernel]`.
    pub down: Tensor,
    /// `[outputs, rank]`; of a convolution `[outputs, rank, 1, 1]`.
    pub up: Tensor,
    /// The product is multiplied by alpha / rank.
    pub alpha: f64,
}

/// Additions by path of the layer with its network in front, such as
/// `unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q`.
#[derive(Clone, Debug, Default)]
pub struct Lora {
    pub layers: BTreeMap<String, LowRank>,
}

impl LowRank {
    fn rank(&self) -> usize {
        self.down.dims().first().copied().unwrap_or(0)
    }

    /// `weight` and what is added to it, in f32.
    fn added_to(&self, weight: &Tensor) -> candle_core::Result<Tensor> {
        let matrix = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_from(1);
        let scale = self.alpha / self.rank() as f64;
        let added = (matrix(&self.up)?.matmul(&matrix(&self.down)?)? * scale)?;
        weight.to_dtype(DType::F32)? + added.reshape(weight.dims())?
    }

    fn fits(&self, weight: &[usize]) -> bool {
        let (down, up) = (self.down.dims(), self.up.dims());
        let inner = down.len() >= 2 && up.len() >= 2 && up[1] == down[0] && up[2..].iter().all(|side| *side == 1);
        inner && weight.len() >= 2 && up[0] == weight[0] && down[1..].iter().eq(&weight[1..])
    }
}

/// In a file.
fn name_of(layer: &str) -> Option<String> {
    PREFIXES.into_iter().find_map(|(network, prefix)| {
        let path = layer.strip_prefix(network)?;
        Some(format!("{prefix}{}", path.replace('.', "_")))
    })
}

impl Lora {
    /// Adds it to a model's weights, which become f32 where something is added: rounding them again would lose the
    /// smaller part of it.
    ///
    /// # Errors
    /// A layer that the model does not have, or has in another shape. `path` is for errors.
    pub fn merge_into(&self, weights: &mut ModelWeights, path: &Path) -> Result<(), ModelError> {
        for (layer, low_rank) in &self.layers {
            let weight = format!("{layer}.weight");
            let tensor = tensor_mut(weights, &weight).ok_or_else(|| unknown(path, layer))?;
            check(path, layer, low_rank, tensor.dims())?;
            *tensor = low_rank.added_to(tensor).map_err(|source| ModelError::Tensor {
                path: path.into(),
                tensor: weight.clone(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }
}

/// By its path, network in front.
fn tensor_mut<'w>(weights: &'w mut ModelWeights, path: &str) -> Option<&'w mut Tensor> {
    let (network, path) = path.split_once('.')?;
    match network {
        "unet" => weights.unet.get_mut(path),
        "text_encoder" => weights.text_encoder.get_mut(path),
        _ => None,
    }
}

fn unknown(path: &Path, tensor: &str) -> ModelError {
    ModelError::Unknown {
        path: path.into(),
        tensor: tensor.into(),
        others: 0,
    }
}

fn check(path: &Path, layer: &str, low_rank: &LowRank, weight: &[usize]) -> Result<(), ModelError> {
    if low_rank.fits(weight) {
        return Ok(());
    }
    let (rank, mut expected) = (low_rank.rank(), weight.to_vec());
    let is_down = low_rank.down.dims().get(1..) != weight.get(1..);
    let (leaf, got) = match is_down {
        true => (DOWN, low_rank.down.dims()),
        false => (UP, low_rank.up.dims()),
    };
    match is_down {
        true => expected[0] = rank,
        false => {
            expected.truncate(1);
            expected.push(rank);
            expected.resize(weight.len(), 1);
        }
    }
    Err(ModelError::Shape {
        path: path.into(),
        tensor: format!("{}.{leaf}", name_of(layer).unwrap_or_default()),
        got: got.to_vec(),
        expected,
    })
}

/// Reads a LoRA for models of the shape of `base`: for attention alone, as ours, or for any other layers, too.
///
/// # Errors
/// A file that is not a LoRA of this kind, or one for another model; the tensor is named.
pub fn load_lora(path: &Path, base: &ModelWeights) -> Result<Lora, ModelError> {
    let file = TensorFile::open(path)?;
    let weights = weights_by_name(base);
    let mut parts: BTreeMap<&str, BTreeMap<&str, Tensor>> = BTreeMap::new();
    for stored in file.entries().keys() {
        let known = stored.split_once('.').filter(|(name, leaf)| {
            let is_leaf = [DOWN, UP, ALPHA].contains(leaf);
            is_leaf && weights.contains_key(*name)
        });
        let Some((name, leaf)) = known else {
            return Err(unknown(path, stored));
        };
        parts.entry(name).or_default().insert(leaf, file.read(stored)?);
    }
    let mut lora = Lora::default();
    for (name, mut leaves) in parts {
        let mut take = |leaf: &str| {
            leaves.remove(leaf).ok_or_else(|| ModelError::Missing {
                path: path.into(),
                tensor: format!("{name}.{leaf}"),
                others: 0,
            })
        };
        let (down, up) = (take(DOWN)?, take(UP)?);
        // Files without it mean that nothing is scaled.
        let alpha = match take(ALPHA) {
            Ok(alpha) => number(path, name, &alpha)?,
            Err(_) => down.dims().first().map_or(0., |rank| *rank as f64),
        };
        let (layer, shape) = &weights[name];
        let low_rank = LowRank { down, up, alpha };
        check(path, layer, &low_rank, shape)?;
        lora.layers.insert(layer.clone(), low_rank);
    }
    if lora.layers.is_empty() {
        return Err(ModelError::Lacks {
            path: path.into(),
            which: "layers of a LoRA",
            names: format!("names that end in `.{DOWN}`"),
        });
    }
    Ok(lora)
}

fn number(path: &Path, name: &str, alpha: &Tensor) -> Result<f64, ModelError> {
    let read = || alpha.to_dtype(DType::F64)?.flatten_all()?.get(0)?.to_scalar::<f64>();
    read().map_err(|source| ModelError::Tensor {
        path: path.into(),
        tensor: format!("{name}.{ALPHA}"),
        source: Box::new(source),
    })
}

/// Layers of U-Net and text encoder by their name in a LoRA file: path and shape of the weight. `_` for `.` can't be
/// undone without knowing them.
fn weights_by_name(base: &ModelWeights) -> BTreeMap<String, (String, Vec<usize>)> {
    let networks = [
        ("unet", architecture::unet(&base.unet_config)),
        ("text_encoder", architecture::text_encoder(&base.text_encoder_config)),
    ];
    let mut all = BTreeMap::new();
    for (network, parameters) in networks {
        for parameter in parameters {
            let Some(path) = parameter
                .path
                .strip_suffix(".weight")
                .filter(|_| parameter.shape.len() >= 2)
            else {
                continue;
            };
            let layer = format!("{network}.{path}");
            if let Some(name) = name_of(&layer) {
                all.insert(name, (layer, parameter.shape));
            }
        }
    }
    all
}

/// Writes a LoRA of `base`: the same bytes for the same numbers, under its name only once it is whole and reads back.
///
/// # Errors
/// When it can't be written, or doesn't read back.
pub fn save_lora(path: &Path, lora: &Lora, base: &ModelWeights, width: Width) -> Result<(), ModelError> {
    let mut outgoing = Vec::new();
    for (layer, low_rank) in &lora.layers {
        let name = name_of(layer).ok_or_else(|| unknown(path, layer))?;
        for (leaf, tensor) in [(DOWN, &low_rank.down), (UP, &low_rank.up)] {
            outgoing.push(Outgoing {
                name: format!("{name}.{leaf}"),
                dtype: match width {
                    Width::Half => DType::F16,
                    Width::Single => DType::F32,
                    Width::Full => tensor.dtype(),
                },
                shape: tensor.dims().to_vec(),
                tensor: tensor.clone(),
            });
        }
        let name = format!("{name}.{ALPHA}");
        let alpha = Tensor::new(low_rank.alpha as f32, &Device::Cpu).map_err(|source| ModelError::Tensor {
            path: path.into(),
            tensor: name.clone(),
            source: Box::new(source),
        })?;
        outgoing.push(Outgoing {
            name,
            dtype: DType::F32,
            shape: Vec::new(),
            tensor: alpha,
        });
    }
    let metadata = metadata(lora, &base.configs());
    atomic::write(
        path,
        |out| safetensors_out::write(path, out, &outgoing, &metadata),
        |scratch| {
            read_back(path, scratch, &outgoing)?;
            load_lora(scratch, base).map(drop)
        },
    )
}

/// What WebUIs tell the base model's version by, and show.
fn metadata(lora: &Lora, base: &Configs) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::from([("ss_network_module", "networks.lora".to_string())]);
    if let Some(low_rank) = lora.layers.values().next() {
        metadata.insert("ss_network_dim", low_rank.rank().to_string());
        metadata.insert("ss_network_alpha", low_rank.alpha.to_string());
    }
    if base.is_standard() {
        let is_v2 = open_clip::is_open_clip(&base.text_encoder);
        let version = match (is_v2, base.scheduler.prediction_type) {
            (false, PredictionType::Epsilon) => "sd_v1",
            (false, PredictionType::VPrediction) => "sd_v1_v",
            (true, PredictionType::Epsilon) => "sd_v2",
            (true, PredictionType::VPrediction) => "sd_v2_v",
        };
        metadata.insert("ss_base_model_version", version.to_string());
        metadata.insert("ss_v2", if is_v2 { "True" } else { "False" }.to_string());
    }
    metadata
        .into_iter()
        .map(|(key, value)| (key.to_string(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kohya() {
        let named = |layer: &str| name_of(layer).unwrap();
        assert_eq!(
            named("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0"),
            "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0"
        );
        assert_eq!(
            named("text_encoder.text_model.encoder.layers.11.self_attn.q_proj"),
            "lora_te_text_model_encoder_layers_11_self_attn_q_proj"
        );
        assert_eq!(name_of("vae.decoder.conv_in"), None);
    }

    #[test]
    fn a_lora_says_which_stable_diffusion_it_is_for() {
        let said = |configs: &Configs| {
            let mut metadata = metadata(&Lora::default(), configs);
            ["ss_base_model_version", "ss_v2"].map(|key| metadata.remove(key).unwrap_or_default())
        };
        assert_eq!(said(&Configs::sd1()), ["sd_v1", "False"]);
        assert_eq!(said(&Configs::sd2(PredictionType::Epsilon)), ["sd_v2", "True"]);
        assert_eq!(said(&Configs::sd2(PredictionType::VPrediction)), ["sd_v2_v", "True"]);
        // Of a model that WebUIs do not know they should not be told that they do.
        let mut other = Configs::sd1();
        other.unet.block_out_channels[0] = 32;
        assert_eq!(said(&other), ["", ""]);
    }

    #[test]
    fn a_convolution_is_added_to_as_a_matrix_of_its_patches() {
        let tensor = |dims: &[usize], from: f32| {
            let len: usize = dims.iter().product();
            let values: Vec<f32> = (0..len).map(|i| from + i as f32).collect();
            Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
        };
        let low_rank = LowRank {
            down: tensor(&[1, 2, 3, 3], 1.),
            up: tensor(&[2, 1, 1, 1], 1.),
            alpha: 0.5,
        };
        let weight = tensor(&[2, 2, 3, 3], 0.);
        assert!(low_rank.fits(weight.dims()) && !low_rank.fits(&[2, 2]));
        let added = low_rank
            .added_to(&weight)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        // Of output 1, input 0, place 4: 22 + 0.5 * 2 * 5.
        assert_eq!(added[22], 27.);
    }
}
