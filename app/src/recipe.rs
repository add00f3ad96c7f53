//! What to train: `RecipeDraft` is what a person typed, `Recipe` is what was meant, checked and complete.
//!
//! Field names are those of the tutorial's `train_dreambooth.py` flags, so that the page, the API, the command line
//! and the problems they report all speak of the same thing.

use serde::{Deserialize, Serialize};

/// The model that ships with Likeness.
pub const STARTER: &str = "starter";
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
    /// Micro-batches, as users count.
    pub max_train_steps: u32,
    pub train_batch_size: u32,
    pub sample_batch_size: u32,
    pub gradient_accumulation_steps: u32,
    pub learning_rate: f64,
    pub lr_scheduler: LrScheduler,
    pub lr_warmup_steps: u32,
    pub train_text_encoder: bool,
    pub prior: Option<PriorPreservation>,
    pub hflip: bool,
    pub center_crop: bool,
    pub seed: u64,
    pub mixed_precision: Precision,
    pub adam: Adam,
    pub samples: SamplePlan,
    /// The training state is saved after every so many steps, so that a crash loses less. 0 = only at the end.
    pub checkpointing_steps: u32,
    /// Prompts are padded to 77 tokens in training, as they are in drawing. The tutorial does not.
    pub pad_tokens: bool,
    /// Each photo has its own prompt beside it, in `NAME.EXT.txt`, in place of the instance prompt.
    pub read_prompts_from_txts: bool,
    /// A VAE to draw class images and samples with and to export; photos are still encoded with the base model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained_vae_name_or_path: Option<String>,
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
            train_text_encoder: true,
            prior: Some(PriorPreservation {
                num_class_images: 50,
                prior_loss_weight: 1.0,
            }),
            hflip: false,
            center_crop: false,
            seed: 1337,
            mixed_precision: Precision::No,
            adam: Adam::default(),
            samples: SamplePlan::default(),
            checkpointing_steps: 100,
            pad_tokens: false,
            read_prompts_from_txts: false,
            pretrained_vae_name_or_path: None,
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

/// Every problem of a draft, not just the first. Never empty.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct RecipeProblems(pub Vec<RecipeProblem>);

impl std::fmt::Display for RecipeProblems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join("; "))
    }
}

/// What is wrong with one field of a draft, with its numbers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RecipeProblem {
    #[error("choose a base model: `starter`, the path of a diffusers folder, .safetensors or .ckpt file, or a Hub id")]
    NoBaseModel,
    #[error("add at least one subject")]
    NoConcept,
    #[error("subject {}: the instance prompt is empty; try `photo of zwx dog`", .concept + 1)]
    EmptyInstancePrompt { concept: usize },
    #[error("subject {}: no folder of photos is given", .concept + 1)]
    NoInstanceData { concept: usize },
    #[error("subject {}: prior preservation needs a class prompt; try `photo of a dog`", .concept + 1)]
    NoClassPrompt { concept: usize },
    #[error("subject {}: prior preservation needs a folder for the class images", .concept + 1)]
    NoClassData { concept: usize },
    #[error("{field} is {got}; it must be between {min} and {max}")]
    OutOfRange {
        field: &'static str,
        got: f64,
        min: f64,
        max: f64,
    },
    #[error("resolution is {got}; it must be a multiple of 8 from 64 to 1024, for example {nearest}")]
    Resolution { got: u32, nearest: u32 },
}

impl RecipeProblem {
    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoBaseModel => "no_base_model",
            Self::NoConcept => "no_concept",
            Self::EmptyInstancePrompt { .. } => "empty_instance_prompt",
            Self::NoInstanceData { .. } => "no_instance_data",
            Self::NoClassPrompt { .. } => "no_class_prompt",
            Self::NoClassData { .. } => "no_class_data",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Resolution { .. } => "resolution",
        }
    }

    /// Path of the field in the draft's JSON, such as `concepts.0.class_prompt`.
    pub fn field(&self) -> String {
        match self {
            Self::NoBaseModel => "pretrained_model_name_or_path".into(),
            Self::NoConcept => "concepts".into(),
            Self::EmptyInstancePrompt { concept } => format!("concepts.{concept}.instance_prompt"),
            Self::NoInstanceData { concept } => format!("concepts.{concept}.instance_data_dir"),
            Self::NoClassPrompt { concept } => format!("concepts.{concept}.class_prompt"),
            Self::NoClassData { concept } => format!("concepts.{concept}.class_data_dir"),
            Self::OutOfRange { field, .. } => (*field).into(),
            Self::Resolution { .. } => "resolution".into(),
        }
    }
}

