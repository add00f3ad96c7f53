//! Models on disk: diffusers folders, original single files and LoRA files, read and written.
//!
//! Reading never executes anything and checks every tensor's name and shape against the configuration; writing gives
//! the same bytes for the same model, and a file has its name only once it is whole and reads back.

pub mod architecture;
mod atomic;
mod configs;
mod diffusers;
mod error;
mod found;
mod lora;
mod open_clip;
mod pickle;
mod safetensors_out;
mod single_file;
mod starter;
mod tensor_file;
mod torch_file;
mod torch_out;
mod weight_names;
mod weights;

use std::path::Path;

use crate::models::config::VaeConfig;

pub use configs::{ConfigFiles, Configs, is_standard_vae};
pub use diffusers::{load_tokenizer, save_diffusers};
pub use error::ModelError;
use found::Found;
pub use lora::{Lora, LowRank, load_lora, save_lora};
pub use single_file::{Container, Width, save_single_file};
pub use starter::load_packed;
pub use tensor_file::{Entry, TensorFile};
pub use weight_names::weight_names;
pub use weights::{ModelWeights, Tensors, Vae};

/// A model on this disk: `starter`, a diffusers folder, or a `.safetensors` or `.ckpt` single file. See
/// `base_model::load` for models of the Hub.
///
/// # Errors
/// A reference that leads to no model, or to one that is broken, incomplete or of a kind that we don't train. The
/// message names the file and the tensor.
pub fn load(reference: &str) -> Result<ModelWeights, ModelError> {
    if reference == app::recipe::STARTER {
        return starter::load();
    }
    open(Path::new(reference))?.read()
}

/// A VAE on this disk: a folder with its configuration at the root, or a whole model, of which its VAE is taken.
///
/// # Errors
/// As `load`.
pub fn load_vae(reference: &str) -> Result<Vae, ModelError> {
    let path = Path::new(reference);
    if path.is_dir() {
        return diffusers::load_vae(path);
    }
    let whole = load(reference)?;
    Ok(Vae {
        tensors: whole.vae,
        config: whole.vae_config,
        config_file: whole.config_files.vae,
    })
}

/// What a model is, without its weights.
#[derive(Clone, Debug)]
pub struct Outline {
    pub configs: Configs,
    /// See `ModelWeights`.
    pub guess: Option<String>,
}

/// What a model on this disk is, after every check of `load` that needs no tensor's values: gigabytes stay unread.
///
/// # Errors
/// As `load`.
pub fn outline(reference: &str) -> Result<Outline, ModelError> {
    let path = Path::new(reference);
    if reference == app::recipe::STARTER {
        let configs = starter::config_files()?.parse(path)?;
        return Ok(Outline { configs, guess: None });
    }
    let found = open(path)?;
    Ok(Outline {
        configs: found.configs,
        guess: found.guess,
    })
}

fn open(path: &Path) -> Result<Found, ModelError> {
    if path.is_dir() {
        diffusers::open(path)
    } else if path.is_file() {
        single_file::open(path)
    } else {
        Err(ModelError::NotFound(path.into()))
    }
}

/// The configuration of a folder's VAE, whose weights may not be there yet.
///
/// # Errors
/// A file that is missing or not understood.
pub fn load_vae_config(folder: &Path) -> Result<VaeConfig, ModelError> {
    Ok(diffusers::vae_config(&diffusers::vae_folder(folder))?.1)
}

/// The configurations of a diffusers folder, whose weights may not be there yet.
///
/// # Errors
/// A file that is missing or not understood, and models that we don't train.
pub fn load_configs(folder: &Path) -> Result<Configs, ModelError> {
    diffusers::config_files(folder)?.parse(folder)
}

#[cfg(test)]
mod tests;
