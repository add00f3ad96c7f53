//! The starter model's shape, and how its files are made small enough to ship.
//!
//! Structure of SD 1.5 at small widths, with the true CLIP tokenizer. Most of the 49,408 tokens occur in no caption, so
//! their rows of the embedding are still the first random ones: only the rows that training moved are stored, and
//! the others are drawn again from the seed when the model is loaded.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::PretrainError;
use crate::engine::nets::error::NetworkError;
use crate::models::config::{HeadCount, SchedulerConfig, TextEncoderConfig, UNetConfig, VaeConfig};
use crate::models::params::{ParamError, Weights};
use crate::models::{ModelConfig, random_weights};

/// Side of its pictures.
pub const SIDE_PX: u32 = 128;
/// Seed of the first weights; the rows that are not stored come from it.
pub const WEIGHTS_SEED: u64 = 1;

const EMBEDDING: &str = "text_model.embeddings.token_embedding.weight";
const STORED_ROWS: &str = "text_model.embeddings.token_embedding.rows";
const STORED_VALUES: &str = "text_model.embeddings.token_embedding.values";

pub fn unet_config() -> UNetConfig {
    let cross = |name: &str, plain: &str, plain_at: usize| -> Vec<String> {
        (0..4)
            .map(|i| if i == plain_at { plain.into() } else { name.into() })
            .collect()
    };
    UNetConfig {
        sample_size: SIDE_PX as usize / 8,
        in_channels: 4,
        out_channels: 4,
        block_out_channels: vec![64, 96, 128, 128],
        down_block_types: cross("CrossAttnDownBlock2D", "DownBlock2D", 3),
        up_block_types: cross("CrossAttnUpBlock2D", "UpBlock2D", 0),
        layers_per_block: 1,
        cross_attention_dim: text_encoder_config().hidden_size,
        attention_head_dim: HeadCount::All(4),
        norm_num_groups: 16,
        norm_eps: 1e-5,
        use_linear_projection: false,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
    }
}

pub fn vae_config() -> VaeConfig {
    VaeConfig {
        in_channels: 3,
        out_channels: 3,
        latent_channels: 4,
        block_out_channels: vec![32, 64, 96, 96],
        layers_per_block: 1,
        norm_num_groups: 16,
        // Measured when the autoencoder is done.
        scaling_factor: 1.0,
        sample_size: Some(SIDE_PX as usize),
    }
}

pub fn text_encoder_config() -> TextEncoderConfig {
    TextEncoderConfig {
        vocab_size: 49408,
        hidden_size: 128,
        intermediate_size: 512,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        max_position_embeddings: 77,
        hidden_act: "quick_gelu".into(),
        layer_norm_eps: 1e-5,
    }
}

