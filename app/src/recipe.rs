//! What to train: `RecipeDraft` is what a person typed, `Recipe` is what was meant, checked and complete.
//!
//! Field names are those of the tutorial's `train_dreambooth.py` flags, so that the page, the API, the command line
//! and the problems they report all speak of the same thing.

mod check;
mod strict;
#[cfg(test)]
mod tests;
mod unused;

use serde::{Deserialize, Serialize};

use crate::background::AlphaBackground;

pub use check::{RecipeProblem, RecipeProblems, is_revision, may_be_hub_id};

/// Last rate of the polynomial schedule, whatever its first.
pub const POLYNOMIAL_END: f64 = 1e-7;
/// The model that ships with Likeness.
pub const STARTER: &str = "starter";
/// Of a LoRA at least, where none is given: diffusers' `train_dreambooth_lora.py` is used with it.
pub const LORA_LEARNING_RATE: f64 = 1e-4;
/// From so many photos on, one can be spared.
pub const HOLDOUT_LEAST_PHOTOS: usize = 12;
/// A rare token to name the subject by.
pub const DEFAULT_TOKEN: &str = "zwx";

/// A subject: its photos and its class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Concept {
    /// Caption with the rare token, such as `photo of zwx dog`.
    pub instance_prompt: String,
    /// Folder of photos; of a server job, relative to the job folder.
    pub instance_data_dir: String,
    /// Caption of its kind, such as `photo of a dog`. Needed for prior preservation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_prompt: Option<String>,
    /// Folder of class images, filled up to `num_class_images`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_data_dir: Option<String>,
}

/// The class half of the loss: pictures of the kind, drawn by the base model, keep it from forgetting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PriorPreservation {
    pub num_class_images: u32,
    pub prior_loss_weight: f64,
    /// How strictly class images follow their prompt. The tutorial's script draws them with its pipeline's 7.5, whatever
    /// the samples' guidance is.
    pub class_guidance_scale: f64,
}

impl Default for PriorPreservation {
    fn default() -> Self {
        Self {
            num_class_images: 50,
            prior_loss_weight: 1.0,
            class_guidance_scale: 7.5,
        }
    }
}

/// Samples drawn while training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplePlan {
    /// No samples when empty.
    pub save_sample_prompt: String,
    pub save_sample_negative_prompt: String,
    pub n_save_sample: u32,
    /// A round after every so many steps, besides the first (step 0) and the last. 0 = only at the end.
    pub sample_interval: u32,
    pub save_guidance_scale: f64,
    pub save_infer_steps: u32,
}

impl Default for SamplePlan {
    fn default() -> Self {
        Self {
            save_sample_prompt: String::new(),
            save_sample_negative_prompt: String::new(),
            n_save_sample: 4,
            sample_interval: 0,
            save_guidance_scale: 7.5,
            save_infer_steps: 20,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    #[default]
    Constant,
    ConstantWithWarmup,
    Linear,
    Cosine,
    CosineWithRestarts,
    Polynomial,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    No,
    Fp16,
    Bf16,
}

/// What training computes in, as it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixedPrecision {
    /// 16 bits where the device is faster with them; of a strict run f32, as the tutorial's script has it.
    #[default]
    Auto,
    No,
    Fp16,
    Bf16,
}

/// Settings of the optimizer, AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adam {
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_weight_decay: f64,
    pub adam_epsilon: f64,
    /// One L2 norm over all trained tensors is clipped to this; in low memory that of each tensor by itself.
    pub max_grad_norm: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self {
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_weight_decay: 1e-2,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
        }
    }
}

