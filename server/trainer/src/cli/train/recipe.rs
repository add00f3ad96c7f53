//! From flags to what is meant by them, and back.

use std::fs::File;
use std::path::{Path, PathBuf};

use app::recipe::{
    Adam, Concept, LORA_LEARNING_RATE, LrScheduler, PriorPreservation, RecipeDraft, STARTER, SamplePlan,
};
use trainer::{dataset, defaults};

use super::args::TrainArgs;
use crate::cli::WrongUse;

/// Without `--seed`.
const SEED: u64 = 1337;

/// Each flag as given; else as the preset or the starter has it; else the script's default.
pub fn draft(args: &TrainArgs) -> anyhow::Result<RecipeDraft> {
    let concepts = concepts(args)?;
    let ours = ours(args, &concepts)?;
    let is_ours = ours.is_some();
    let unset = ours.unwrap_or_else(script);
    // A preset draws class images wherever there is a class; with the starter alone they must be asked for.
    let has_class = concepts
        .iter()
        .all(|c| c.class_prompt.is_some() && c.class_data_dir.is_some());
    let subject = args.preset.and_then(|presets| presets.subject);
    let preset_prior = subject.is_some() && unset.prior.is_some() && has_class;
    let prior = unset.prior.unwrap_or(SCRIPT_PRIOR);
    let train_batch_size = args.train_batch_size.unwrap_or(unset.train_batch_size);
    let gradient_accumulation_steps = args.gradient_accumulation_steps.unwrap_or(1);
    let unset_rate = match args.lora_rank {
        Some(_) => unset.learning_rate.max(LORA_LEARNING_RATE),
        None => unset.learning_rate,
    };
    let mut learning_rate = args.learning_rate.unwrap_or(unset_rate);
    if args.scale_lr {
        learning_rate *= f64::from(gradient_accumulation_steps) * f64::from(train_batch_size);
    }
    let mut draft = RecipeDraft {
        pretrained_model_name_or_path: args.pretrained_model_name_or_path.clone(),
        revision: args.revision.clone(),
        pretrained_vae_name_or_path: args.pretrained_vae_name_or_path.clone(),
        tokenizer_name: args.tokenizer_name.clone(),
        concepts,
        resolution: args.resolution.or(unset.resolution),
        max_train_steps: args.max_train_steps.unwrap_or(unset.max_train_steps),
        train_batch_size,
        sample_batch_size: args.sample_batch_size.unwrap_or(unset.sample_batch_size),
        gradient_accumulation_steps,
        learning_rate,
        lr_scheduler: args.lr_scheduler.unwrap_or(LrScheduler::Constant),
        lr_warmup_steps: args.lr_warmup_steps.unwrap_or(unset.lr_warmup_steps),
        lr_num_cycles: args.lr_num_cycles,
        lr_power: args.lr_power,
        train_text_encoder: args.train_text_encoder.unwrap_or(is_ours && unset.train_text_encoder),
        text_encoder_learning_rate: args.text_encoder_learning_rate,
        stop_text_encoder_at: args.stop_text_encoder_at,
        lora_rank: args.lora_rank,
        lora_alpha: args.lora_alpha,
        snr_gamma: args.snr_gamma,
        offset_noise: args.offset_noise.unwrap_or(0.0),
        prior: args
            .with_prior_preservation
            .unwrap_or(preset_prior)
            .then_some(PriorPreservation {
                num_class_images: args.num_class_images.unwrap_or(prior.num_class_images),
                prior_loss_weight: args.prior_loss_weight.unwrap_or(prior.prior_loss_weight),
                class_guidance_scale: args.class_guidance_scale.unwrap_or(prior.class_guidance_scale),
            }),
        hflip: args.hflip,
        center_crop: args.center_crop,
        alpha_background: args.alpha_background,
        not_cache_latents: args.not_cache_latents,
        pad_tokens: args.pad_tokens || !args.strict_tutorial,
        read_prompts_from_txts: args.read_prompts_from_txts,
        holdout_photo: args.holdout_photo,
        seed: args.seed.unwrap_or(SEED),
        mixed_precision: args.mixed_precision.unwrap_or_default(),
        gradient_checkpointing: args.gradient_checkpointing,
        use_8bit_adam: args.use_8bit_adam,
        low_memory: args.low_memory,
        adam: Adam {
            adam_beta1: args.adam_beta1,
            adam_beta2: args.adam_beta2,
            adam_weight_decay: args.adam_weight_decay,
            adam_epsilon: args.adam_epsilon,
            max_grad_norm: args.max_grad_norm,
        },
        use_ema: args.use_ema,
        ema_decay: args.ema_decay,
        samples: SamplePlan {
            save_sample_prompt: args.save_sample_prompt.clone().unwrap_or_default(),
            save_sample_negative_prompt: args.save_sample_negative_prompt.clone().unwrap_or_default(),
            n_save_sample: args.n_save_sample.unwrap_or(unset.samples.n_save_sample),
            sample_interval: args.validation_steps.unwrap_or(0),
            save_guidance_scale: args.save_guidance_scale.unwrap_or(unset.samples.save_guidance_scale),
            save_infer_steps: args.save_infer_steps.unwrap_or(unset.samples.save_infer_steps),
        },
        checkpointing_steps: args.checkpointing_steps.unwrap_or(unset.checkpointing_steps),
        checkpoints_total_limit: args.checkpoints_total_limit,
        resume_from_checkpoint: args.resume_from_checkpoint.clone(),
        strict_tutorial: args.strict_tutorial,
    };
    if let Some(card) = args.preset.and_then(|presets| presets.card) {
        card.fill(&mut draft);
    }
    if args.max_train_steps.is_none() && (args.num_train_epochs.is_some() || draft.max_train_steps == 0) {
        draft.max_train_steps = steps_of_epochs(args.num_train_epochs.unwrap_or(1), &draft)?;
    }
    Ok(draft)
}