/// Writes the diffusers folder. `first_text` are the text encoder's first weights, to tell which rows moved.
pub(super) fn write(
    folder: &Path,
    vae: &Weights,
    unet: &Weights,
    mut text: Weights,
    scaling_factor: f64,
    first_text: &Weights,
) -> Result<(), PretrainError> {
    let vae_config = VaeConfig {
        scaling_factor,
        ..vae_config()
    };
    pack_token_rows(&mut text, first_text)?;
    let weights_name = "diffusion_pytorch_model.safetensors";
    save(
        &folder.join("unet"),
        weights_name,
        unet,
        &json!(unet_config()),
        "UNet2DConditionModel",
    )?;
    save(
        &folder.join("vae"),
        weights_name,
        vae,
        &json!(vae_config),
        "AutoencoderKL",
    )?;
    let text_config = json!(text_encoder_config());
    save(
        &folder.join("text_encoder"),
        "model.safetensors",
        &text,
        &text_config,
        "CLIPTextModel",
    )?;
    let scheduler = json!(SchedulerConfig::default());
    write_config(
        &folder.join("scheduler/scheduler_config.json"),
        &scheduler,
        "DDIMScheduler",
    )?;
    let index = json!({
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    write_config(&folder.join("model_index.json"), &index, "StableDiffusionPipeline")
}

fn save(folder: &Path, name: &str, weights: &Weights, config: &Value, class: &str) -> Result<(), PretrainError> {
    write_config(&folder.join("config.json"), config, class)?;
    let half = weights.iter().map(|(name, tensor)| {
        let tensor = if tensor.dtype() == DType::F32 {
            tensor.to_dtype(DType::F16)?
        } else {
            tensor.clone()
        };
        Ok((name.clone(), tensor))
    });
    let half: HashMap<String, Tensor> = half.collect::<candle_core::Result<_>>()?;
    Ok(candle_core::safetensors::save(&half, folder.join(name))?)
}

fn write_config(path: &Path, config: &Value, class: &str) -> Result<(), PretrainError> {
    let failed = |source| PretrainError::Write {
        path: path.into(),
        source,
    };
    let mut config = config.clone();
    config["_class_name"] = class.into();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, format!("{config:#}\n")).map_err(failed)
}

/// Replaces the embedding by the rows that differ from their first values.
fn pack_token_rows(text: &mut Weights, first: &Weights) -> candle_core::Result<()> {
    let (Some(now), Some(then)) = (text.remove(EMBEDDING), first.get(EMBEDDING)) else {
        return Ok(());
    };
    let (now_rows, then_rows) = (now.to_vec2::<f32>()?, then.to_vec2::<f32>()?);
    let moved = |(row, then): (&Vec<f32>, &Vec<f32>)| row.iter().zip(then).any(|(a, b)| (a - b).abs() > 1e-6);
    let rows: Vec<u32> = (0u32..)
        .zip(now_rows.iter().zip(&then_rows))
        .filter(|(_, pair)| moved(*pair))
        .map(|(row, _)| row)
        .collect();
    let rows = Tensor::new(rows, &Device::Cpu)?;
    text.insert(STORED_VALUES.into(), now.index_select(&rows, 0)?);
    text.insert(STORED_ROWS.into(), rows);
    Ok(())
}

/// Puts the whole embedding back, f16 like the stored rows. Weights without stored rows stay as they are.
///
/// # Errors
/// When the stored rows do not fit the embedding.
pub fn unpack_token_rows(text: &mut Weights, config: &TextEncoderConfig) -> Result<(), NetworkError> {
    let (Some(rows), Some(values)) = (text.remove(STORED_ROWS), text.remove(STORED_VALUES)) else {
        return Ok(());
    };
    let first = random_weights(ModelConfig::TextEncoder(config), WEIGHTS_SEED)?;
    let failed = |source| ParamError::Tensor {
        path: EMBEDDING.into(),
        source,
    };
    let whole = || -> candle_core::Result<Tensor> {
        let mut whole = first[EMBEDDING]
            .to_dtype(DType::F16)?
            .flatten_all()?
            .to_vec1::<half::f16>()?;
        let width = config.hidden_size;
        for (row, values) in rows.to_vec1::<u32>()?.into_iter().zip(values.to_vec2::<half::f16>()?) {
            let at = row as usize * width;
            let outside = || candle_core::Error::Msg(format!("stored row {row} lies outside the embedding"));
            whole
                .get_mut(at..at + width)
                .ok_or_else(outside)?
                .copy_from_slice(&values);
        }
        Tensor::from_vec(whole, (config.vocab_size, width), &Device::Cpu)
    };
    text.insert(EMBEDDING.into(), whole().map_err(failed)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_training_never_saw_come_back_from_the_seed() {
        let config = TextEncoderConfig {
            vocab_size: 50,
            hidden_size: 8,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            ..text_encoder_config()
        };
        let first = random_weights(ModelConfig::TextEncoder(&config), WEIGHTS_SEED).unwrap();
        let mut values = first[EMBEDDING].to_vec2::<f32>().unwrap();
        values[7] = vec![0.5; 8];
        let trained = Tensor::new(values, &Device::Cpu).unwrap();
        let mut packed = Weights::from([(EMBEDDING.into(), trained.clone())]);
        pack_token_rows(&mut packed, &first).unwrap();
        assert_eq!(packed[STORED_ROWS].to_vec1::<u32>().unwrap(), [7]);
        packed.insert(
            STORED_VALUES.into(),
            packed[STORED_VALUES].to_dtype(DType::F16).unwrap(),
        );
        unpack_token_rows(&mut packed, &config).unwrap();
        let half = trained.to_dtype(DType::F16).unwrap();
        assert_eq!(
            packed[EMBEDDING].to_vec2::<half::f16>().unwrap(),
            half.to_vec2::<half::f16>().unwrap()
        );
    }
}
