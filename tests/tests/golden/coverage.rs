//! Every file of the golden folder is compared with by some test, or says why there is nothing to compare.

use std::fmt::Write;
use std::path::Path;

use super::support::{inputs, print};

/// Files by the start of their path, and the test file that reads them; `word` is in its source.
struct Covered {
    start: &'static str,
    test: &'static str,
    word: &'static str,
}

/// What of a file is whose, where several tests compare with it; `part_of` looks it up.
struct Part {
    file: &'static str,
    name: &'static str,
    test: &'static str,
    /// How names begin.
    starts: &'static [&'static str],
}

const fn part(file: &'static str, name: &'static str, test: &'static str, starts: &'static [&'static str]) -> Part {
    Part {
        file,
        name,
        test,
        starts,
    }
}

#[rustfmt::skip]
const PARTS: &[Part] = &[
    part("bnb/bnb.safetensors", "coding", "bnb.rs", &["qmap_", "quant."]),
    part("bnb/bnb.safetensors", "updates", "bnb.rs", &["traj."]),
    part("forward/unet.safetensors", "predictions", "forward.rs", &["encoder_", "sq.", "wide.", "tall.", "odd.", "small."]),
    part("forward/unet.safetensors", "special cases", "forward.rs", &["mixed_", "float_t.", "short_ctx."]),
    part("images/golden.safetensors", "sizes", "images.rs", &["landscape.", "portrait.", "upscale."]),
    part("images/golden.safetensors", "turned", "images.rs", &["exif."]),
    part("images/golden.safetensors", "kinds of pixel", "images.rs", &["mode_"]),
    part("tiny-sd21/golden.safetensors", "networks", "sd21.rs", &["input_ids", "text.", "unet", "sample", "odd_sample", "vae.", "image", "z"]),
    part("tiny-sd21/golden.safetensors", "step", "sd21.rs", &["train.", "timesteps", "latents", "noise"]),
];

/// # Panics
/// Where there is no such part.
pub fn starts_of(file: &str, name: &str) -> &'static [&'static str] {
    let part = PARTS.iter().find(|part| part.file == file && part.name == name);
    part.unwrap_or_else(|| panic!("{file} has no part `{name}`")).starts
}

const fn by(start: &'static str, test: &'static str, word: &'static str) -> Covered {
    Covered { start, test, word }
}

#[rustfmt::skip]
const COVERED: &[Covered] = &[
    by("bnb/", "bnb.rs", "bnb/bnb.safetensors"),
    by("convert/ckpt_structure.json", "convert.rs", "ckpt_structure.json"),
    by("convert/sample.", "convert.rs", "sample.legacy-format.ckpt"),
    by("convert/sd15_keys.json", "convert.rs", "sd15_keys.json"),
    by("convert/tiny-sd.half.safetensors", "convert.rs", "tiny-sd.half.safetensors"),
    by("forward/eps_probe.", "forward.rs", "eps_probe"),
    by("forward/text_encoder.safetensors", "forward.rs", "text_encoder.safetensors"),
    by("forward/text_encoder_prompts.json", "tokenizer.rs", "text_encoder_prompts.json"),
    by("forward/unet.safetensors", "forward.rs", "unet.safetensors"),
    by("forward/vae.safetensors", "forward.rs", "vae.safetensors"),
    by("images/exif_", "images.rs", "exif_{"),
    by("images/golden.safetensors", "images.rs", "golden.safetensors"),
    by("images/info.json", "images.rs", "images/info.json"),
    by("images/mode_", "images.rs", "mode_{"),
    by("images/source_700x523.png", "images.rs", "source_700x523.png"),
    by("lr_schedules.json", "lr.rs", "lr_schedules.json"),
    by("rng/torch_cpu.json", "rng.rs", "torch_cpu.json"),
    by("samplers/common.safetensors", "samplers.rs", "common.safetensors"),
    by("samplers/epsilon.safetensors", "samplers.rs", "epsilon"),
    by("samplers/other_spacings.json", "samplers.rs", "other_spacings.json"),
    by("samplers/tables.json", "samplers.rs", "tables.json"),
    by("samplers/v_prediction.safetensors", "samplers.rs", "v_prediction"),
    by("tiny-sd/", "forward.rs", "tiny-sd"),
    by("tiny-sd21/", "sd21.rs", "tiny-sd21"),
    by("tokenizer_cases.json", "tokenizer.rs", "tokenizer_cases.json"),
    by("train/final_stats.safetensors", "train.rs", "final_stats.safetensors"),
    by("train/grad_norms.safetensors", "train.rs", "grad_norms.safetensors"),
    by("train/grads_", "gradients.rs", "grads_index.json"),
    by("train/inputs.safetensors", "train.rs", "inputs.safetensors"),
    by("train/model_pred_step1.safetensors", "gradients.rs", "model_pred_step1.safetensors"),
    by("train/noise_schedule.safetensors", "samplers.rs", "noise_schedule.safetensors"),
    by("train/tensor_names.json", "train.rs", "tensor_names.json"),
    by("train/trajectories.json", "train.rs", "trajectories.json"),
    by("txt2img/", "txt2img.rs", "txt2img"),
];