/// A recipe as typed: anything may be wrong in it. `check` turns it into a `Recipe`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecipeDraft {
    /// `starter`, the path of a diffusers folder or single file on the machine that trains, or a Hub id.
    pub pretrained_model_name_or_path: String,
    /// Branch, tag or commit of a Hub id; `None` means `main`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    pub concepts: Vec<Concept>,
    /// Side of the training images in pixels; `None` means the model's own.
    pub resolution: Option<u32>,
    /// Optimizer updates; of a strict run micro-batches, as the tutorial's script counts.
    pub max_train_steps: u32,
    pub train_batch_size: u32,
    pub sample_batch_size: u32,
    pub gradient_accumulation_steps: u32,
    pub learning_rate: f64,
    pub lr_scheduler: LrScheduler,
    /// In optimizer updates.
    pub lr_warmup_steps: u32,
    /// Waves of `cosine_with_restarts`.
    pub lr_num_cycles: u32,
    /// Exponent of `polynomial`.
    pub lr_power: f64,
    pub train_text_encoder: bool,
    /// `None` means `learning_rate`.
    pub text_encoder_learning_rate: Option<f64>,
    /// After so many steps the text encoder stays as it is.
    pub stop_text_encoder_at: Option<u32>,
    /// Trains low-rank additions of this rank to the attention (LoRA, Hu et al. 2021) in place of the weights. `None`
    /// trains the weights.
    pub lora_rank: Option<u32>,
    /// The additions count alpha / rank times. `None` means as often as the rank says: once.
    pub lora_alpha: Option<f64>,
    /// Min-SNR (Hang et al. 2023): easy timesteps count less. `None` weighs all alike.
    pub snr_gamma: Option<f64>,
    /// Strength of noise that is the same all over a channel, so that brightness is learned too. 0 = none.
    pub offset_noise: f64,
    pub prior: Option<PriorPreservation>,
    pub hflip: bool,
    pub center_crop: bool,
    /// What transparent parts of photos are laid on.
    pub alpha_background: AlphaBackground,
    /// Photos are cut out, mirrored and encoded anew for every step, which is slow, instead of once.
    pub not_cache_latents: bool,
    pub seed: u64,
    pub mixed_precision: MixedPrecision,
    /// Activations are computed again in the backward pass, which takes less memory and more time.
    pub gradient_checkpointing: bool,
    /// Moments of the optimizer in 8 bits, as bitsandbytes keeps them.
    pub use_8bit_adam: bool,
    /// Weights in bf16 alone, rounded by chance, each changed as soon as its gradient is there, which is clipped by its own
    /// norm; with 8-bit moments and gradient checkpointing.
    pub low_memory: bool,
    pub adam: Adam,
    /// Samples and result are of a running average of the weights.
    pub use_ema: bool,
    /// How long that average remembers, at most.
    pub ema_decay: f64,
    pub samples: SamplePlan,
    /// The training state is saved after every so many steps, so that a crash loses less. 0 = only at the end.
    pub checkpointing_steps: u32,
    /// So many of the last saved states are kept, after the end too. `None` keeps the last one until the end.
    pub checkpoints_total_limit: Option<u32>,
    /// Prompts are padded to 77 tokens in training, as they are in drawing. The tutorial does not.
    pub pad_tokens: bool,
    /// Each photo has its own prompt beside it, in `NAME.EXT.txt`, in place of the instance prompt.
    pub read_prompts_from_txts: bool,
    /// Of twelve photos or more, one is not trained on: what the model makes of it tells whether it learns the others by heart.
    pub holdout_photo: bool,
    /// A VAE in place of the base model's. Of a strict run it draws and is exported, and the base model's own encodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained_vae_name_or_path: Option<String>,
    /// `latest`, or a saved state or run folder, also of another recipe, to go on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_from_checkpoint: Option<String>,
    /// Another tokenizer than the base model's: a folder, or a Hub id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer_name: Option<String>,
    /// Keeps the faults of the tutorial's script, for comparison; docs/strict-tutorial.md lists them.
    pub strict_tutorial: bool,
}

