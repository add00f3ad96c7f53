//! The model that ships with Likeness, embedded in the executable.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::configs::ConfigFiles;
use super::diffusers;
use super::error::ModelError;
use super::tensor_file::TensorFile;
use super::weights::ModelWeights;
use crate::pretrain::starter::unpack_token_rows;
use crate::tokenizer::TokenizerFiles;

macro_rules! embedded {
    ($path:literal) => {
        include_bytes!(concat!("../../starter/", $path))
    };
}

// Compressed, so that the repository and the executable stay small.
const UNET: &[u8] = embedded!("unet/diffusion_pytorch_model.safetensors.gz");
const VAE: &[u8] = embedded!("vae/diffusion_pytorch_model.safetensors.gz");
const TEXT_ENCODER: &[u8] = embedded!("text_encoder/model.safetensors.gz");

/// Its configuration files.
pub(super) fn config_files() -> Result<ConfigFiles, ModelError> {
    let json = |name: &str, bytes: &[u8]| -> Result<Value, ModelError> {
        serde_json::from_slice(bytes).map_err(|source| ModelError::Json {
            path: within(name),
            source,
        })
    };
    Ok(ConfigFiles {
        unet: json("unet/config.json", embedded!("unet/config.json"))?,
        vae: json("vae/config.json", embedded!("vae/config.json"))?,
        text_encoder: json("text_encoder/config.json", embedded!("text_encoder/config.json"))?,
        scheduler: json(
            "scheduler/scheduler_config.json",
            embedded!("scheduler/scheduler_config.json"),
        )?,
    })
}

/// The starter.
pub(super) fn load() -> Result<ModelWeights, ModelError> {
    let configs = config_files()?;
    let text_name = within("text_encoder/model.safetensors");
    let text = whole_text_encoder(&text_name, &configs.text_encoder)?;
    let file = |name: &str, packed: &[u8]| {
        let path = within(name);
        let bytes = unpack(&path, packed)?;
        TensorFile::embedded(path, bytes)
    };
    let files = [
        file("unet/diffusion_pytorch_model.safetensors", UNET)?,
        file("vae/diffusion_pytorch_model.safetensors", VAE)?,
        TensorFile::embedded(text_name, text)?,
    ];
    // Its vocabulary is CLIP's, which the executable has anyway.
    diffusers::assemble(Path::new(app::recipe::STARTER), configs, TokenizerFiles::clip(), &files)
}

/// The text encoder's file with the token rows that are not stored put back.
fn whole_text_encoder(path: &Path, config: &Value) -> Result<Vec<u8>, ModelError> {
    let wrong = |source| ModelError::Tensor {
        path: path.into(),
        tensor: "token_embedding".into(),
        source,
    };
    let config = serde_json::from_value(config.clone()).map_err(|source| ModelError::Json {
        path: within("text_encoder/config.json"),
        source,
    })?;
    let stored = candle_core::safetensors::load_buffer(&unpack(path, TEXT_ENCODER)?, &candle_core::Device::Cpu);
    let mut tensors = stored.map_err(wrong)?.into_iter().collect();
    unpack_token_rows(&mut tensors, &config).map_err(|e| wrong(candle_core::Error::wrap(e)))?;
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::serialize(views, None).map_err(|source| ModelError::Safetensors {
        path: path.into(),
        source,
    })
}

fn unpack(path: &Path, packed: &[u8]) -> Result<Vec<u8>, ModelError> {
    let mut bytes = Vec::new();
    let read = flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes);
    read.map_err(|source| ModelError::Read {
        path: path.into(),
        source,
    })?;
    Ok(bytes)
}

fn within(name: &str) -> PathBuf {
    Path::new(app::recipe::STARTER).join(name)
}
