//! The model that ships with Likeness, embedded in the executable.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::configs::ConfigFiles;
use super::diffusers;
use super::error::ModelError;
use super::tensor_file::TensorFile;
use super::weights::ModelWeights;
use crate::tokenizer::TokenizerFiles;

macro_rules! embedded {
    ($path:literal) => {
        include_bytes!(concat!("../../starter/", $path))
    };
}

const UNET: &[u8] = embedded!("unet/diffusion_pytorch_model.safetensors");
const VAE: &[u8] = embedded!("vae/diffusion_pytorch_model.safetensors");
const TEXT_ENCODER: &[u8] = embedded!("text_encoder/model.safetensors");

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
    let file = |name: &str, bytes: &'static [u8]| TensorFile::embedded(within(name), bytes);
    let files = [
        file("unet/diffusion_pytorch_model.safetensors", UNET)?,
        file("vae/diffusion_pytorch_model.safetensors", VAE)?,
        file("text_encoder/model.safetensors", TEXT_ENCODER)?,
    ];
    // Its vocabulary is CLIP's, which the executable has anyway.
    diffusers::assemble(
        Path::new(app::recipe::STARTER),
        config_files()?,
        TokenizerFiles::clip(),
        &files,
    )
}

fn within(name: &str) -> PathBuf {
    Path::new(app::recipe::STARTER).join(name)
}