impl Default for RecipeDraft {
    /// Values that need no thought for a first run; the command line has the tutorial's own defaults instead.
    fn default() -> Self {
        Self {
            pretrained_model_name_or_path: STARTER.into(),
            revision: None,
            concepts: Vec::new(),
            resolution: None,
            max_train_steps: 800,
            train_batch_size: 1,
            sample_batch_size: 4,
            gradient_accumulation_steps: 1,
            learning_rate: 1e-6,
            lr_scheduler: LrScheduler::Constant,
            lr_warmup_steps: 0,
            lr_num_cycles: 1,
            lr_power: 1.0,
            train_text_encoder: true,
            text_encoder_learning_rate: None,
            stop_text_encoder_at: None,
            lora_rank: None,
            lora_alpha: None,
            snr_gamma: None,
            offset_noise: 0.0,
            prior: Some(PriorPreservation::default()),
            hflip: false,
            center_crop: false,
            alpha_background: AlphaBackground::default(),
            not_cache_latents: false,
            seed: 1337,
            mixed_precision: MixedPrecision::Auto,
            gradient_checkpointing: false,
            use_8bit_adam: false,
            low_memory: false,
            adam: Adam::default(),
            use_ema: false,
            ema_decay: 0.9999,
            samples: SamplePlan::default(),
            checkpointing_steps: 100,
            checkpoints_total_limit: None,
            pad_tokens: true,
            read_prompts_from_txts: false,
            holdout_photo: true,
            pretrained_vae_name_or_path: None,
            resume_from_checkpoint: None,
            tokenizer_name: None,
            strict_tutorial: false,
        }
    }
}

/// A complete, consistent recipe. Only `RecipeDraft::check` makes one; it is written to the job folder's
/// `recipe.json` and read back through the same check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RecipeDraft", into = "RecipeDraft")]
pub struct Recipe(RecipeDraft);

impl std::ops::Deref for Recipe {
    type Target = RecipeDraft;
    fn deref(&self) -> &RecipeDraft {
        &self.0
    }
}

impl From<Recipe> for RecipeDraft {
    fn from(recipe: Recipe) -> Self {
        recipe.0
    }
}

impl TryFrom<RecipeDraft> for Recipe {
    type Error = RecipeProblems;
    fn try_from(draft: RecipeDraft) -> Result<Self, RecipeProblems> {
        draft.check()
    }
}

impl RecipeDraft {
    /// Whether one of so many photos is not trained on. It is measured with each round of samples; the tutorial's script
    /// trains on every photo.
    pub fn holds_out(&self, photos: usize) -> bool {
        let measured = !self.samples.save_sample_prompt.trim().is_empty();
        self.holdout_photo && measured && !self.strict_tutorial && photos >= HOLDOUT_LEAST_PHOTOS
    }

    /// Steps after which samples are drawn, ascending: 0 (the base model) when rounds were asked for, then every
    /// `sample_interval`, then the last. Empty without a sample prompt.
    pub fn sample_steps(&self) -> Vec<u32> {
        let every = self.samples.sample_interval;
        if self.samples.save_sample_prompt.trim().is_empty() {
            return Vec::new();
        }
        let mut steps: Vec<u32> = match every {
            0 => Vec::new(),
            every => (0..self.max_train_steps).step_by(every as usize).collect(),
        };
        steps.push(self.max_train_steps);
        steps
    }
}

/// `a` or `an`, for a class noun: by its first letter, which is right for nearly all of them.
pub fn article(noun: &str) -> &'static str {
    match noun.trim().chars().next().map(|c| c.to_ascii_lowercase()) {
        Some('a' | 'e' | 'i' | 'o' | 'u') => "an",
        _ => "a",
    }
}

/// `photo of zwx dog`: the tutorial's form.
pub fn instance_prompt(token: &str, class_noun: &str) -> String {
    format!("photo of {} {}", token.trim(), class_noun.trim())
}

/// `photo of a dog`: the tutorial's form.
pub fn class_prompt(class_noun: &str) -> String {
    format!("photo of {} {}", article(class_noun), class_noun.trim())
}