impl RecipeDraft {
    /// All problems at once, or the recipe.
    ///
    /// # Errors
    /// Every field that is missing, out of range or at odds with another.
    pub fn check(self) -> Result<Recipe, RecipeProblems> {
        let mut problems = Vec::new();
        if self.pretrained_model_name_or_path.trim().is_empty() {
            problems.push(RecipeProblem::NoBaseModel);
        }
        self.check_concepts(&mut problems);
        self.check_ranges(&mut problems);
        if let Some(got) = self.resolution
            && (got % 8 != 0 || !(64..=1024).contains(&got))
        {
            let nearest = (got.saturating_add(4) / 8 * 8).clamp(64, 1024);
            problems.push(RecipeProblem::Resolution { got, nearest });
        }
        if problems.is_empty() {
            Ok(Recipe(self))
        } else {
            Err(RecipeProblems(problems))
        }
    }

    fn check_concepts(&self, problems: &mut Vec<RecipeProblem>) {
        let blank = |text: &Option<String>| text.as_deref().is_none_or(|t| t.trim().is_empty());
        if self.concepts.is_empty() {
            problems.push(RecipeProblem::NoConcept);
        }
        for (concept, c) in self.concepts.iter().enumerate() {
            if c.instance_prompt.trim().is_empty() {
                problems.push(RecipeProblem::EmptyInstancePrompt { concept });
            }
            if c.instance_data_dir.trim().is_empty() {
                problems.push(RecipeProblem::NoInstanceData { concept });
            }
            if self.prior.is_some() && blank(&c.class_prompt) {
                problems.push(RecipeProblem::NoClassPrompt { concept });
            }
            if self.prior.is_some() && blank(&c.class_data_dir) {
                problems.push(RecipeProblem::NoClassData { concept });
            }
        }
    }

    fn check_ranges(&self, problems: &mut Vec<RecipeProblem>) {
        let mut within = |field: &'static str, got: f64, min: f64, max: f64| {
            // NaN is not within any range.
            if !(min..=max).contains(&got) {
                problems.push(RecipeProblem::OutOfRange { field, got, min, max });
            }
        };
        within("max_train_steps", f64::from(self.max_train_steps), 1.0, 1e6);
        within("train_batch_size", f64::from(self.train_batch_size), 1.0, 64.0);
        within("sample_batch_size", f64::from(self.sample_batch_size), 1.0, 64.0);
        let accumulation = f64::from(self.gradient_accumulation_steps);
        within("gradient_accumulation_steps", accumulation, 1.0, 1024.0);
        within("learning_rate", self.learning_rate, 0.0, 1.0);
        within("adam.adam_beta1", self.adam.adam_beta1, 0.0, 0.999_999);
        within("adam.adam_beta2", self.adam.adam_beta2, 0.0, 0.999_999);
        within("adam.adam_weight_decay", self.adam.adam_weight_decay, 0.0, 10.0);
        within("adam.adam_epsilon", self.adam.adam_epsilon, 0.0, 1.0);
        within("adam.max_grad_norm", self.adam.max_grad_norm, 0.0, 1e9);
        if let Some(prior) = &self.prior {
            within("prior.num_class_images", f64::from(prior.num_class_images), 1.0, 1e5);
            within("prior.prior_loss_weight", prior.prior_loss_weight, 0.0, 100.0);
        }
        let samples = &self.samples;
        within("samples.n_save_sample", f64::from(samples.n_save_sample), 1.0, 64.0);
        within("samples.save_guidance_scale", samples.save_guidance_scale, 0.0, 100.0);
        within(
            "samples.save_infer_steps",
            f64::from(samples.save_infer_steps),
            1.0,
            1000.0,
        );
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
