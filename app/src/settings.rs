//! Every setting of a recipe by the tutorial's own name: where it lives in the draft, the tutorial's value, what it
//! does. The page's "All settings" is made from this table, and what is typed there becomes a draft here.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::recipe::RecipeDraft;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    Switch,
    /// A whole number; `optional` ones may be left empty.
    Whole {
        optional: bool,
    },
    Number {
        optional: bool,
    },
    Text,
    Choice(&'static [&'static str]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Training,
    Prior,
    Samples,
    Optimizer,
    Photos,
}

impl Group {
    pub const ALL: [Self; 5] = [
        Self::Training,
        Self::Prior,
        Self::Samples,
        Self::Optimizer,
        Self::Photos,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Training => "Training",
            Self::Prior => "Prior preservation",
            Self::Samples => "Samples",
            Self::Optimizer => "Optimizer",
            Self::Photos => "Photos",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The tutorial's flag without its dashes.
    pub name: &'static str,
    /// Path in the draft's JSON, the same that `RecipeProblem::field` reports.
    pub path: &'static str,
    pub kind: SettingKind,
    pub group: Group,
    /// What the tutorial's run uses.
    pub tutorial: &'static str,
    pub help: &'static str,
}

/// What was typed, by path, as typed. Only what differs from the defaults is here.
pub type Typed = BTreeMap<String, String>;

/// A text that does not fit its field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypedProblem {
    #[error("{name} is a whole number, such as {example}")]
    NotWhole { name: &'static str, example: String },
    #[error("{name} is a number, such as {example}")]
    NotANumber { name: &'static str, example: String },
}

const WHOLE: SettingKind = SettingKind::Whole { optional: false };
const WHOLE_OR_NONE: SettingKind = SettingKind::Whole { optional: true };
const NUMBER: SettingKind = SettingKind::Number { optional: false };
const NUMBER_OR_NONE: SettingKind = SettingKind::Number { optional: true };
const SCHEDULERS: SettingKind = SettingKind::Choice(&[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
]);
const PRECISIONS: SettingKind = SettingKind::Choice(&["auto", "no", "fp16", "bf16"]);

const fn setting(
    name: &'static str,
    path: &'static str,
    kind: SettingKind,
    group: Group,
    tutorial: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        path,
        kind,
        group,
        tutorial,
        help,
    }
}

use Group::{Optimizer, Photos, Prior, Samples, Training};
use SettingKind::{Switch, Text};

/// In the order in which they are shown. One setting in two lines: a table to read.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    setting("max_train_steps", "max_train_steps", WHOLE, Training, "800",
        "How long it trains. Too few: no likeness. Too many: every picture looks like your photos."),
    setting("learning_rate", "learning_rate", NUMBER, Training, "1e-6",
        "How far each step moves the model. Ten times too high ruins it within a few dozen steps."),
    setting("train_text_encoder", "train_text_encoder", Switch, Training, "on",
        "Also trains the part that reads words. Better likeness, more memory."),
    setting("seed", "seed", WHOLE, Training, "1337",
        "Start of all randomness. The same seed and photos give the same result again."),
    setting("train_batch_size", "train_batch_size", WHOLE, Training, "1",
        "Photos per step. More is steadier and needs more memory."),
    setting("gradient_accumulation_steps", "gradient_accumulation_steps", WHOLE, Training, "1",
        "Batches added up in each step before the model is changed: a larger batch without its memory."),
    setting("mixed_precision", "mixed_precision", PRECISIONS, Training, "fp16",
        "Number format while computing. auto: 16 bits on a graphics card. no: 32, slower and with more memory. A CPU computes in 32 whatever is chosen."),
    setting("gradient_checkpointing", "gradient_checkpointing", Switch, Training, "off",
        "Computes some of each step twice to need less memory."),
    setting("stop_text_encoder_at", "stop_text_encoder_at", WHOLE_OR_NONE, Training, "none",
        "After so many steps the part that reads words stays as it is. Empty: it learns to the end."),
    setting("lora_rank", "lora_rank", WHOLE_OR_NONE, Training, "none",
        "Trains a small addition to the model (LoRA) in place of the model: a file of a few megabytes. 4 to 32 are usual, \
         with a learning rate near 1e-4. Empty: the model itself."),
    setting("lora_alpha", "lora_alpha", NUMBER_OR_NONE, Training, "none",
        "How much a LoRA counts: alpha divided by rank. Empty: once."),
    setting("snr_gamma", "snr_gamma", NUMBER_OR_NONE, Training, "none",
        "Min-SNR weighting: nearly clean pictures count less. 5 is usual. Empty: all count alike."),
    setting("offset_noise", "offset_noise", NUMBER, Training, "0",
        "Noise that shifts whole pictures, so that very dark and very bright ones are learned. 0.05 to 0.1 for styles."),
    setting("checkpointing_steps", "checkpointing_steps", WHOLE, Training, "none",
        "Saves the training state after every so many steps, so that a power cut loses less; of a large model less often. 0: only at the end."),
    setting("checkpoints_total_limit", "checkpoints_total_limit", WHOLE_OR_NONE, Training, "none",
        "Keeps so many of the last saved states, after the end too. Empty: the last one, until the end."),
    setting("strict_tutorial", "strict_tutorial", Switch, Training, "on",
        "Keeps the known faults of the tutorial's script, for comparison with it."),
    setting("with_prior_preservation", "prior", Switch, Prior, "on",
        "Trains on pictures of the kind beside your photos, so that the model does not forget others of the kind."),
    setting("num_class_images", "prior.num_class_images", WHOLE, Prior, "50",
        "How many pictures of the kind are drawn before training."),
    setting("prior_loss_weight", "prior.prior_loss_weight", NUMBER, Prior, "1",
        "How much those pictures count beside your photos."),
    setting("class_guidance_scale", "prior.class_guidance_scale", NUMBER, Prior, "7.5",
        "How strictly those pictures follow their words. Less keeps their colours truer, and the subject comes later."),
    setting("sample_batch_size", "sample_batch_size", WHOLE, Prior, "4",
        "Pictures of the kind drawn at once."),
    setting("save_sample_prompt", "samples.save_sample_prompt", Text, Samples, "photo of zwx dog",
        "What the samples show. Empty: no samples."),
    setting("save_sample_negative_prompt", "samples.save_sample_negative_prompt", Text, Samples, "",
        "What the samples should not show."),
    setting("n_save_sample", "samples.n_save_sample", WHOLE, Samples, "4",
        "Pictures in each round of samples."),
    setting("save_interval", "samples.sample_interval", WHOLE, Samples, "10000",
        "A round of samples after every so many steps, beginning with the untrained model. 0: only at the end."),
    setting("save_infer_steps", "samples.save_infer_steps", WHOLE, Samples, "20",
        "Sampling steps for each picture. More is finer and slower; beyond 30 little changes."),
    setting("save_guidance_scale", "samples.save_guidance_scale", NUMBER, Samples, "7.5",
        "How strictly a sample follows its prompt."),
    setting("lr_scheduler", "lr_scheduler", SCHEDULERS, Optimizer, "constant",
        "How the learning rate changes over the run."),
    setting("lr_warmup_steps", "lr_warmup_steps", WHOLE, Optimizer, "0",
        "Steps during which the learning rate rises from zero. Not used by constant."),
    setting("lr_num_cycles", "lr_num_cycles", WHOLE, Optimizer, "1",
        "How often the learning rate starts again. Used by cosine_with_restarts alone."),
    setting("lr_power", "lr_power", NUMBER, Optimizer, "1",
        "How the learning rate falls: 1 straight, more is faster at first. Used by polynomial alone."),
    setting("text_encoder_learning_rate", "text_encoder_learning_rate", NUMBER_OR_NONE, Optimizer, "none",
        "A learning rate of its own for the part that reads words. Empty: the same."),
    setting("use_8bit_adam", "use_8bit_adam", Switch, Optimizer, "on",
        "Keeps the optimizer's memory in 8 bits: a quarter of the room."),
    setting("low_memory", "low_memory", Switch, Optimizer, "none",
        "Fits a graphics card of 6 GB. Weights are kept in 16 bits and rounded by chance, and the limit on each step holds for every tensor \
         by itself instead of for all together."),
    setting("use_ema", "use_ema", Switch, Optimizer, "none",
        "Samples and result come from a running average of the model: smoother, and slower to change."),
    setting("ema_decay", "ema_decay", NUMBER, Optimizer, "none",
        "How long that average remembers: 0.9999 is some ten thousand steps, less at the start of a run."),
    setting("adam_beta1", "adam.adam_beta1", NUMBER, Optimizer, "0.9",
        "How long the optimizer remembers directions."),
    setting("adam_beta2", "adam.adam_beta2", NUMBER, Optimizer, "0.999",
        "How long the optimizer remembers sizes."),
    setting("adam_weight_decay", "adam.adam_weight_decay", NUMBER, Optimizer, "0.01",
        "Pull of every weight towards zero."),
    setting("adam_epsilon", "adam.adam_epsilon", NUMBER, Optimizer, "1e-8",
        "Keeps the optimizer from dividing by zero."),
    setting("max_grad_norm", "adam.max_grad_norm", NUMBER, Optimizer, "not used",
        "One step may move the model at most this far. The tutorial's script declares it and leaves it out."),
    setting("pad_tokens", "pad_tokens", Switch, Training, "off",
        "Pads each caption to 77 tokens while training, as sampling does."),
    setting("resolution", "resolution", WHOLE_OR_NONE, Photos, "512",
        "Side of the training pictures in pixels, a multiple of 8. Empty: the model's own."),
    setting("hflip", "hflip", Switch, Photos, "off",
        "Mirrors photos half of the time. Not for faces, writing or anything with a left and a right."),
    setting("center_crop", "center_crop", Switch, Photos, "off",
        "Cuts the middle of a picture that is not square. Photos cropped on this page already are."),
    setting("holdout_photo", "holdout_photo", Switch, Photos, "off",
        "Of twelve photos or more, one is not trained on. What the model makes of it shows when it learns the others by heart."),
    setting("not_cache_latents", "not_cache_latents", Switch, Photos, "off",
        "Mirrors and cuts every photo anew for each step instead of once. Slower."),
];