/// Nothing to compare with, and why; after `#` a tensor.
const TOLD: &[(&str, &str)] = &[
    (
        "bnb/bnb.safetensors#bnb_cpu_kernel.",
        "another rule's result, there for information",
    ),
    ("MANIFEST.md", "words"),
    ("rng/README.md", "words"),
    ("scripts/", "what made the set"),
    (
        "convert/checks.json",
        "what diffusers made of a file that ours equal bit for bit",
    ),
    ("forward/error_estimates.json", "where the tolerances come from"),
    ("train/error_estimates.json", "where the tolerances come from"),
];

fn files(folder: &Path, below: &str, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        match entry.path().is_dir() {
            true => files(&entry.path(), &format!("{name}/"), into),
            false => into.push(name),
        }
    }
}

#[test]
fn every_file_of_the_reference_data_is_compared_with() {
    let mut found = Vec::new();
    files(&super::dir(), "", &mut found);
    found.sort();
    let mut text = format!("\n{:<46} {:<14} note\n", "file", "compared in");
    let mut left_out = Vec::new();
    for file in &found {
        let covered = COVERED.iter().find(|covered| file.starts_with(covered.start));
        let told = TOLD.iter().find(|(start, _)| file.starts_with(start));
        match (covered, told) {
            (Some(covered), None) => writeln!(text, "{file:<46} {:<14}", covered.test).unwrap(),
            (None, Some((_, why))) => writeln!(text, "{file:<46} {:<14} {why}", "-").unwrap(),
            _ => left_out.push(file),
        }
    }
    print(&text);
    assert!(left_out.is_empty(), "no test compares with {left_out:?}");
    for Covered { start, test, word } in COVERED {
        assert!(
            source(test).contains(&word.split_whitespace().collect::<String>()),
            "{test} does not read {start}"
        );
    }
}

/// Without its spaces, since a line may be broken anywhere.
fn source(test: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(test);
    std::fs::read_to_string(path).unwrap().split_whitespace().collect()
}

/// A file that one test loads is compared with to its last tensor: `Golden` sees to it. So is each part of one that is
/// shared, and there are parts for all of it.
#[test]
fn every_tensor_of_a_file_that_tests_share_is_somebodys() {
    for Part { file, name, test, .. } in PARTS {
        let call: String = format!("part_of(\"{file}\", \"{name}\")").split_whitespace().collect();
        assert!(
            source(test).contains(&call),
            "{test} does not compare with {name} of {file}"
        );
        for tensor in inputs(file).keys() {
            let of_file = PARTS.iter().filter(|part| part.file == *file);
            let owners = of_file.filter(|part| part.starts.iter().any(|start| tensor.starts_with(start)));
            let full = format!("{file}#{tensor}");
            let told = TOLD.iter().any(|(start, _)| full.starts_with(start));
            assert!(owners.count() > 0 || told, "nobody compares with {full}");
        }
    }
}