const SCRIPT_PRIOR: PriorPreservation = PriorPreservation {
    num_class_images: 100,
    prior_loss_weight: 1.0,
    class_guidance_scale: 7.5,
};

/// The script's defaults. Its steps come from its one epoch.
fn script() -> RecipeDraft {
    RecipeDraft {
        max_train_steps: 0,
        train_batch_size: 4,
        learning_rate: 5e-6,
        lr_warmup_steps: 500,
        resolution: Some(512),
        train_text_encoder: false,
        prior: Some(SCRIPT_PRIOR),
        ..RecipeDraft::default()
    }
}

/// Our own settings for flags that are not given, where a preset or the starter asks for them.
fn ours(args: &TrainArgs, concepts: &[Concept]) -> anyhow::Result<Option<RecipeDraft>> {
    let starter = args.pretrained_model_name_or_path == STARTER;
    let base = defaults::recipe(&args.pretrained_model_name_or_path);
    let Some(preset) = args.preset.and_then(|presets| presets.subject) else {
        return Ok(starter.then_some(base));
    };
    let mut draft = base;
    if starter {
        // A thousand times smaller, it has settings of its own, which the kind of subject scales.
        preset.kind().apply(&mut draft);
    } else {
        preset.fill(&mut draft, photos_of(concepts)?);
    }
    Ok(Some(draft))
}

/// Subjects, from `--concepts_list` or from the four flags. Their photos' folders are there.
fn concepts(args: &TrainArgs) -> anyhow::Result<Vec<Concept>> {
    let (flag, concepts) = match &args.concepts_list {
        Some(list) => ("concepts_list", listed(list)?),
        None => ("instance_data_dir", vec![single(args)?]),
    };
    for concept in &concepts {
        let folder = Path::new(&concept.instance_data_dir);
        // An empty name is told with the recipe's other problems.
        if !concept.instance_data_dir.is_empty() && !folder.is_dir() {
            let words = format!("--{flag}: there is no folder {}", folder.display());
            return Err(WrongUse(words).into());
        }
    }
    Ok(concepts)
}