pub fn find(path: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.path == path)
}

/// The draft's value as it would be typed: `on`, `1e-6`, `photo of zwx dog`; empty when there is none.
pub fn value(draft: &RecipeDraft, setting: &Setting) -> String {
    let whole = serde_json::to_value(draft).unwrap_or_default();
    let at = format!("/{}", setting.path.replace('.', "/"));
    match (setting.path, whole.pointer(&at)) {
        ("prior", found) => on_off(found.is_some_and(Value::is_object)),
        (_, Some(Value::Bool(b))) => on_off(*b),
        (_, Some(Value::String(text))) => text.clone(),
        // `2e-4` is easier to read than `0.0002`.
        (_, Some(Value::Number(n))) if n.as_f64().is_some_and(|x| x > 0.0 && x < 1e-3) => {
            format!("{:e}", n.as_f64().unwrap_or_default())
        }
        (_, Some(Value::Number(n))) => {
            let text = n.to_string();
            text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
        }
        _ => String::new(),
    }
}

fn on_off(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

/// `base` with what was typed in it, and what of it could not be read, by path. A text that cannot be read leaves
/// the base's value.
pub fn apply(base: &RecipeDraft, typed: &Typed) -> (RecipeDraft, Vec<(String, TypedProblem)>) {
    let mut draft = base.clone();
    let mut problems = Vec::new();
    // In the table's order, so that prior preservation is switched on before its numbers are set.
    for setting in SETTINGS {
        let Some(text) = typed.get(setting.path) else { continue };
        match read(setting, text.trim(), base) {
            Ok(read) => draft = with(draft, setting, read),
            Err(problem) => problems.push((setting.path.to_owned(), problem)),
        }
    }
    (draft, problems)
}

fn read(setting: &Setting, text: &str, base: &RecipeDraft) -> Result<Value, TypedProblem> {
    let name = setting.name;
    let example = || match value(base, setting) {
        empty if empty.is_empty() => setting.tutorial.to_owned(),
        some => some,
    };
    match setting.kind {
        Switch => Ok(json!(text == "on")),
        Text | SettingKind::Choice(_) => Ok(json!(text)),
        WHOLE_OR_NONE | NUMBER_OR_NONE if text.is_empty() => Ok(Value::Null),
        // Seeds are 64 bits wide; every other count is 32, and a larger one is out of any range anyway.
        SettingKind::Whole { .. } => {
            let most = if setting.path == "seed" {
                u64::MAX
            } else {
                u64::from(u32::MAX)
            };
            let found = text.parse::<u64>().ok().filter(|n| *n <= most);
            found.map(|n| json!(n)).ok_or_else(|| TypedProblem::NotWhole {
                name,
                example: example(),
            })
        }
        SettingKind::Number { .. } => {
            let found = text.replace(',', ".").parse::<f64>().ok().filter(|n| n.is_finite());
            found.map(|n| json!(n)).ok_or_else(|| TypedProblem::NotANumber {
                name,
                example: example(),
            })
        }
    }
}

/// `draft` with one value set by its path. Unchanged when the path leads nowhere (a number of a prior that is off).
fn with(draft: RecipeDraft, setting: &Setting, value: Value) -> RecipeDraft {
    if setting.path == "prior" {
        let prior = (value == Value::Bool(true)).then(|| draft.prior.clone().unwrap_or_default());
        return RecipeDraft { prior, ..draft };
    }
    let mut whole = serde_json::to_value(&draft).unwrap_or_default();
    let at = format!("/{}", setting.path.replace('.', "/"));
    if let Some(slot) = whole.pointer_mut(&at) {
        *slot = value;
    }
    serde_json::from_value(whole).unwrap_or(draft)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pairs: &[(&str, &str)]) -> Typed {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_setting_of_a_draft_is_in_the_table_once() {
        let whole = serde_json::to_value(RecipeDraft::default()).expect("serialises");
        let mut leaves = Vec::new();
        collect("", &whole, &mut leaves);
        leaves.push("prior".to_owned());
        // Set elsewhere on the page.
        leaves.retain(|path| path != "concepts" && path != "pretrained_model_name_or_path");
        // Photos of the page come without text files, and opaque.
        leaves.retain(|path| path != "read_prompts_from_txts" && path != "alpha_background");
        leaves.sort();
        let mut listed: Vec<&str> = SETTINGS.iter().map(|s| s.path).collect();
        listed.sort_unstable();
        assert_eq!(listed, leaves);
    }

    fn collect(path: &str, value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, inner) in fields {
                    let path = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    collect(&path, inner, into);
                }
            }
            _ => into.push(path.to_owned()),
        }
    }

    #[test]
    fn what_is_shown_can_be_typed_back() {
        let base = RecipeDraft::default();
        let all: Typed = SETTINGS.iter().map(|s| (s.path.to_owned(), value(&base, s))).collect();
        assert_eq!(apply(&base, &all), (base.clone(), Vec::new()));
        assert_eq!(find("learning_rate").map(|s| value(&base, s)).as_deref(), Some("1e-6"));
    }

    #[test]
    fn typed_texts_land_in_their_fields() {
        let base = RecipeDraft {
            prior: None,
            ..RecipeDraft::default()
        };
        let (draft, problems) = apply(
            &base,
            &typed(&[
                ("learning_rate", "2e-4"),
                ("prior", "on"),
                ("prior.num_class_images", "12"),
                ("resolution", "64"),
                ("lr_scheduler", "cosine"),
                ("adam.adam_beta1", "0,8"),
                ("snr_gamma", "5"),
                ("text_encoder_learning_rate", ""),
                ("stop_text_encoder_at", "240"),
            ]),
        );
        assert!(problems.is_empty());
        assert_eq!((draft.snr_gamma, draft.text_encoder_learning_rate), (Some(5.0), None));
        assert_eq!(draft.stop_text_encoder_at, Some(240));
        assert_eq!(draft.learning_rate, 2e-4);
        assert_eq!(draft.prior.map(|p| p.num_class_images), Some(12));
        assert_eq!(draft.resolution, Some(64));
        assert_eq!(draft.lr_scheduler, crate::recipe::LrScheduler::Cosine);
        assert_eq!(draft.adam.adam_beta1, 0.8);
    }

    #[test]
    fn texts_that_are_no_numbers_are_named_and_leave_the_default() {
        let base = RecipeDraft::default();
        let (draft, problems) = apply(&base, &typed(&[("max_train_steps", "many"), ("learning_rate", "")]));
        assert_eq!(draft, base);
        let words: Vec<String> = problems.iter().map(|(_, p)| p.to_string()).collect();
        assert_eq!(
            words,
            [
                "max_train_steps is a whole number, such as 800",
                "learning_rate is a number, such as 1e-6"
            ]
        );
    }

    #[test]
    fn numbers_of_a_prior_that_is_off_are_left_alone() {
        let (draft, problems) = apply(
            &RecipeDraft::default(),
            &typed(&[("prior", "off"), ("prior.num_class_images", "12")]),
        );
        assert_eq!(draft.prior, None);
        assert!(problems.is_empty());
    }
}
