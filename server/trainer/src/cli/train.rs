//! `train`: the tutorial's command on folders of photos, without the server. What is left in `--output_dir` is what the
//! script leaves there; our own state lives in `.likeness/` below it.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use app::event::EventKind;
use app::recipe::{Adam, Concept, LrScheduler, Precision, PriorPreservation, Recipe, RecipeDraft, STARTER, SamplePlan};
use serde::de::DeserializeOwned;
use trainer::dreambooth::{self, Results, Run, Stop, TutorialFolders};
use trainer::events::{EventLog, Lock};
use trainer::{dataset, defaults, device, store};

use super::progress::Progress;
use super::train_args::{Preset, TrainArgs};
use super::{WrongUse, status};

/// Without `--seed`.
const SEED: u64 = 1337;

pub fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let device = device::open(args.device.as_deref()).map_err(|e| WrongUse(format!("--device: {e}")))?;
    let concepts = concepts(args)?;
    let recipe = recipe(args, concepts.clone())?
        .check()
        .map_err(|problems| WrongUse(problems.to_string()))?;
    let folder = args.output_dir.join(".likeness");
    store::make_folder(&folder)?;
    let lock = Lock::take(&folder)?;
    let fresh = begin(&folder, &recipe)?;
    let log = EventLog::continue_in(lock, Box::new(Progress::new()))?;
    for message in ineffective(args) {
        let code = "no_effect".into();
        log.emit(EventKind::Warning { code, message })?;
    }
    if !fresh {
        tracing::info!(
            "taking up the run in {}; delete that folder to start over",
            folder.display()
        );
    }
    let run = Run {
        results: Results::Tutorial(TutorialFolders {
            output_dir: args.output_dir.clone(),
            args: args_json(args, &recipe, &concepts)?,
            save_interval: args.save_interval,
            save_min_steps: args.save_min_steps,
            late: args.strict_tutorial,
        }),
        data_folder: std::env::current_dir()?,
        stop: Stop::watch(&folder).context("cannot catch signals")?,
        folder,
        log,
        recipe,
        device,
    };
    match dreambooth::train(&run) {
        Ok(ended) => Ok(status(ended)),
        Err(error) => {
            let failure = error.failure();
            run.log.emit(EventKind::Failed { failure })?;
            run.log.flush()?;
            Err(error.into())
        }
    }
}

