//! The configuration files of a model: as they were read, and as what we know of them.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::ModelError;
use crate::models::config::{HeadCount, PredictionType, SchedulerConfig, TextEncoderConfig, UNetConfig, VaeConfig};

/// The JSON of a diffusers folder's configurations. Fields that we don't know are kept for whoever reads them next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigFiles {
    pub unet: Value,
    pub vae: Value,
    pub text_encoder: Value,
    pub scheduler: Value,
}

/// What we know of `ConfigFiles`.
#[derive(Clone, Debug, PartialEq)]
pub struct Configs {
    pub unet: UNetConfig,
    pub vae: VaeConfig,
    pub text_encoder: TextEncoderConfig,
    pub scheduler: SchedulerConfig,
}

/// Fields that change the network, with the values that mean no change.
const UNET_EXTRAS: [(&str, &[&str]); 10] = [
    ("act_fn", &["silu", "swish"]),
    ("addition_embed_type", &[]),
    ("class_embed_type", &[]),
    ("dual_cross_attention", &[]),
    ("encoder_hid_dim", &[]),
    ("mid_block_type", &["UNetMidBlock2DCrossAttn"]),
    ("num_class_embeds", &[]),
    ("only_cross_attention", &[]),
    ("resnet_time_scale_shift", &["default"]),
    ("time_cond_proj_dim", &[]),
];

impl ConfigFiles {
    /// Reads them for the models. `folder` is for errors.
    ///
    /// # Errors
    /// Fields that are missing or of the wrong kind, and models other than Stable Diffusion 1.x and 2.x.
    pub fn parse(&self, folder: &Path) -> Result<Configs, ModelError> {
        fn typed<T: DeserializeOwned>(value: &Value, folder: &Path, file: &str) -> Result<T, ModelError> {
            serde_json::from_value(value.clone()).map_err(|source| ModelError::Json {
                path: folder.join(file),
                source,
            })
        }
        let configs = Configs {
            unet: typed(&self.unet, folder, "unet/config.json")?,
            vae: typed(&self.vae, folder, "vae/config.json")?,
            text_encoder: typed(&self.text_encoder, folder, "text_encoder/config.json")?,
            scheduler: typed(&self.scheduler, folder, "scheduler/scheduler_config.json")?,
        };
        let unsupported = |file: &str, what: String| {
            let path = folder.join(file);
            Err(ModelError::Unsupported { path, what })
        };
        for (field, plain) in UNET_EXTRAS {
            let value = &self.unet[field];
            let means_nothing = value.is_null()
                || *value == Value::Bool(false)
                || value.as_str().is_some_and(|value| plain.contains(&value));
            if !means_nothing {
                return unsupported("unet/config.json", format!("{field} is {value}"));
            }
        }
        let unet = &configs.unet;
        if unet.in_channels != configs.vae.latent_channels || unet.out_channels != unet.in_channels {
            let what = match unet.in_channels {
                9 => "this is an inpainting model".to_owned(),
                n => format!("the U-Net takes {n} channels"),
            };
            return unsupported("unet/config.json", what);
        }
        let blocks = unet.block_out_channels.len();
        if blocks == 0 || unet.down_block_types.len() != blocks || unet.up_block_types.len() != blocks {
            return unsupported("unet/config.json", "the lists of blocks differ in length".into());
        }
        let types = unet.down_block_types.iter().chain(&unet.up_block_types);
        let known = ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"];
        if let Some(other) = types.into_iter().find(|name| !known.contains(&name.as_str())) {
            return unsupported("unet/config.json", format!("it has a block {other}"));
        }
        if configs.vae.block_out_channels.is_empty() {
            return unsupported("vae/config.json", "it has no blocks".into());
        }
        if !self.scheduler["trained_betas"].is_null() {
            return unsupported("scheduler/scheduler_config.json", "it has betas of its own".into());
        }
        if self.scheduler["rescale_betas_zero_snr"] == Value::Bool(true) {
            let what = "rescale_betas_zero_snr is true".into();
            return unsupported("scheduler/scheduler_config.json", what);
        }
        Ok(configs)
    }
}