fn single(args: &TrainArgs) -> Result<Concept, WrongUse> {
    let text = |path: &Option<PathBuf>| path.as_ref().map(|p| p.to_string_lossy().into_owned());
    let instance_data_dir = text(&args.instance_data_dir);
    Ok(Concept {
        instance_prompt: args.instance_prompt.clone().unwrap_or_default(),
        instance_data_dir: instance_data_dir
            .ok_or_else(|| WrongUse("give a folder of photos with --instance_data_dir".into()))?,
        class_prompt: args.class_prompt.clone(),
        class_data_dir: text(&args.class_data_dir),
    })
}

/// A file's subjects, or those of a list in place of its name.
fn listed(list: &str) -> Result<Vec<Concept>, WrongUse> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| WrongUse(format!("--concepts_list: {what}: {e}"));
    if list.trim_start().starts_with('[') {
        return serde_json::from_str(list).map_err(|e| wrong("the list", &e));
    }
    let file = File::open(list).map_err(|e| wrong(list, &e))?;
    serde_json::from_reader(file).map_err(|e| wrong(list, &e))
}

/// Photos of all subjects.
pub fn photos_of(concepts: &[Concept]) -> anyhow::Result<usize> {
    let mut photos = 0;
    for concept in concepts {
        photos += dataset::list(Path::new(&concept.instance_data_dir))?.photos.len();
    }
    Ok(photos)
}

/// The script counts epochs over the longer of photos and class images, in updates.
fn steps_of_epochs(epochs: u32, draft: &RecipeDraft) -> anyhow::Result<u32> {
    let photos = photos_of(&draft.concepts)?;
    let photos = photos - usize::from(draft.holds_out(photos));
    let class_images = draft.prior.as_ref().map_or(0, |prior| prior.num_class_images as usize) * draft.concepts.len();
    let updates = photos
        .max(class_images)
        .div_ceil(draft.train_batch_size.max(1) as usize)
        .div_ceil(draft.gradient_accumulation_steps.max(1) as usize);
    Ok(epochs.saturating_mul(updates as u32))
}

/// `args` with everything filled that was not given, so that they give `recipe` whatever our defaults are one day.
fn filled(args: &TrainArgs, recipe: &RecipeDraft) -> TrainArgs {
    let prior = recipe.prior.as_ref();
    TrainArgs {
        // In `concepts_list`.
        instance_prompt: None,
        instance_data_dir: None,
        class_prompt: None,
        class_data_dir: None,
        with_prior_preservation: Some(prior.is_some()),
        num_class_images: prior.map(|prior| prior.num_class_images),
        prior_loss_weight: prior.map(|prior| prior.prior_loss_weight),
        class_guidance_scale: prior.map(|prior| prior.class_guidance_scale),
        resolution: recipe.resolution,
        max_train_steps: Some(recipe.max_train_steps),
        num_train_epochs: None,
        train_batch_size: Some(recipe.train_batch_size),
        sample_batch_size: Some(recipe.sample_batch_size),
        gradient_accumulation_steps: Some(recipe.gradient_accumulation_steps),
        // Scaled already.
        learning_rate: Some(recipe.learning_rate),
        scale_lr: false,
        lr_scheduler: Some(recipe.lr_scheduler),
        lr_warmup_steps: Some(recipe.lr_warmup_steps),
        train_text_encoder: Some(recipe.train_text_encoder),
        seed: Some(recipe.seed),
        mixed_precision: Some(recipe.mixed_precision),
        use_8bit_adam: recipe.use_8bit_adam,
        gradient_checkpointing: recipe.gradient_checkpointing,
        low_memory: recipe.low_memory,
        n_save_sample: Some(recipe.samples.n_save_sample),
        save_guidance_scale: Some(recipe.samples.save_guidance_scale),
        save_infer_steps: Some(recipe.samples.save_infer_steps),
        checkpointing_steps: Some(recipe.checkpointing_steps),
        ..args.clone()
    }
}

