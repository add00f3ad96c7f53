//! The networks of a run on their device, and the model that they come from.

use std::path::Path;

use app::recipe::{Precision, Recipe};
use candle_core::Tensor;

use super::error::TrainError;
use crate::device::Device;
use crate::engine::adapter::Adapter;
use crate::engine::ir::Group;
use crate::engine::nets::error::NetworkError;
use crate::engine::nets::networks::Networks;
use crate::engine::nets::programs::{Part, Plan};
use crate::engine::session::{LowMemory, Moments, OptimizerSettings};
use crate::formats::{Lora, ModelWeights};
use crate::models::params::{Weights, is_not_a_weight};
use crate::pipeline::Pipeline;
use crate::tokenizer::Tokenizer;

/// Of the optimizer of a learner that only draws.
const UNUSED: OptimizerSettings = OptimizerSettings {
    moments: Moments::F32,
    beta1: 0.9,
    beta2: 0.999,
    weight_decay: 0.0,
    epsilon: 1e-8,
    low_memory: None,
};

/// All networks of a run, in one session.
pub struct Learner {
    pub networks: Networks,
    pub tokenizer: Tokenizer,
    /// Configurations, and the weights that are exported as they were.
    base: ModelWeights,
    /// What latents of the VAE that encodes are multiplied by.
    pub latents_scale: f64,
    /// Settings that were turned on so that the run fits, by their flags' names.
    pub turned_on: Vec<&'static str>,
}

/// A VAE that takes the place of the base model's own in what is drawn and exported.
pub struct OtherVae {
    pub weights: ModelWeights,
    /// Photos are encoded with it too. The tutorial's script encodes with the base model's own.
    pub encodes: bool,
}

/// How a run learns.
#[derive(Clone, Debug)]
pub struct Learning {
    pub text_encoder: bool,
    /// Adapters learn in place of the networks' own weights.
    pub adapter: Option<Adapter>,
    /// Of the adapters' first values.
    pub seed: u64,
    /// Activations are computed again in the backward (gradient checkpointing).
    pub recompute: bool,
    pub optimizer: OptimizerSettings,
    /// What networks compute in.
    pub precision: Precision,
    /// The U-Net as it was is kept, for the meters.
    pub keeps_an_eye: bool,
}

impl Learning {
    pub fn of(recipe: &Recipe, precision: Precision, keeps_an_eye: bool) -> Self {
        let adam = &recipe.adam;
        Self {
            text_encoder: recipe.train_text_encoder,
            adapter: recipe.lora_rank.map(|rank| Adapter {
                rank: rank as usize,
                alpha: recipe.lora_alpha.unwrap_or(f64::from(rank)),
            }),
            seed: recipe.seed,
            recompute: recipe.gradient_checkpointing || recipe.low_memory,
            optimizer: OptimizerSettings {
                moments: match recipe.use_8bit_adam || recipe.low_memory {
                    true => Moments::EightBit,
                    false => Moments::F32,
                },
                beta1: adam.adam_beta1,
                beta2: adam.adam_beta2,
                weight_decay: adam.adam_weight_decay,
                epsilon: adam.adam_epsilon,
                low_memory: recipe.low_memory.then_some(LowMemory { seed: recipe.seed }),
            },
            precision,
            keeps_an_eye,
        }
    }

    /// `networks`, as they learn.
    pub fn plan(&self, networks: Plan) -> Plan {
        let mut trains = vec![Group::UNet];
        trains.extend(self.text_encoder.then_some(Group::TextEncoder));
        Plan {
            trains: trains.into_iter().collect(),
            eye: self.keeps_an_eye,
            recompute: self.recompute,
            adapter: self.adapter,
            ..networks
        }
    }
}

/// The networks of a run, `other_vae` in place of the base model's or beside it.
pub fn networks_of(base: &ModelWeights, other_vae: Option<&OtherVae>) -> Plan {
    let mut plan = plan(base);
    match other_vae {
        Some(OtherVae { weights, encodes: true }) => plan.vae = Some(weights.vae_config.clone()),
        Some(OtherVae {
            weights,
            encodes: false,
        }) => plan.other_vae = Some(weights.vae_config.clone()),
        None => {}
    }
    plan
}

