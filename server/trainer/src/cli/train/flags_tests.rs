//! Every flag of the script has its default here, and every flag lands where it is read.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use clap::{Args, Command, FromArgMatches};
use serde_json::{Value, json};

use super::args::TrainArgs;
use super::flags_doc::SCRIPT;
use super::recipe::{args_json, draft};

fn photos() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    for number in 0..6 {
        let path = folder.path().join(format!("{number}.png"));
        image::RgbImage::new(8, 8).save(path).expect("saves");
    }
    folder
}

/// The flags of a run of `photos`, and its recipe.
fn run(photos: &Path, flags: &[&str]) -> (Value, Value) {
    let mut words: Vec<OsString> = vec!["train".into(), "--instance_data_dir".into(), photos.into()];
    let needed = [
        "--pretrained_model_name_or_path=models/sd15",
        "--instance_prompt=photo of zwx dog",
    ];
    words.extend(needed.iter().chain(flags).map(OsString::from));
    let matches = TrainArgs::augment_args(Command::new("train")).get_matches_from(words);
    let args = TrainArgs::from_arg_matches(&matches).expect("flags");
    let recipe = draft(&args).expect("a draft");
    let json = args_json(&args, &recipe).expect("json");
    (json, serde_json::to_value(recipe).expect("json"))
}

const CLASS: [&str; 3] = [
    "--with_prior_preservation",
    "--class_prompt=photo of a dog",
    "--class_data_dir=c",
];

#[test]
fn each_default_is_the_scripts() {
    let photos = photos();
    let (plain, recipe) = run(photos.path(), &[]);
    let (with_class, _) = run(photos.path(), &CLASS);
    for (flag, script) in SCRIPT {
        // With prior preservation alone these two are read.
        let args = match *flag {
            "num_class_images" | "prior_loss_weight" => &with_class,
            _ => &plain,
        };
        let wanted = match (*flag, *script) {
            // Given here; of the four of a subject `concepts_list` is made.
            ("pretrained_model_name_or_path" | "concepts_list", _) => continue,
            // One round of six photos by fours.
            ("max_train_steps", "-") => json!(2),
            ("num_train_epochs", "1") => Value::Null,
            // So that a run can be repeated.
            ("seed", "-") => json!(1337),
            // An unset flag leaves it to the device; of a strict run it means no.
            ("mixed_precision", "-") => json!("auto"),
            // Without effect here.
            ("logging_dir", "logs") | ("local_rank", "-1") | (_, "-") => Value::Null,
            (_, "off") => json!(false),
            (_, text) => text.parse().map_or_else(|_| json!(text), |number: f64| json!(number)),
        };
        let got = args.get(*flag).unwrap_or(&Value::Null);
        let same = match (got.as_f64(), wanted.as_f64()) {
            (Some(got), Some(wanted)) => got == wanted,
            _ => *got == wanted,
        };
        assert!(same, "--{flag} is {got}, and {wanted} in the script");
    }
    assert_eq!(recipe["concepts"].as_array().map(Vec::len), Some(1));
}

/// Flags that are no setting of a recipe, and the test of what they do.
const ELSEWHERE: [&str; 21] = [
    // `config_file`, `cli::results::args_json_read_back_gives_the_same_bits`
    "config",
    // `cli::photos::several_subjects_are_learned_each_by_its_prompt`
    "concepts_list",
    // `presets`, `recipe::a_preset_fills_what_is_not_given_and_nothing_else`
    "preset",
    // `recipe::epochs_are_counted_over_the_longer_of_photos_and_class_images`
    "num_train_epochs",
    // `recipe::the_rate_is_scaled_when_that_is_asked_for`
    "scale_lr",
    // `cli::misuse::wrong_use_ends_with_status_2_and_names_the_flag`
    "device",
    // `cli::memory::a_run_that_cannot_fit_is_refused_with_what_would`
    "memory_limit",
    // `export::folders_come_every_interval_and_last`, `cli::results`
    "output_dir",
    "save_interval",
    "save_min_steps",
    "save_fp16",
    "keep_last",
    // `cli::learning::lines_about_the_progress_come_every_so_many_steps`
    "log_interval",
    // `cli::misuse::flags_without_effect_are_told_with_the_reason`
    "logging_dir",
    "validation_epochs",
    "validation_scheduler",
    "validation_images",
    "push_to_hub",
    "hub_token",
    "hub_model_id",
    "local_rank",
];