/// All settings under the script's names, as used, for `args.json`: `--config` reads them back.
pub fn args_json(args: &TrainArgs, recipe: &RecipeDraft) -> serde_json::Result<serde_json::Value> {
    let mut json = serde_json::to_value(filled(args, recipe))?;
    json["concepts_list"] = serde_json::to_value(&recipe.concepts)?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    /// A folder with so many photos.
    fn photos(count: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for number in 0..count {
            let path = folder.path().join(format!("{number}.png"));
            image::RgbImage::new(8, 8).save(path).expect("saves");
        }
        folder
    }

    fn parsed(folder: &Path, flags: &str) -> TrainArgs {
        let mut words = vec!["train".into(), format!("--instance_data_dir={}", folder.display())];
        words.push("--instance_prompt=photo of zwx dog".into());
        words.extend(flags.split_whitespace().map(String::from));
        if !flags.contains("--pretrained_model_name_or_path") {
            words.push("--pretrained_model_name_or_path=models/sd15".into());
        }
        let matches = TrainArgs::augment_args(Command::new("train")).get_matches_from(words);
        TrainArgs::from_arg_matches(&matches).expect("flags")
    }

    fn of(folder: &Path, flags: &str) -> RecipeDraft {
        draft(&parsed(folder, flags)).expect("a draft")
    }

    #[test]
    fn what_is_not_given_is_as_in_the_script() {
        let photos = photos(6);
        let draft = of(photos.path(), "");
        assert_eq!((draft.resolution, draft.train_batch_size), (Some(512), 4));
        assert_eq!((draft.learning_rate, draft.lr_warmup_steps), (5e-6, 500));
        assert_eq!((draft.train_text_encoder, draft.prior), (false, None));
        // One epoch of six photos in batches of four.
        assert_eq!(draft.max_train_steps, 2);
    }

    #[test]
    fn epochs_are_counted_over_the_longer_of_photos_and_class_images() {
        let photos = photos(6);
        let steps = |flags: &str| of(photos.path(), flags).max_train_steps;
        let prior = "--with_prior_preservation --num_class_images=9 --class_data_dir=c --class_prompt=dog";
        assert_eq!(steps("--train_batch_size=1 --num_train_epochs=3"), 18);
        assert_eq!(steps(&format!("{prior} --train_batch_size=1 --num_train_epochs=3")), 27);
        assert_eq!(
            steps(&format!("{prior} --train_batch_size=2 --gradient_accumulation_steps=3")),
            2
        );
        assert_eq!(steps("--max_train_steps=5 --num_train_epochs=3"), 5);
    }

    #[test]
    fn the_rate_is_scaled_when_that_is_asked_for() {
        let photos = photos(1);
        let flags = "--learning_rate=1e-6 --train_batch_size=2 --gradient_accumulation_steps=3 --scale_lr";
        assert_eq!(of(photos.path(), flags).learning_rate, 6e-6);
    }

    #[test]
    fn a_preset_fills_what_is_not_given_and_nothing_else() {
        let photos = photos(12);
        let class = "--class_prompt=person --class_data_dir=c";
        let person = of(photos.path(), &format!("--preset=person {class}"));
        assert_eq!((person.max_train_steps, person.train_batch_size), (1200, 1));
        assert!(person.train_text_encoder);
        assert_eq!(person.prior.map(|p| p.num_class_images), Some(200));
        let own =
            format!("--preset=person {class} --max_train_steps=7 --num_class_images=9 --train_text_encoder=false");
        let own = of(photos.path(), &own);
        assert_eq!((own.max_train_steps, own.train_text_encoder), (7, false));
        assert_eq!(own.prior.map(|p| p.num_class_images), Some(9));
        assert_eq!(of(photos.path(), "--preset=person").prior, None, "there is no class");
        let style = of(photos.path(), &format!("--preset=style {class}"));
        assert_eq!((style.prior, style.train_text_encoder), (None, false));
    }

    #[test]
    fn a_preset_may_be_of_a_card_too() {
        let photos = photos(4);
        let both = of(photos.path(), "--preset=style,12gb");
        assert!(both.use_8bit_adam && both.gradient_checkpointing && both.prior.is_none());
        let card = of(photos.path(), "--preset=16gb");
        assert_eq!((card.use_8bit_adam, card.gradient_checkpointing), (true, false));
        assert_eq!(card.learning_rate, of(photos.path(), "").learning_rate);
        assert!(of(photos.path(), "--preset=24gb --use_8bit_adam").use_8bit_adam);
        assert!(of(photos.path(), "--preset=6gb").low_memory && !card.low_memory);
    }

    #[test]
    fn the_starter_has_settings_of_its_own() {
        let photos = photos(4);
        let starter = of(photos.path(), "--pretrained_model_name_or_path=starter");
        let its = defaults::recipe(STARTER);
        assert_eq!(
            (starter.max_train_steps, starter.learning_rate, starter.resolution),
            (its.max_train_steps, its.learning_rate, None)
        );
        let of_samples = |draft: &RecipeDraft| (draft.samples.save_guidance_scale, draft.samples.save_infer_steps);
        assert_eq!(of_samples(&starter), of_samples(&its));
        assert_ne!(of_samples(&starter), of_samples(&of(photos.path(), "")));
        assert_eq!(starter.checkpointing_steps, its.checkpointing_steps);
        assert!(starter.train_text_encoder);
        assert_eq!(starter.prior, None, "class images are asked for by a flag");
    }

    #[test]
    fn a_lora_has_a_rate_of_its_own() {
        let photos = photos(1);
        assert_eq!(of(photos.path(), "--lora_rank=8").learning_rate, 1e-4);
        assert_eq!(
            of(photos.path(), "--lora_rank=8 --learning_rate=3e-6").learning_rate,
            3e-6
        );
    }

    /// Read back as `--config` does, in flags.
    fn again(json: &serde_json::Value) -> RecipeDraft {
        let flags = super::super::config_file::flags(json.as_object().expect("an object")).expect("flags");
        let words = [std::ffi::OsString::from("train")].into_iter().chain(flags);
        let matches = TrainArgs::augment_args(Command::new("train")).get_matches_from(words);
        draft(&TrainArgs::from_arg_matches(&matches).expect("flags")).expect("a draft")
    }

    #[test]
    fn args_json_read_back_gives_the_same_recipe() {
        let photos = photos(5);
        for flags in [
            "",
            "--pretrained_model_name_or_path=starter --strict_tutorial",
            "--preset=style --class_prompt=dog --class_data_dir=c",
            "--preset=12gb,object --memory_limit=11.5",
            "--preset=object --class_prompt=dog --class_data_dir=c --with_prior_preservation=false --seed=7",
            "--with_prior_preservation --class_prompt=dog --class_data_dir=c --num_train_epochs=2 --use_ema --hflip",
            "--scale_lr --train_batch_size=3 --learning_rate=3e-6 --lr_scheduler=cosine_with_restarts --offset_noise",
            "--mixed_precision=bf16 --alpha_background=#ffe0c0 --snr_gamma=5 --center_crop --not_cache_latents --pad_tokens",
            "--lora_rank=8 --lora_alpha=4.5 --train_text_encoder --low_memory",
            "--save_sample_prompt=x --validation_steps=5 --adam_epsilon=1e-9 --text_encoder_learning_rate=1e-7",
        ] {
            let args = parsed(photos.path(), flags);
            let recipe = draft(&args).expect("a draft");
            let json = args_json(&args, &recipe).expect("json");
            assert_eq!(again(&json), recipe, "{flags}: {json:#}");
        }
    }
}
