//! The models of a run: what learns, and the same weights as seen by drawing, without a copy and without gradients.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use super::error::TrainError;
use crate::formats::ModelWeights;
use crate::models::params::Params;
use crate::models::text_encoder::ClipTextModel;
use crate::models::unet::UNet2DConditionModel;
use crate::models::vae::AutoencoderKl;
use crate::pipeline::Pipeline;
use crate::tokenizer::Tokenizer;

const UNET: &str = "unet.";
/// Before the names of its tensors in a training state.
pub const TEXT_ENCODER: &str = "text_encoder.";

/// Models in f32 on one device.
pub struct Learner {
    /// With gradients.
    pub unet: UNet2DConditionModel,
    /// With gradients when it is trained.
    pub text_encoder: ClipTextModel,
    pub trains_text_encoder: bool,
    /// Encodes the photos.
    pub vae: AutoencoderKl,
    /// Draws, when it is not the one that encodes.
    drawing_vae: Option<AutoencoderKl>,
    /// Views of `unet`'s and `text_encoder`'s weights: they change with them.
    drawing_unet: UNet2DConditionModel,
    drawing_text_encoder: ClipTextModel,
    pub tokenizer: Tokenizer,
    /// Configurations, and the weights that are not trained, as they were stored.
    base: ModelWeights,
    device: Device,
}

/// A VAE that takes the place of the base model's own in what is drawn and exported.
pub struct OtherVae {
    pub weights: ModelWeights,
    /// Photos are encoded with it too. The tutorial's script encodes with the base model's own.
    pub encodes: bool,
}

impl Learner {
    /// Builds the models, `other_vae` in place of the base model's, and hands out the variables that training changes, by name.
    ///
    /// # Errors
    /// When weights are missing or do not fit their configuration.
    pub fn new(
        mut base: ModelWeights,
        other_vae: Option<OtherVae>,
        trains_text_encoder: bool,
        device: &Device,
    ) -> Result<(Self, BTreeMap<String, Var>), TrainError> {
        let tokenizer = base.tokenizer(Path::new("tokenizer"))?;
        let mut vars = BTreeMap::new();

        let params = Params::trainable(&base.unet, DType::F32, device)?;
        let unet = UNet2DConditionModel::new(&base.unet_config, &params)?;
        params.finish()?;
        let views = Params::frozen(&detached(&params), DType::F32, device)?;
        let drawing_unet = UNet2DConditionModel::new(&base.unet_config, &views)?;
        vars.extend(prefixed(UNET, &params));
        // From here on the variables hold it.
        base.unet.clear();

        let params = if trains_text_encoder {
            Params::trainable(&base.text_encoder, DType::F32, device)?
        } else {
            Params::frozen(&base.text_encoder, DType::F32, device)?
        };
        let text_encoder = ClipTextModel::new(&base.text_encoder_config, &params)?;
        params.finish()?;
        let drawing_text_encoder = if trains_text_encoder {
            let views = Params::frozen(&detached(&params), DType::F32, device)?;
            ClipTextModel::new(&base.text_encoder_config, &views)?
        } else {
            ClipTextModel::new(&base.text_encoder_config, &params)?
        };
        for (name, var) in prefixed(TEXT_ENCODER, &params) {
            base.text_encoder.remove(&name[TEXT_ENCODER.len()..]);
            vars.insert(name, var);
        }

        let mut vae = build_vae(&base, device)?;
        let mut drawing_vae = None;
        if let Some(OtherVae { weights, encodes }) = other_vae {
            let other = build_vae(&weights, device)?;
            match encodes {
                true => vae = other,
                false => drawing_vae = Some(other),
            }
            base.vae = weights.vae;
            base.vae_config = weights.vae_config;
        }
        let learner = Self {
            unet,
            text_encoder,
            trains_text_encoder,
            vae,
            drawing_vae,
            drawing_unet,
            drawing_text_encoder,
            tokenizer,
            base,
            device: device.clone(),
        };
        Ok((learner, vars))
    }

    /// Nothing learns: for drawing with a finished model.
    ///
    /// # Errors
    /// As `new`.
    pub fn for_drawing(base: ModelWeights, device: &Device) -> Result<Self, TrainError> {
        let unet_params = Params::frozen(&base.unet, DType::F32, device)?;
        let text_params = Params::frozen(&base.text_encoder, DType::F32, device)?;
        let unet = || UNet2DConditionModel::new(&base.unet_config, &unet_params);
        let text_encoder = || ClipTextModel::new(&base.text_encoder_config, &text_params);
        let learner = Self {
            unet: unet()?,
            text_encoder: text_encoder()?,
            trains_text_encoder: false,
            vae: build_vae(&base, device)?,
            drawing_vae: None,
            drawing_unet: unet()?,
            drawing_text_encoder: text_encoder()?,
            tokenizer: base.tokenizer(Path::new("tokenizer"))?,
            device: device.clone(),
            base,
        };
        unet_params.finish()?;
        text_params.finish()?;
        Ok(learner)
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn base(&self) -> &ModelWeights {
        &self.base
    }

    /// Draws with the weights as they are now.
    pub fn pipeline(&self) -> Pipeline<'_> {
        Pipeline {
            unet: &self.drawing_unet,
            text_encoder: &self.drawing_text_encoder,
            vae: self.drawing_vae.as_ref().unwrap_or(&self.vae),
            vae_scaling_factor: self.base.vae_config.scaling_factor,
            latent_channels: self.base.vae_config.latent_channels,
            tokenizer: &self.tokenizer,
            scheduler: &self.base.scheduler_config,
            device: &self.device,
        }
    }

    /// The whole model as it is now, for export. Trained tensors are not copied.
    pub fn weights(&self, vars: &BTreeMap<String, Var>) -> ModelWeights {
        let mut weights = self.base.clone();
        for (name, var) in vars {
            let tensor = var.as_detached_tensor();
            if let Some(path) = name.strip_prefix(UNET) {
                weights.unet.insert(path.into(), tensor);
            } else if let Some(path) = name.strip_prefix(TEXT_ENCODER) {
                weights.text_encoder.insert(path.into(), tensor);
            }
        }
        weights
    }
}

fn build_vae(weights: &ModelWeights, device: &Device) -> Result<AutoencoderKl, TrainError> {
    let params = Params::frozen(&weights.vae, DType::F32, device)?;
    let vae = AutoencoderKl::new(&weights.vae_config, &params)?;
    params.finish()?;
    Ok(vae)
}

/// The variables' own storage, without their gradients.
fn detached(params: &Params) -> BTreeMap<String, Tensor> {
    let vars = params.vars().into_iter();
    vars.map(|(path, var)| (path, var.as_detached_tensor())).collect()
}

fn prefixed(prefix: &str, params: &Params) -> impl Iterator<Item = (String, Var)> {
    let vars = params.vars().into_iter();
    vars.map(move |(path, var)| (format!("{prefix}{path}"), var))
}