/// Takes an unfinished run of the same recipe up; clears what another one left. Whether this run is a new one.
fn begin(folder: &Path, recipe: &Recipe) -> anyhow::Result<bool> {
    let path = folder.join("recipe.json");
    let json = serde_json::to_vec_pretty(recipe)?;
    let unfinished = dreambooth::state::state_path(folder).is_file();
    // A file that an earlier stop was asked with must not end this run.
    let mut stale = vec!["stop"];
    let same = unfinished && std::fs::read(&path).is_ok_and(|before| before == json);
    if !same {
        stale.extend(["events.jsonl", "samples"]);
    }
    if !same && recipe.resume_from_checkpoint.is_none() {
        stale.extend(["state", "checkpoints"]);
    }
    for name in stale {
        let path = folder.join(name);
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    store::write_atomic(&path, &json)?;
    Ok(!same)
}

/// From `--concepts_list`, or from the four flags.
fn concepts(args: &TrainArgs) -> anyhow::Result<Vec<Concept>> {
    let Some(path) = &args.concepts_list else {
        let text = |path: &Option<std::path::PathBuf>| path.as_ref().map(|p| p.to_string_lossy().into_owned());
        let Some(instance_data_dir) = text(&args.instance_data_dir) else {
            return Err(WrongUse("give a folder of photos with --instance_data_dir".into()).into());
        };
        return Ok(vec![Concept {
            instance_prompt: args.instance_prompt.clone().unwrap_or_default(),
            instance_data_dir,
            class_prompt: args.class_prompt.clone(),
            class_data_dir: text(&args.class_data_dir),
        }]);
    };
    let wrong = |e: &dyn std::fmt::Display| WrongUse(format!("--concepts_list: {}: {e}", path.display()));
    let file = File::open(path).map_err(|e| wrong(&e))?;
    Ok(serde_json::from_reader(file).map_err(|e| wrong(&e))?)
}

/// Flags, then the preset's or the starter's settings, then the script's defaults.
fn recipe(args: &TrainArgs, concepts: Vec<Concept>) -> anyhow::Result<RecipeDraft> {
    let ours = ours(args);
    let script = RecipeDraft {
        max_train_steps: 0,
        train_batch_size: 4,
        learning_rate: 5e-6,
        lr_warmup_steps: 500,
        resolution: Some(512),
        train_text_encoder: false,
        prior: Some(PriorPreservation {
            num_class_images: 100,
            prior_loss_weight: 1.0,
        }),
        ..RecipeDraft::default()
    };
    let unset = ours.as_ref().unwrap_or(&script);
    let prior_unset = unset.prior.clone().unwrap_or(PriorPreservation {
        num_class_images: 100,
        prior_loss_weight: 1.0,
    });
    let train_batch_size = args.train_batch_size.unwrap_or(unset.train_batch_size);
    let gradient_accumulation_steps = args.gradient_accumulation_steps.unwrap_or(1);
    let mut learning_rate = args.learning_rate.unwrap_or(unset.learning_rate);
    if args.scale_lr {
        learning_rate *= f64::from(gradient_accumulation_steps) * f64::from(train_batch_size);
    }
    let mut draft = RecipeDraft {
        pretrained_model_name_or_path: args.pretrained_model_name_or_path.clone(),
        pretrained_vae_name_or_path: args.pretrained_vae_name_or_path.clone(),
        concepts,
        resolution: args.resolution.or(unset.resolution),
        max_train_steps: args.max_train_steps.unwrap_or(unset.max_train_steps),
        train_batch_size,
        sample_batch_size: args.sample_batch_size.unwrap_or(unset.sample_batch_size),
        gradient_accumulation_steps,
        learning_rate,
        lr_scheduler: word("lr_scheduler", args.lr_scheduler.as_deref())?.unwrap_or(LrScheduler::Constant),
        lr_warmup_steps: args.lr_warmup_steps.unwrap_or(unset.lr_warmup_steps),
        train_text_encoder: args.train_text_encoder || (ours.is_some() && unset.train_text_encoder),
        prior: args.with_prior_preservation.then_some(PriorPreservation {
            num_class_images: args.num_class_images.unwrap_or(prior_unset.num_class_images),
            prior_loss_weight: args.prior_loss_weight.unwrap_or(prior_unset.prior_loss_weight),
        }),
        hflip: args.hflip,
        center_crop: args.center_crop,
        pad_tokens: args.pad_tokens || !args.strict_tutorial,
        read_prompts_from_txts: args.read_prompts_from_txts,
        seed: args.seed.unwrap_or(SEED),
        mixed_precision: word("mixed_precision", args.mixed_precision.as_deref())?.unwrap_or(Precision::No),
        adam: Adam {
            adam_beta1: args.adam_beta1,
            adam_beta2: args.adam_beta2,
            adam_weight_decay: args.adam_weight_decay,
            adam_epsilon: args.adam_epsilon,
            max_grad_norm: args.max_grad_norm,
        },
        samples: SamplePlan {
            save_sample_prompt: args.save_sample_prompt.clone().unwrap_or_default(),
            save_sample_negative_prompt: args.save_sample_negative_prompt.clone().unwrap_or_default(),
            n_save_sample: args.n_save_sample.unwrap_or(unset.samples.n_save_sample),
            sample_interval: args.validation_steps.unwrap_or(0),
            save_guidance_scale: args.save_guidance_scale,
            save_infer_steps: args.save_infer_steps.unwrap_or(unset.samples.save_infer_steps),
        },
        checkpointing_steps: args.checkpointing_steps,
        checkpoints_total_limit: args.checkpoints_total_limit,
        resume_from_checkpoint: args.resume_from_checkpoint.clone(),
        lr_num_cycles: args.lr_num_cycles,
        lr_power: args.lr_power,
        text_encoder_learning_rate: args.text_encoder_learning_rate,
        stop_text_encoder_at: args.stop_text_encoder_at,
        snr_gamma: args.snr_gamma,
        offset_noise: args.offset_noise.unwrap_or(0.0),
        use_ema: args.use_ema,
        ema_decay: args.ema_decay,
        use_8bit_adam: args.use_8bit_adam,
        gradient_checkpointing: args.gradient_checkpointing,
        strict_tutorial: args.strict_tutorial,
    };
    if args.max_train_steps.is_none() && (args.num_train_epochs.is_some() || draft.max_train_steps == 0) {
        draft.max_train_steps = steps_of_epochs(args.num_train_epochs.unwrap_or(1), &draft)?;
    }
    Ok(draft)
}

/// Our own settings for flags that are not given, where a preset or the starter asks for them.
fn ours(args: &TrainArgs) -> Option<RecipeDraft> {
    let starter = args.pretrained_model_name_or_path == STARTER;
    let base = defaults::recipe(&args.pretrained_model_name_or_path);
    if args.preset.is_none() && !starter {
        return None;
    }
    let Some(preset) = args.preset.filter(|_| !starter) else {
        return Some(base);
    };
    let prior = |num_class_images| {
        Some(PriorPreservation {
            num_class_images,
            prior_loss_weight: 1.0,
        })
    };
    let (max_train_steps, learning_rate, train_text_encoder, prior) = match preset {
        Preset::Person => (1000, 1e-6, true, prior(200)),
        Preset::Animal => (800, 1e-6, true, prior(50)),
        Preset::Object => (600, 2e-6, true, prior(100)),
        Preset::Style => (1000, 2e-6, false, None),
    };
    Some(RecipeDraft {
        max_train_steps,
        learning_rate,
        train_text_encoder,
        prior,
        ..base
    })
}

/// The script counts epochs over the longer of photos and class images, in updates.
fn steps_of_epochs(epochs: u32, draft: &RecipeDraft) -> anyhow::Result<u32> {
    let mut photos = 0;
    for concept in &draft.concepts {
        photos += dataset::list(Path::new(&concept.instance_data_dir))?.photos.len();
    }
    let class_images = draft.prior.as_ref().map_or(0, |prior| prior.num_class_images as usize) * draft.concepts.len();
    let updates = photos
        .max(class_images)
        .div_ceil(draft.train_batch_size.max(1) as usize)
        .div_ceil(draft.gradient_accumulation_steps.max(1) as usize);
    Ok(epochs.saturating_mul(updates as u32))
}

/// One of an enum's words, as in recipe.json.
fn word<T: DeserializeOwned>(flag: &str, text: Option<&str>) -> Result<Option<T>, WrongUse> {
    let parse = |text: &str| serde_json::from_value(text.into());
    text.map(parse)
        .transpose()
        .map_err(|error| WrongUse(format!("--{flag}: {error}")))
}

/// What was asked for and changes nothing, in a sentence each.
fn ineffective(args: &TrainArgs) -> Vec<String> {
    let class_flags = args.class_prompt.is_some() || args.class_data_dir.is_some() || args.num_class_images.is_some();
    let cases = [
        (
            class_flags && !args.with_prior_preservation,
            "the class flags have no effect without --with_prior_preservation",
        ),
        (
            args.not_cache_latents,
            "--not_cache_latents has no effect: photos are encoded once, and latents drawn anew in every step",
        ),
        (
            args.revision.is_some(),
            "--revision has no effect on a model that is not from the Hub",
        ),
        (
            args.tokenizer_name.is_some(),
            "--tokenizer_name has no effect: the base model's own tokenizer is used",
        ),
        (
            args.logging_dir.is_some() || args.log_interval.is_some(),
            "--logging_dir and --log_interval have no effect: every step is logged in .likeness/events.jsonl",
        ),
        (
            args.push_to_hub || args.hub_token.is_some() || args.hub_model_id.is_some(),
            "the --push_to_hub flags have no effect, as in the script",
        ),
    ];
    let told = cases.into_iter().filter(|(given, _)| *given);
    told.map(|(_, sentence)| sentence.to_owned()).collect()
}

/// All settings under the script's names, as used, for `args.json`.
fn args_json(args: &TrainArgs, recipe: &Recipe, concepts: &[Concept]) -> anyhow::Result<serde_json::Value> {
    let mut json = serde_json::to_value(args)?;
    let prior = recipe.prior.as_ref();
    let used = serde_json::json!({
        "concepts_list": concepts,
        "resolution": recipe.resolution,
        "max_train_steps": recipe.max_train_steps,
        "train_batch_size": recipe.train_batch_size,
        "sample_batch_size": recipe.sample_batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler": recipe.lr_scheduler,
        "lr_warmup_steps": recipe.lr_warmup_steps,
        "train_text_encoder": recipe.train_text_encoder,
        "num_class_images": prior.map(|p| p.num_class_images),
        "prior_loss_weight": prior.map(|p| p.prior_loss_weight),
        "seed": recipe.seed,
        "n_save_sample": recipe.samples.n_save_sample,
        "save_infer_steps": recipe.samples.save_infer_steps,
    });
    if let (Some(json), serde_json::Value::Object(used)) = (json.as_object_mut(), used) {
        json.extend(used);
    }
    Ok(json)
}
