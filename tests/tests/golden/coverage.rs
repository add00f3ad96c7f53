//! Every file of the golden folder is compared with by some test, or says why there is nothing to compare.

use std::path::Path;

/// Files by the start of their path, and the test file that reads them; `word` is in its source.
struct Covered {
    start: &'static str,
    test: &'static str,
    word: &'static str,
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

/// Nothing to compare with, and why.
const TOLD: &[(&str, &str)] = &[
    ("MANIFEST.md", "words"),
    ("rng/README.md", "words"),
    ("scripts/", "what made the set"),
    (
        "convert/checks.json",
        "what diffusers made of a file that ours equal bit for bit",
    ),
    ("forward/error_estimates.json", "where the tolerances come from"),
    ("train/error_estimates.json", "where the tolerances come from"),
    ("images/info.json", "sizes and places that the tests spell out"),
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
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut found = Vec::new();
    files(&super::dir(), "", &mut found);
    found.sort();
    println!("\n{:<46} {:<14} note", "file", "compared in");
    let mut left_out = Vec::new();
    for file in &found {
        let covered = COVERED.iter().find(|covered| file.starts_with(covered.start));
        let told = TOLD.iter().find(|(start, _)| file.starts_with(start));
        match (covered, told) {
            (Some(covered), None) => println!("{file:<46} {:<14}", covered.test),
            (None, Some((_, why))) => println!("{file:<46} {:<14} {why}", "-"),
            _ => left_out.push(file),
        }
    }
    assert!(left_out.is_empty(), "no test compares with {left_out:?}");
    for Covered { start, test, word } in COVERED {
        let source = std::fs::read_to_string(sources.join(test)).unwrap();
        assert!(source.contains(word), "{test} does not read {start}");
    }
}
