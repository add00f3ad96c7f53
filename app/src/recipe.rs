//! What to train: `RecipeDraft` is what a person typed, `Recipe` is what was meant, checked and complete.
//!
//! Field names are those of the tutorial's `train_dreambooth.py` flags, so that the page, the API, the command line
//! and the problems they report all speak of the same thing.

mod check;
mod strict;
mod unused;

use serde::{Deserialize, Serialize};

use crate::background::AlphaBackground;

pub use check::{RecipeProblem, RecipeProblems};

/// Last rate of the polynomial schedule, whatever its first.
pub const POLYNOMIAL_END: f64 = 1e-7;
/// The model that ships with Likeness.
pub const STARTER: &str = "starter";
/// Of a LoRA at least, where none is given: diffusers' `train_dreambooth_lora.py` is used with it.
pub const LORA_LEARNING_RATE: f64 = 1e-4;
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
#[serde(deny_unknown_fields)]
pub struct PriorPreservation {
    pub num_class_images: u32,
    pub prior_loss_weight: f64,
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

/// Settings of the optimizer, AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adam {
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_weight_decay: f64,
    pub adam_epsilon: f64,
    /// One L2 norm over all trained tensors is clipped to this.
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
    pub mixed_precision: Precision,
    /// Activations are computed again in the backward pass, which takes less memory and more time.
    pub gradient_checkpointing: bool,
    /// Moments of the optimizer in 8 bits, as bitsandbytes keeps them.
    pub use_8bit_adam: bool,
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
    /// A VAE in place of the base model's. Of a strict run it draws and is exported, and the base model's own encodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained_vae_name_or_path: Option<String>,
    /// `latest`, or a saved state or run folder, also of another recipe, to go on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_from_checkpoint: Option<String>,
    /// A folder with another tokenizer than the base model's.
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
            prior: Some(PriorPreservation {
                num_class_images: 50,
                prior_loss_weight: 1.0,
            }),
            hflip: false,
            center_crop: false,
            alpha_background: AlphaBackground::default(),
            not_cache_latents: false,
            seed: 1337,
            mixed_precision: Precision::No,
            gradient_checkpointing: false,
            use_8bit_adam: false,
            adam: Adam::default(),
            use_ema: false,
            ema_decay: 0.9999,
            samples: SamplePlan::default(),
            checkpointing_steps: 100,
            checkpoints_total_limit: None,
            pad_tokens: true,
            read_prompts_from_txts: false,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn dog() -> RecipeDraft {
        RecipeDraft {
            concepts: vec![Concept {
                instance_prompt: instance_prompt("zwx", "dog"),
                instance_data_dir: "photos/0".into(),
                class_prompt: Some(class_prompt("dog")),
                class_data_dir: Some("class-images/0".into()),
            }],
            ..RecipeDraft::default()
        }
    }

    #[test]
    fn a_good_draft_becomes_a_recipe_and_survives_json() {
        let recipe = dog().check().expect("good");
        let json = serde_json::to_string(&recipe).expect("serialises");
        assert_eq!(serde_json::from_str::<Recipe>(&json).expect("parses"), recipe);
    }

    #[test]
    fn every_problem_is_reported_with_its_field() {
        let mut draft = dog();
        draft.concepts[0].class_prompt = Some(" ".into());
        draft.resolution = Some(510);
        draft.learning_rate = f64::NAN;
        draft.max_train_steps = 0;
        let problems = draft.check().expect_err("bad").0;
        let mut fields: Vec<String> = problems.iter().map(RecipeProblem::field).collect();
        fields.sort();
        let wanted = [
            "concepts.0.class_prompt",
            "learning_rate",
            "max_train_steps",
            "resolution",
        ];
        assert_eq!(fields, wanted);
    }

    #[test]
    fn a_recipe_read_from_disk_is_checked_again() {
        let bad = r#"{"concepts":[]}"#;
        assert!(serde_json::from_str::<Recipe>(bad).is_err());
        let unknown = r#"{"learning_rte":1}"#;
        assert!(serde_json::from_str::<RecipeDraft>(unknown).is_err());
    }

    #[test]
    fn a_recipe_of_before_a_setting_was_there_still_loads() {
        let old = r#"{"pretrained_model_name_or_path":"starter","concepts":[{"instance_prompt":"photo of zwx dog",
            "instance_data_dir":"photos/0","class_prompt":"photo of a dog","class_data_dir":"class-images/0"}],
            "resolution":null,"max_train_steps":360,"train_batch_size":1,"sample_batch_size":4,
            "gradient_accumulation_steps":1,"learning_rate":0.0005,"lr_scheduler":"constant","lr_warmup_steps":0,
            "train_text_encoder":true,"prior":{"num_class_images":12,"prior_loss_weight":1.0},"hflip":false,
            "center_crop":false,"seed":1337,"mixed_precision":"no","adam":{"adam_beta1":0.9,"adam_beta2":0.999,
            "adam_weight_decay":0.01,"adam_epsilon":1e-8,"max_grad_norm":1.0},"samples":{"save_sample_prompt":
            "photo of zwx dog","save_sample_negative_prompt":"","n_save_sample":4,"sample_interval":120,
            "save_guidance_scale":4.0,"save_infer_steps":16},"checkpointing_steps":60,"pad_tokens":false,
            "read_prompts_from_txts":false}"#;
        let recipe: Recipe = serde_json::from_str(old).expect("loads");
        assert!(!recipe.pad_tokens && !recipe.use_ema && !recipe.strict_tutorial);
        assert_eq!(
            (recipe.snr_gamma, recipe.lr_num_cycles, recipe.lr_power),
            (None, 1, 1.0)
        );
    }

    #[test]
    fn settings_that_would_stop_learning_are_named() {
        let mut draft = dog();
        draft.snr_gamma = Some(0.0);
        draft.offset_noise = f64::NAN;
        draft.lr_scheduler = LrScheduler::Polynomial;
        draft.learning_rate = 1e-7;
        draft.checkpoints_total_limit = Some(0);
        (draft.lora_rank, draft.lora_alpha) = (Some(0), Some(0.0));
        let problems = draft.check().expect_err("bad").0;
        let mut fields: Vec<String> = problems.iter().map(RecipeProblem::field).collect();
        fields.sort();
        let wanted = [
            "checkpoints_total_limit",
            "learning_rate",
            "lora_alpha",
            "lora_rank",
            "offset_noise",
            "snr_gamma",
        ];
        assert_eq!(fields, wanted);
    }

    #[test]
    fn samples_come_first_each_interval_and_last() {
        let mut draft = dog();
        draft.max_train_steps = 250;
        assert!(draft.sample_steps().is_empty());
        draft.samples.save_sample_prompt = "photo of zwx dog".into();
        assert_eq!(draft.sample_steps(), [250]);
        draft.samples.sample_interval = 100;
        assert_eq!(draft.sample_steps(), [0, 100, 200, 250]);
    }

    #[test]
    fn class_prompts_use_the_right_article() {
        assert_eq!(class_prompt("dog"), "photo of a dog");
        assert_eq!(class_prompt(" owl"), "photo of an owl");
    }
}
