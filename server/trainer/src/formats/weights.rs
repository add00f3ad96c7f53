//! A model in memory: all tensors of its three networks, checked against its configuration.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::architecture::{self, Parameter};
use super::configs::{ConfigFiles, Configs};
use super::error::ModelError;
use crate::models::config::{SchedulerConfig, TextEncoderConfig, UNetConfig, VaeConfig};
use crate::tokenizer::{Tokenizer, TokenizerFiles};

/// Tensors by their path in diffusers.
pub type Tensors = BTreeMap<String, Tensor>;

/// A whole model. Tensors are named and shaped as in diffusers, and of the type they were stored in.
#[derive(Clone, Debug)]
pub struct ModelWeights {
    pub unet: Tensors,
    pub text_encoder: Tensors,
    pub vae: Tensors,
    pub unet_config: UNetConfig,
    pub text_encoder_config: TextEncoderConfig,
    pub vae_config: VaeConfig,
    pub scheduler_config: SchedulerConfig,
    pub tokenizer_files: TokenizerFiles,
    /// The configurations as they were read; these are what is written.
    pub config_files: ConfigFiles,
    /// Tensors and other things in the files that the networks have no use for, such as a training run's averages.
    pub ignored: usize,
    /// What the files do not say and was guessed, in words.
    pub guess: Option<String>,
}

/// A VAE alone, to be put in the place of a model's own.
#[derive(Clone, Debug)]
pub struct Vae {
    pub tensors: Tensors,
    pub config: VaeConfig,
    /// As it was read.
    pub config_file: serde_json::Value,
}

impl ModelWeights {
    /// This model with another VAE.
    ///
    /// # Errors
    /// A VAE whose latents have other channels than the U-Net takes.
    pub fn with_vae(&self, path: &Path, vae: Vae) -> Result<Self, ModelError> {
        if vae.config.latent_channels != self.unet_config.in_channels {
            let (has, takes) = (vae.config.latent_channels, self.unet_config.in_channels);
            return Err(ModelError::Unsupported {
                path: path.into(),
                what: format!("its latents have {has} channels and the U-Net takes {takes}"),
            });
        }
        let mut config_files = self.config_files.clone();
        config_files.vae = vae.config_file;
        let networks = [self.unet.clone(), vae.tensors, self.text_encoder.clone()];
        Self::new(path, config_files, self.tokenizer_files.clone(), networks)
    }

    /// Puts a model together. `path` is for errors.
    ///
    /// # Errors
    /// Tensors that are missing, unknown or of another shape than the configuration asks for.
    pub fn new(
        path: &Path,
        config_files: ConfigFiles,
        tokenizer_files: TokenizerFiles,
        [unet, vae, text_encoder]: [Tensors; 3],
    ) -> Result<Self, ModelError> {
        let configs = config_files.parse(path)?;
        let weights = Self {
            unet,
            text_encoder,
            vae,
            unet_config: configs.unet,
            text_encoder_config: configs.text_encoder,
            vae_config: configs.vae,
            scheduler_config: configs.scheduler,
            tokenizer_files,
            config_files,
            ignored: 0,
            guess: None,
        };
        weights.check(path)?;
        Ok(weights)
    }

    pub fn configs(&self) -> Configs {
        Configs {
            unet: self.unet_config.clone(),
            vae: self.vae_config.clone(),
            text_encoder: self.text_encoder_config.clone(),
            scheduler: self.scheduler_config.clone(),
        }
    }

    /// Whether Stable Diffusion WebUIs can load an export of this model.
    pub fn loads_in_webuis(&self) -> bool {
        self.configs().is_standard()
    }

    /// Parameters of U-Net and text encoder.
    pub fn trainable_parameters(&self) -> usize {
        let all = self.unet.values().chain(self.text_encoder.values());
        all.map(Tensor::elem_count).sum()
    }

    /// The tensors with their names, network by network, in the order of their paths; but the VAE's attention comes
    /// last, where the tutorial's converter leaves it when it renames it.
    pub(super) fn parameters(&self) -> Vec<(Parameter, &Tensors)> {
        let networks = [
            (architecture::unet(&self.unet_config), &self.unet),
            (architecture::vae(&self.vae_config), &self.vae),
            (
                architecture::text_encoder(&self.text_encoder_config),
                &self.text_encoder,
            ),
        ];
        let mut all = Vec::new();
        for (mut parameters, tensors) in networks {
            let is_renamed = |parameter: &Parameter| parameter.path.contains(".mid_block.attentions.0.to_");
            let is_vae = std::ptr::eq(tensors, &self.vae);
            parameters.sort_by_cached_key(|p| (is_vae && is_renamed(p), p.path.clone()));
            all.extend(parameters.into_iter().map(|parameter| (parameter, tensors)));
        }
        all
    }

    /// Every tensor that the configuration asks for, of its shape, and no other.
    ///
    /// # Errors
    /// The first that is not so.
    pub fn check(&self, path: &Path) -> Result<(), ModelError> {
        let parameters = self.parameters();
        for (parameter, tensors) in &parameters {
            let tensor = tensors.get(&parameter.path).ok_or_else(|| ModelError::Missing {
                path: path.into(),
                tensor: parameter.path.clone(),
                others: 0,
            })?;
            if tensor.dims() != parameter.shape {
                return Err(ModelError::Shape {
                    path: path.into(),
                    tensor: parameter.path.clone(),
                    got: tensor.dims().to_vec(),
                    expected: parameter.shape.clone(),
                });
            }
        }
        let networks = [&self.unet, &self.vae, &self.text_encoder];
        let count: usize = networks.iter().map(|tensors| tensors.len()).sum();
        if count > parameters.len() {
            let known: std::collections::BTreeSet<&str> = parameters.iter().map(|(p, _)| p.path.as_str()).collect();
            let mut unknown = networks
                .iter()
                .flat_map(|t| t.keys())
                .filter(|k| !known.contains(k.as_str()));
            return Err(ModelError::Unknown {
                path: path.into(),
                tensor: unknown.next().cloned().unwrap_or_default(),
                others: unknown.count(),
            });
        }
        Ok(())
    }

    /// The tokenizer of these files, with ids that the text encoder has rows for.
    ///
    /// # Errors
    /// Files that are no tokenizer, or one with more tokens than the text encoder knows.
    pub fn tokenizer(&self, path: &Path) -> Result<Tokenizer, ModelError> {
        tokenizer(path, &self.tokenizer_files, &self.text_encoder_config)
    }
}

/// The tokenizer of these files, with ids that the text encoder has rows for.
pub(super) fn tokenizer(
    path: &Path,
    files: &TokenizerFiles,
    config: &TextEncoderConfig,
) -> Result<Tokenizer, ModelError> {
    let tokenizer = Tokenizer::from_files(files).map_err(|source| ModelError::Tokenizer {
        path: path.into(),
        source,
    })?;
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > rows {
        let path = path.into();
        return Err(ModelError::Vocabulary { path, tokens, rows });
    }
    Ok(tokenizer)
}