impl Learner {
    /// Puts the networks on the device, `other_vae` in place of the base model's.
    ///
    /// # Errors
    /// When weights are missing or do not fit their configuration, or the device has no room.
    pub fn new(
        mut base: ModelWeights,
        other_vae: Option<OtherVae>,
        learning: &Learning,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let plan = learning.plan(networks_of(&base, other_vae.as_ref()));
        let latents_scale = plan.vae(Part::Vae)?.scaling_factor;
        let mut networks = networks(plan, learning.optimizer, learning.precision, device)?;
        networks.load(Part::UNet, &base.unet)?;
        networks.load(Part::TextEncoder, &base.text_encoder)?;
        if learning.keeps_an_eye {
            networks.load(Part::Eye, &base.unet)?;
        }
        match &other_vae {
            Some(OtherVae { weights, encodes: true }) => networks.load(Part::Vae, &weights.vae)?,
            Some(OtherVae {
                weights,
                encodes: false,
            }) => {
                networks.load(Part::Vae, &base.vae)?;
                networks.load(Part::OtherVae, &weights.vae)?;
            }
            None => networks.load(Part::Vae, &base.vae)?,
        }
        networks.start_adapters(learning.seed)?;
        // From here on the session holds what learns. To give gigabytes back takes a while, which nobody waits for.
        let mut gone = vec![take_weights(&mut base.unet)];
        if learning.text_encoder {
            gone.push(take_weights(&mut base.text_encoder));
        }
        std::thread::spawn(move || drop(gone));
        if let Some(OtherVae { weights, .. }) = other_vae {
            base.vae = weights.vae;
            base.vae_config = weights.vae_config;
        }
        Ok(Self {
            networks,
            tokenizer: base.tokenizer(Path::new("tokenizer"))?,
            base,
            latents_scale,
            turned_on: Vec::new(),
        })
    }

    /// Nothing learns: for drawing with a finished model.
    ///
    /// # Errors
    /// As `new`.
    pub fn for_drawing(mut base: ModelWeights, device: &Device) -> Result<Self, TrainError> {
        let mut networks = networks(plan(&base), UNUSED, device.precision_of_drawing(), device)?;
        let parts = [
            (Part::UNet, &mut base.unet),
            (Part::TextEncoder, &mut base.text_encoder),
            (Part::Vae, &mut base.vae),
        ];
        for (part, weights) in parts {
            // One copy at a time is enough.
            networks.load(part, &std::mem::take(weights))?;
        }
        Ok(Self {
            networks,
            tokenizer: base.tokenizer(Path::new("tokenizer"))?,
            latents_scale: base.vae_config.scaling_factor,
            turned_on: Vec::new(),
            base,
        })
    }

    pub fn base(&self) -> &ModelWeights {
        &self.base
    }

    pub fn trains_text_encoder(&self) -> bool {
        self.networks.plan().trains.contains(&Group::TextEncoder)
    }

    /// Draws with the weights as they are now.
    pub fn pipeline(&mut self) -> Pipeline<'_> {
        Pipeline {
            networks: &mut self.networks,
            vae_scaling_factor: self.base.vae_config.scaling_factor,
            latent_channels: self.base.vae_config.latent_channels,
            tokenizer: &self.tokenizer,
            scheduler: &self.base.scheduler_config,
        }
    }

    /// What adapters learned; `None` where the weights themselves learn.
    ///
    /// # Errors
    /// What the device answers.
    pub fn lora(&mut self) -> Result<Option<Lora>, TrainError> {
        Ok(self.networks.lora()?)
    }

    /// The whole model as it is now, for export, with what adapters learned added to it.
    ///
    /// # Errors
    /// What the device answers.
    pub fn weights(&mut self) -> Result<ModelWeights, TrainError> {
        let mut weights = self.base.clone();
        weights.unet.extend(self.networks.weights(Part::UNet)?);
        if self.trains_text_encoder() {
            weights.text_encoder.extend(self.networks.weights(Part::TextEncoder)?);
        }
        if let Some(lora) = self.lora()? {
            lora.merge_into(&mut weights, Path::new("adapters"))?;
        }
        Ok(weights)
    }

    /// The mean latents of `images` `[rows, 3, h, w]` in -1 to 1, as training knows them.
    ///
    /// # Errors
    /// What the device answers.
    pub fn mean_latents(&mut self, images: &Tensor) -> Result<Tensor, TrainError> {
        Ok((self.networks.encode(images)?.mean * self.latents_scale)?)
    }
}

/// Takes out what a session holds now.
fn take_weights(tensors: &mut Weights) -> Weights {
    let all = std::mem::take(tensors);
    let (rest, weights) = all.into_iter().partition(|(path, _)| is_not_a_weight(path));
    *tensors = rest;
    weights
}

fn plan(model: &ModelWeights) -> Plan {
    Plan {
        unet: Some(model.unet_config.clone()),
        text_encoder: Some(model.text_encoder_config.clone()),
        vae: Some(model.vae_config.clone()),
        ..Plan::default()
    }
}

fn networks(
    plan: Plan,
    optimizer: OptimizerSettings,
    precision: Precision,
    device: &Device,
) -> Result<Networks, TrainError> {
    let params = plan.params()?;
    let session = device
        .session(params, optimizer, precision)
        .map_err(NetworkError::from)?;
    Ok(Networks::new(plan, session))
}
