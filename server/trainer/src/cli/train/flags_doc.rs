//! `docs/flags.md` is made from the flags themselves, so that it cannot drift. `LIKENESS_WRITE_DOCS=1 cargo test --release
//! -p trainer flags` writes it anew.

use std::fmt::Write;
use std::path::Path;

use clap::{Args, Command};

use super::args::TrainArgs;

/// Every flag of the tutorial's `train_dreambooth.py` (of 2023-06-08) with its default; `-` is none.
pub const SCRIPT: &[(&str, &str)] = &[
    ("pretrained_model_name_or_path", "required"),
    ("pretrained_vae_name_or_path", "-"),
    ("revision", "-"),
    ("tokenizer_name", "-"),
    ("instance_data_dir", "-"),
    ("class_data_dir", "-"),
    ("instance_prompt", "-"),
    ("class_prompt", "-"),
    ("save_sample_prompt", "-"),
    ("save_sample_negative_prompt", "-"),
    ("n_save_sample", "4"),
    ("save_guidance_scale", "7.5"),
    ("save_infer_steps", "20"),
    ("pad_tokens", "off"),
    ("with_prior_preservation", "off"),
    ("prior_loss_weight", "1.0"),
    ("num_class_images", "100"),
    ("output_dir", "text-inversion-model"),
    ("seed", "-"),
    ("resolution", "512"),
    ("center_crop", "off"),
    ("train_text_encoder", "off"),
    ("train_batch_size", "4"),
    ("sample_batch_size", "4"),
    ("num_train_epochs", "1"),
    ("max_train_steps", "-"),
    ("gradient_accumulation_steps", "1"),
    ("gradient_checkpointing", "off"),
    ("learning_rate", "5e-6"),
    ("scale_lr", "off"),
    ("lr_scheduler", "constant"),
    ("lr_warmup_steps", "500"),
    ("use_8bit_adam", "off"),
    ("adam_beta1", "0.9"),
    ("adam_beta2", "0.999"),
    ("adam_weight_decay", "0.01"),
    ("adam_epsilon", "1e-8"),
    ("max_grad_norm", "1.0"),
    ("push_to_hub", "off"),
    ("hub_token", "-"),
    ("hub_model_id", "-"),
    ("logging_dir", "logs"),
    ("log_interval", "10"),
    ("save_interval", "10000"),
    ("save_min_steps", "0"),
    ("mixed_precision", "-"),
    ("not_cache_latents", "off"),
    ("hflip", "off"),
    ("local_rank", "-1"),
    ("concepts_list", "-"),
    ("read_prompts_from_txts", "off"),
];

const HEAD: &str = "# Flags of `likeness train`\n
Every flag of the tutorial's `train_dreambooth.py` under its own name, and ours. `_` and `-` mean the same. A flag that has no effect in a run is told in a
warning that says why.\n
\"Script\" is the script's default; empty means that the script has no such flag. \"Here\" is ours where it is another. The starter model and `--preset` fill flags
that are not given with their own values, which `args.json` records. `--strict_tutorial` is explained in [strict-tutorial.md](strict-tutorial.md).
Image `i` of a round of samples is drawn with seed `seed + i`; so is that of `likeness sample --seed`.\n
This file is made by a test from the flags themselves.\n";

/// What `--help` says in brackets is in a column of its own.
fn without_brackets(help: &str) -> &str {
    help.split(" [").next().unwrap_or(help)
}

fn page() -> String {
    let command = TrainArgs::augment_args(Command::new("train"));
    let mut sections: Vec<(String, String)> = Vec::new();
    for arg in command.get_arguments() {
        let Some(name) = arg.get_long() else { continue };
        let heading = arg.get_help_heading().expect("every flag has a group").to_owned();
        let script = SCRIPT
            .iter()
            .find(|(flag, _)| *flag == name)
            .map(|(_, default)| *default);
        let ours = match arg.get_action().takes_values() {
            true => arg
                .get_default_values()
                .first()
                .map(|v| v.to_string_lossy().into_owned()),
            false => Some("off".to_owned()),
        };
        let same = |ours: &str, script: &str| match (ours.parse::<f64>(), script.parse::<f64>()) {
            (Ok(ours), Ok(script)) => ours == script,
            _ => ours == script,
        };
        let here = ours.filter(|ours| script.is_none_or(|script| !same(ours, script)));
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(!help.is_empty(), "--{name} has no help");
        let aliases: Vec<String> = arg
            .get_visible_aliases()
            .unwrap_or_default()
            .iter()
            .map(|a| format!("`--{a}`"))
            .collect();
        let aliases = if aliases.is_empty() {
            String::new()
        } else {
            format!(" ({})", aliases.join(", "))
        };
        if !sections.iter().any(|(title, _)| *title == heading) {
            sections.push((heading.clone(), String::new()));
        }
        let rows = sections
            .iter_mut()
            .find(|(title, _)| *title == heading)
            .expect("just added");
        writeln!(
            rows.1,
            "| `--{name}`{aliases} | {} | {} | {} |",
            script.unwrap_or_default(),
            here.unwrap_or_default(),
            without_brackets(&help)
        )
        .expect("a string");
    }
    let mut page = HEAD.to_owned();
    for (title, rows) in sections {
        write!(
            page,
            "\n## {title}\n\n| flag | script | here | meaning |\n| --- | --- | --- | --- |\n{rows}"
        )
        .expect("a string");
    }
    page
}

#[test]
fn every_flag_of_the_script_is_taken() {
    let command = TrainArgs::augment_args(Command::new("train"));
    for (name, _) in SCRIPT {
        assert!(
            command.get_arguments().any(|arg| arg.get_long() == Some(*name)),
            "--{name}"
        );
    }
}

#[test]
fn the_reference_of_flags_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/flags.md");
    let page = page();
    if std::env::var_os("LIKENESS_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("writes");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/flags.md is old: LIKENESS_WRITE_DOCS=1 cargo test --release -p trainer flags"
    );
}
