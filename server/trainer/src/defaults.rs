//! What a base model is to a person, and what settings suit it for a first run.

use app::api::{HubFacts, ModelInfo, VaeInfo};
use app::recipe::{PriorPreservation, RecipeDraft, STARTER, SamplePlan};

use crate::formats::architecture::Parameter;
use crate::formats::{Configs, architecture, is_standard_vae};
use crate::hub::Description;
use crate::models::config::VaeConfig;
use crate::pipeline::LATENT_PX;

/// Describes a model by its configurations.
pub fn describe(reference: &str, configs: &Configs) -> ModelInfo {
    let trained = [
        architecture::unet(&configs.unet),
        architecture::text_encoder(&configs.text_encoder),
    ];
    ModelInfo {
        pretrained_model_name_or_path: reference.into(),
        title: title(reference),
        resolution: (configs.unet.sample_size * LATENT_PX) as u32,
        parameters: trained.iter().map(|network| count(network)).sum(),
        latent_channels: configs.unet.in_channels as u32,
        loads_in_webuis: configs.is_standard(),
        defaults: recipe(reference),
        hub: None,
    }
}

/// Describes a model of the Hub.
pub fn describe_remote(
    reference: &str,
    revision: Option<&str>,
    configs: &Configs,
    description: &Description,
) -> ModelInfo {
    ModelInfo {
        title: reference.into(),
        hub: Some(hub_facts(revision, description)),
        ..describe(reference, configs)
    }
}

/// Describes a VAE; `description` is of one that the Hub has.
pub fn describe_vae(reference: &str, config: &VaeConfig, description: Option<&Description>) -> VaeInfo {
    VaeInfo {
        pretrained_vae_name_or_path: reference.into(),
        parameters: count(&architecture::vae(config)),
        latent_channels: config.latent_channels as u32,
        loads_in_webuis: is_standard_vae(config),
        hub: description.map(|description| hub_facts(None, description)),
    }
}

fn count(network: &[Parameter]) -> u64 {
    let of = |parameter: &Parameter| parameter.shape.iter().product::<usize>() as u64;
    network.iter().map(of).sum()
}

fn hub_facts(revision: Option<&str>, description: &Description) -> HubFacts {
    HubFacts {
        card: description.card.clone(),
        license: description.license.clone(),
        bytes: description.bytes,
        missing_bytes: description.missing_bytes,
        revision: revision.map(str::to_owned),
    }
}

fn title(reference: &str) -> String {
    if reference == STARTER {
        return "Starter".into();
    }
    let name = std::path::Path::new(reference).file_stem();
    name.map_or_else(|| reference.into(), |name| name.to_string_lossy().into_owned())
}

/// Settings that need no thought for a first run with this model.
pub fn recipe(reference: &str) -> RecipeDraft {
    let draft = RecipeDraft {
        pretrained_model_name_or_path: reference.into(),
        ..RecipeDraft::default()
    };
    if reference == STARTER {
        starter(draft)
    } else {
        RecipeDraft {
            samples: SamplePlan {
                sample_interval: 200,
                ..SamplePlan::default()
            },
            ..draft
        }
    }
}

/// The starter is a thousand times smaller than Stable Diffusion: it learns at a higher rate, in fewer steps, and a
/// whole run ends within two minutes on two cores.
fn starter(draft: RecipeDraft) -> RecipeDraft {
    RecipeDraft {
        max_train_steps: 300,
        learning_rate: 3e-4,
        // It was trained on padded prompts; without, the subject does not appear.
        pad_tokens: true,
        prior: Some(PriorPreservation {
            num_class_images: 24,
            ..PriorPreservation::default()
        }),
        samples: SamplePlan {
            n_save_sample: 4,
            sample_interval: 100,
            save_infer_steps: 16,
            // More makes its colours garish.
            save_guidance_scale: 4.0,
            ..SamplePlan::default()
        },
        checkpointing_steps: 60,
        ..draft
    }
}