impl Configs {
    /// Stable Diffusion 1.x.
    pub fn sd1() -> Self {
        let unet = UNetConfig {
            sample_size: 64,
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: [["CrossAttnDownBlock2D"; 3].as_slice(), &["DownBlock2D"]]
                .concat()
                .into_iter()
                .map(String::from)
                .collect(),
            up_block_types: [["UpBlock2D"].as_slice(), &["CrossAttnUpBlock2D"; 3]]
                .concat()
                .into_iter()
                .map(String::from)
                .collect(),
            layers_per_block: 2,
            cross_attention_dim: 768,
            attention_head_dim: HeadCount::All(8),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            use_linear_projection: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
        };
        let vae = VaeConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            sample_size: Some(512),
        };
        let text_encoder = TextEncoderConfig {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        };
        Self {
            unet,
            vae,
            text_encoder,
            scheduler: SchedulerConfig::default(),
        }
    }

    /// Stable Diffusion 2.x, of 512 px with the noise as target or of 768 px with velocity.
    pub fn sd2(prediction_type: PredictionType) -> Self {
        let mut configs = Self::sd1();
        configs.unet.sample_size = match prediction_type {
            PredictionType::Epsilon => 64,
            PredictionType::VPrediction => 96,
        };
        configs.unet.attention_head_dim = HeadCount::PerBlock(vec![5, 10, 20, 20]);
        configs.unet.cross_attention_dim = 1024;
        configs.unet.use_linear_projection = true;
        configs.vae.sample_size = Some(768);
        configs.text_encoder = TextEncoderConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            // OpenCLIP has 24; the model is conditioned on the last but one's output.
            num_hidden_layers: 23,
            num_attention_heads: 16,
            hidden_act: "gelu".into(),
            ..configs.text_encoder
        };
        configs.scheduler.prediction_type = prediction_type;
        configs
    }

    /// Whether WebUIs know a model of these shapes.
    pub fn is_standard(&self) -> bool {
        self.has_shapes_of(&Self::sd1()) || self.has_shapes_of(&Self::sd2(PredictionType::Epsilon))
    }

    /// Stable Diffusion 1.x with noise as its target: what a single file is taken for that says nothing.
    pub(super) fn is_plain_sd1(&self) -> bool {
        self.has_shapes_of(&Self::sd1()) && self.scheduler.prediction_type == PredictionType::Epsilon
    }

    fn has_shapes_of(&self, known: &Self) -> bool {
        let (a, b) = (&self.unet, &known.unet);
        let unet = a.block_out_channels == b.block_out_channels
            && a.down_block_types == b.down_block_types
            && a.up_block_types == b.up_block_types
            && a.layers_per_block == b.layers_per_block
            && a.cross_attention_dim == b.cross_attention_dim
            && a.attention_head_dim == b.attention_head_dim
            && a.norm_num_groups == b.norm_num_groups
            && a.use_linear_projection == b.use_linear_projection;
        unet && is_standard_vae(&self.vae) && self.text_encoder == known.text_encoder
    }

    /// The files that diffusers would write for these configurations.
    ///
    /// # Errors
    /// None known.
    pub fn files(&self) -> Result<ConfigFiles, serde_json::Error> {
        let vae_blocks = self.vae.block_out_channels.len();
        Ok(ConfigFiles {
            unet: merged(
                json!({
                    "_class_name": "UNet2DConditionModel",
                    "_diffusers_version": DIFFUSERS_VERSION,
                    "act_fn": "silu",
                    "center_input_sample": false,
                    "downsample_padding": 1,
                    "mid_block_scale_factor": 1,
                }),
                serde_json::to_value(&self.unet)?,
            ),
            vae: merged(
                json!({
                    "_class_name": "AutoencoderKL",
                    "_diffusers_version": DIFFUSERS_VERSION,
                    "act_fn": "silu",
                    "down_block_types": vec!["DownEncoderBlock2D"; vae_blocks],
                    "up_block_types": vec!["UpDecoderBlock2D"; vae_blocks],
                }),
                serde_json::to_value(&self.vae)?,
            ),
            text_encoder: merged(
                json!({
                    "architectures": ["CLIPTextModel"],
                    "attention_dropout": 0.0,
                    "bos_token_id": 0,
                    "dropout": 0.0,
                    "eos_token_id": 2,
                    "initializer_factor": 1.0,
                    "initializer_range": 0.02,
                    "model_type": "clip_text_model",
                    "pad_token_id": 1,
                    "projection_dim": self.text_encoder.hidden_size,
                }),
                serde_json::to_value(&self.text_encoder)?,
            ),
            scheduler: merged(
                json!({
                    "_class_name": "PNDMScheduler",
                    "_diffusers_version": DIFFUSERS_VERSION,
                    "skip_prk_steps": true,
                    "trained_betas": null,
                }),
                serde_json::to_value(&self.scheduler)?,
            ),
        })
    }
}

/// Whether WebUIs know a VAE of these shapes: that of Stable Diffusion 1.x is that of 2.x.
pub fn is_standard_vae(vae: &VaeConfig) -> bool {
    let known = Configs::sd1().vae;
    vae.block_out_channels == known.block_out_channels
        && vae.layers_per_block == known.layers_per_block
        && vae.norm_num_groups == known.norm_num_groups
        && vae.latent_channels == known.latent_channels
}

/// The version whose file layout we write.
pub(super) const DIFFUSERS_VERSION: &str = "0.15.0";

fn merged(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noise_schedule_that_is_not_followed_is_refused_by_its_name() {
        let files = Configs::sd1().files().expect("json");
        let with = |field: &str, value: Value| {
            let mut files = files.clone();
            files.scheduler[field] = value;
            files.parse(Path::new("model"))
        };
        let refused = with("rescale_betas_zero_snr", json!(true))
            .expect_err("refused")
            .to_string();
        assert!(
            refused.contains("scheduler_config.json") && refused.contains("rescale_betas_zero_snr"),
            "{refused}"
        );
        assert!(with("rescale_betas_zero_snr", json!(false)).is_ok());
        assert!(with("trained_betas", json!([0.1])).is_err());
    }

    #[test]
    fn a_scheduler_that_names_no_offset_has_none() {
        let mut files = Configs::sd1().files().expect("json");
        files
            .scheduler
            .as_object_mut()
            .expect("an object")
            .remove("steps_offset");
        let configs = files.parse(Path::new("model")).expect("known");
        assert_eq!(configs.scheduler.steps_offset, 0);
    }
}
