//! What can be wrong with a recipe, and the search for all of it.

use super::{LrScheduler, MixedPrecision, POLYNOMIAL_END, Recipe, RecipeDraft};

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
    #[error("revision is `{got}`; it must be a branch, a tag or a commit, such as main or fp16")]
    NoRevision { got: String },
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
    #[error("learning_rate is {got}; the polynomial schedule ends at {end}, so it must begin above that")]
    BelowPolynomialEnd { got: f64, end: f64 },
    #[error(
        "low_memory changes each weight as soon as its gradient is there, so that there is nothing to add to: gradient_accumulation_steps is {got} and must be 1"
    )]
    LowMemoryAccumulates { got: u32 },
    #[error("low_memory keeps weights in bf16 and cannot compute in fp16; choose bf16 or auto")]
    LowMemoryInFp16,
    #[error("low_memory has no room for an average of the weights, which is in f32; leave use_ema out")]
    LowMemoryAverages,
    #[error("resolution is {got}; it must be a multiple of 8 from 64 to 1024, for example {nearest}")]
    Resolution { got: u32, nearest: u32 },
}

impl RecipeProblem {
    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoBaseModel => "no_base_model",
            Self::NoRevision { .. } => "no_revision",
            Self::NoConcept => "no_concept",
            Self::EmptyInstancePrompt { .. } => "empty_instance_prompt",
            Self::NoInstanceData { .. } => "no_instance_data",
            Self::NoClassPrompt { .. } => "no_class_prompt",
            Self::NoClassData { .. } => "no_class_data",
            Self::OutOfRange { .. } => "out_of_range",
            Self::BelowPolynomialEnd { .. } => "below_polynomial_end",
            Self::LowMemoryAccumulates { .. } => "low_memory_accumulates",
            Self::LowMemoryInFp16 => "low_memory_in_fp16",
            Self::LowMemoryAverages => "low_memory_averages",
            Self::Resolution { .. } => "resolution",
        }
    }

    /// Path of the field in the draft's JSON, such as `concepts.0.class_prompt`.
    pub fn field(&self) -> String {
        match self {
            Self::NoBaseModel => "pretrained_model_name_or_path".into(),
            Self::NoRevision { .. } => "revision".into(),
            Self::NoConcept => "concepts".into(),
            Self::EmptyInstancePrompt { concept } => format!("concepts.{concept}.instance_prompt"),
            Self::NoInstanceData { concept } => format!("concepts.{concept}.instance_data_dir"),
            Self::NoClassPrompt { concept } => format!("concepts.{concept}.class_prompt"),
            Self::NoClassData { concept } => format!("concepts.{concept}.class_data_dir"),
            Self::OutOfRange { field, .. } => (*field).into(),
            Self::BelowPolynomialEnd { .. } => "learning_rate".into(),
            Self::LowMemoryAccumulates { .. } => "gradient_accumulation_steps".into(),
            Self::LowMemoryInFp16 => "mixed_precision".into(),
            Self::LowMemoryAverages => "use_ema".into(),
            Self::Resolution { .. } => "resolution".into(),
        }
    }
}

/// Whether a repository may have a revision of this name: git's rules, as far as they keep it from leading elsewhere when
/// it becomes part of a path or an address.
pub fn is_revision(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
    let parts = || name.split('/');
    (1..=200).contains(&name.len())
        && name.chars().all(plain)
        && !name.contains("..")
        && parts().all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'))
}

/// Whether a text has the form of a Hub id, `owner/name`. Only the machine that trains knows whether it is a path.
pub fn may_be_hub_id(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    let text = text.trim();
    let is_file = text.ends_with(".safetensors") || text.ends_with(".ckpt");
    !is_file
        && text
            .split_once('/')
            .is_some_and(|(owner, name)| is_part(owner) && is_part(name))
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
        if let Some(got) = self.revision.as_deref().filter(|revision| !is_revision(revision)) {
            problems.push(RecipeProblem::NoRevision { got: got.to_owned() });
        }
        self.check_concepts(&mut problems);
        self.check_ranges(&mut problems);
        if let Some(got) = self.resolution
            && (got % 8 != 0 || !(64..=1024).contains(&got))
        {
            let nearest = (got.saturating_add(4) / 8 * 8).clamp(64, 1024);
            problems.push(RecipeProblem::Resolution { got, nearest });
        }
        if self.lr_scheduler == LrScheduler::Polynomial && self.learning_rate <= POLYNOMIAL_END {
            let (got, end) = (self.learning_rate, POLYNOMIAL_END);
            problems.push(RecipeProblem::BelowPolynomialEnd { got, end });
        }
        self.check_low_memory(&mut problems);
        if problems.is_empty() {
            Ok(Recipe(self))
        } else {
            Err(RecipeProblems(problems))
        }
    }

    fn check_low_memory(&self, problems: &mut Vec<RecipeProblem>) {
        if !self.low_memory {
            return;
        }
        if self.gradient_accumulation_steps > 1 {
            let got = self.gradient_accumulation_steps;
            problems.push(RecipeProblem::LowMemoryAccumulates { got });
        }
        if self.mixed_precision == MixedPrecision::Fp16 {
            problems.push(RecipeProblem::LowMemoryInFp16);
        }
        if self.use_ema {
            problems.push(RecipeProblem::LowMemoryAverages);
        }
    }

    fn check_concepts(&self, problems: &mut Vec<RecipeProblem>) {
        let blank = |text: &Option<String>| text.as_deref().is_none_or(|t| t.trim().is_empty());
        if self.concepts.is_empty() {
            problems.push(RecipeProblem::NoConcept);
        }
        for (concept, c) in self.concepts.iter().enumerate() {
            // Captions take its place.
            if c.instance_prompt.trim().is_empty() && !self.read_prompts_from_txts {
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
        if let Some(rate) = self.text_encoder_learning_rate {
            within("text_encoder_learning_rate", rate, 0.0, 1.0);
        }
        within("lr_num_cycles", f64::from(self.lr_num_cycles), 1.0, 1000.0);
        within("lr_power", self.lr_power, 0.0, 100.0);
        if let Some(rank) = self.lora_rank {
            within("lora_rank", f64::from(rank), 1.0, 1024.0);
        }
        if let Some(alpha) = self.lora_alpha {
            within("lora_alpha", alpha, 1e-3, 1e4);
        }
        if let Some(gamma) = self.snr_gamma {
            // At 0 every weight would be 0.
            within("snr_gamma", gamma, 1e-3, 1e6);
        }
        within("offset_noise", self.offset_noise, 0.0, 1.0);
        within("ema_decay", self.ema_decay, 0.0, 1.0);
        if let Some(limit) = self.checkpoints_total_limit {
            within("checkpoints_total_limit", f64::from(limit), 1.0, 1000.0);
        }
        within("adam.adam_beta1", self.adam.adam_beta1, 0.0, 0.999_999);
        within("adam.adam_beta2", self.adam.adam_beta2, 0.0, 0.999_999);
        within("adam.adam_weight_decay", self.adam.adam_weight_decay, 0.0, 10.0);
        within("adam.adam_epsilon", self.adam.adam_epsilon, 0.0, 1.0);
        within("adam.max_grad_norm", self.adam.max_grad_norm, 0.0, 1e9);
        if let Some(prior) = &self.prior {
            within("prior.num_class_images", f64::from(prior.num_class_images), 1.0, 1e5);
            within("prior.prior_loss_weight", prior.prior_loss_weight, 0.0, 100.0);
            within("prior.class_guidance_scale", prior.class_guidance_scale, 0.0, 100.0);
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
}