#[test]
fn each_flag_lands_in_its_field() {
    let photos = photos();
    let cases: Vec<(&str, &str, Value)> = vec![
        (
            "--pretrained_model_name_or_path=other",
            "/pretrained_model_name_or_path",
            json!("other"),
        ),
        (
            "--pretrained_vae_name_or_path=v",
            "/pretrained_vae_name_or_path",
            json!("v"),
        ),
        ("--revision=fp16", "/revision", json!("fp16")),
        ("--tokenizer_name=t", "/tokenizer_name", json!("t")),
        ("--instance_prompt=x", "/concepts/0/instance_prompt", json!("x")),
        ("--class_prompt=y", "/concepts/0/class_prompt", json!("y")),
        ("--class_data_dir=z", "/concepts/0/class_data_dir", json!("z")),
        ("--read_prompts_from_txts", "/read_prompts_from_txts", json!(true)),
        ("--with_prior_preservation", "/prior/num_class_images", json!(100)),
        ("--prior_loss_weight=0.5", "/prior/prior_loss_weight", json!(0.5)),
        ("--num_class_images=7", "/prior/num_class_images", json!(7)),
        ("--class_guidance_scale=3", "/prior/class_guidance_scale", json!(3.0)),
        ("--resolution=256", "/resolution", json!(256)),
        ("--center_crop", "/center_crop", json!(true)),
        ("--hflip", "/hflip", json!(true)),
        ("--pad_tokens", "/pad_tokens", json!(true)),
        ("--holdout_photo", "/holdout_photo", json!(true)),
        ("--not_cache_latents", "/not_cache_latents", json!(true)),
        ("--alpha_background=black", "/alpha_background", json!("black")),
        ("--max_train_steps=9", "/max_train_steps", json!(9)),
        ("--train_batch_size=3", "/train_batch_size", json!(3)),
        (
            "--gradient_accumulation_steps=5",
            "/gradient_accumulation_steps",
            json!(5),
        ),
        ("--train_text_encoder", "/train_text_encoder", json!(true)),
        (
            "--text_encoder_learning_rate=1e-7",
            "/text_encoder_learning_rate",
            json!(1e-7),
        ),
        ("--stop_text_encoder_at=6", "/stop_text_encoder_at", json!(6)),
        ("--lora_rank=8", "/lora_rank", json!(8)),
        ("--lora_alpha=4.5", "/lora_alpha", json!(4.5)),
        ("--learning_rate=2e-6", "/learning_rate", json!(2e-6)),
        ("--lr_scheduler=linear", "/lr_scheduler", json!("linear")),
        ("--lr_scheduler=cosine", "/lr_scheduler", json!("cosine")),
        (
            "--lr_scheduler=cosine_with_restarts",
            "/lr_scheduler",
            json!("cosine_with_restarts"),
        ),
        ("--lr_scheduler=polynomial", "/lr_scheduler", json!("polynomial")),
        ("--lr_scheduler=constant", "/lr_scheduler", json!("constant")),
        (
            "--lr_scheduler=constant_with_warmup",
            "/lr_scheduler",
            json!("constant_with_warmup"),
        ),
        ("--lr_warmup_steps=11", "/lr_warmup_steps", json!(11)),
        ("--lr_num_cycles=3", "/lr_num_cycles", json!(3)),
        ("--lr_power=1.5", "/lr_power", json!(1.5)),
        ("--snr_gamma=5", "/snr_gamma", json!(5.0)),
        ("--offset_noise", "/offset_noise", json!(0.1)),
        ("--offset_noise=0.05", "/offset_noise", json!(0.05)),
        ("--adam_beta1=0.8", "/adam/adam_beta1", json!(0.8)),
        ("--adam_beta2=0.99", "/adam/adam_beta2", json!(0.99)),
        ("--adam_weight_decay=0.1", "/adam/adam_weight_decay", json!(0.1)),
        ("--adam_epsilon=1e-6", "/adam/adam_epsilon", json!(1e-6)),
        ("--max_grad_norm=2", "/adam/max_grad_norm", json!(2.0)),
        ("--use_ema", "/use_ema", json!(true)),
        ("--ema_decay=0.9", "/ema_decay", json!(0.9)),
        ("--seed=5", "/seed", json!(5)),
        ("--strict_tutorial", "/strict_tutorial", json!(true)),
        ("--strict_tutorial", "/pad_tokens", json!(false)),
        ("--mixed_precision=fp16", "/mixed_precision", json!("fp16")),
        ("--mixed_precision=bf16", "/mixed_precision", json!("bf16")),
        ("--mixed_precision=no", "/mixed_precision", json!("no")),
        ("--mixed_precision=auto", "/mixed_precision", json!("auto")),
        ("--gradient_checkpointing", "/gradient_checkpointing", json!(true)),
        ("--use_8bit_adam", "/use_8bit_adam", json!(true)),
        ("--low_memory", "/low_memory", json!(true)),
        ("--sample_batch_size=2", "/sample_batch_size", json!(2)),
        ("--save_sample_prompt=p", "/samples/save_sample_prompt", json!("p")),
        ("--validation_prompt=p", "/samples/save_sample_prompt", json!("p")),
        (
            "--save_sample_negative_prompt=n",
            "/samples/save_sample_negative_prompt",
            json!("n"),
        ),
        ("--n_save_sample=6", "/samples/n_save_sample", json!(6)),
        ("--num_validation_images=6", "/samples/n_save_sample", json!(6)),
        ("--validation_steps=50", "/samples/sample_interval", json!(50)),
        ("--save_guidance_scale=4", "/samples/save_guidance_scale", json!(4.0)),
        ("--save_infer_steps=30", "/samples/save_infer_steps", json!(30)),
        ("--checkpointing_steps=40", "/checkpointing_steps", json!(40)),
        ("--checkpoints_total_limit=2", "/checkpoints_total_limit", json!(2)),
        (
            "--resume_from_checkpoint=latest",
            "/resume_from_checkpoint",
            json!("latest"),
        ),
    ];
    let mut tried: BTreeSet<&str> = ELSEWHERE.into();
    // The folder is given to every run here.
    tried.insert("instance_data_dir");
    for (flag, at, wanted) in &cases {
        let of_class = at.starts_with("/prior") && *flag != "--with_prior_preservation";
        let mut flags = vec![*flag];
        flags.extend(CLASS.iter().filter(|_| of_class));
        let (_, recipe) = run(photos.path(), &flags);
        assert_eq!(recipe.pointer(at), Some(wanted), "{flag}");
        tried.insert(flag.trim_start_matches("--").split('=').next().expect("a name"));
    }
    let command = TrainArgs::augment_args(Command::new("train"));
    for arg in command.get_arguments() {
        let name = arg.get_long().expect("a flag");
        assert!(tried.contains(name), "--{name} is not tried");
    }
}
