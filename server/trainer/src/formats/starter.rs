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

/// U-Net, VAE and text encoder.
const FILES: [&str; 3] = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
];

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
    let [unet, vae, text] = FILES.map(within);
    let bytes = [unpack(&unet, UNET)?, unpack(&vae, VAE)?, unpack(&text, TEXT_ENCODER)?];
    assemble(Path::new(app::recipe::STARTER), config_files()?, bytes)
}

/// A starter that is not shipped yet: a folder as `pretrain diffusion` writes it.
///
/// # Errors
/// When a file is missing or is not what it should be.
pub fn load_packed(folder: &Path) -> Result<ModelWeights, ModelError> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|source| ModelError::Read { path, source })
    };
    let [unet, vae, text] = FILES;
    let bytes = [read(unet)?, read(vae)?, read(text)?];
    assemble(folder, diffusers::config_files(folder)?, bytes)
}

/// Of the files' bytes, in the order of [`FILES`].
fn assemble(folder: &Path, configs: ConfigFiles, [unet, vae, text]: [Vec<u8>; 3]) -> Result<ModelWeights, ModelError> {
    let [unet_path, vae_path, text_path] = FILES.map(|name| folder.join(name));
    let text = whole_text_encoder(&text_path, &text, &configs.text_encoder)?;
    let files = [
        TensorFile::embedded(unet_path, unet)?,
        TensorFile::embedded(vae_path, vae)?,
        TensorFile::embedded(text_path, text)?,
    ];
    // Its vocabulary is CLIP's, which the executable has anyway.
    diffusers::find(folder, configs, TokenizerFiles::clip(), files)?.read()
}

/// The text encoder's file with the token rows that are not stored put back.
fn whole_text_encoder(path: &Path, bytes: &[u8], config: &Value) -> Result<Vec<u8>, ModelError> {
    let wrong = |source| ModelError::Tensor {
        path: path.into(),
        tensor: "token_embedding".into(),
        source,
    };
    let config = serde_json::from_value(config.clone()).map_err(|source| ModelError::Json {
        path: path.with_file_name("config.json"),
        source,
    })?;
    let stored = candle_core::safetensors::load_buffer(bytes, &candle_core::Device::Cpu);
    let mut tensors = stored.map_err(|e| wrong(Box::new(e)))?.into_iter().collect();
    unpack_token_rows(&mut tensors, &config).map_err(|e| wrong(Box::new(candle_core::Error::wrap(e))))?;
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
