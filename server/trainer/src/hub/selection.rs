//! Which of a repository's files a model needs. A repository holds each weight up to eight times over (32 and 16 bits,
//! safetensors and pickle, EMA and not, other frameworks); one of each is enough.

use std::collections::BTreeSet;

use crate::formats::weight_names;

/// What is wanted of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Model,
    /// A VAE alone: its configuration at the root, or in `vae/` of a whole model.
    Vae,
    /// A tokenizer alone: its files at the root, or in `tokenizer/` of a whole model.
    Tokenizer,
}

const TOKENIZER: [&str; 4] = [
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// Chooses among `names`.
///
/// # Errors
/// What is missing, in words.
pub fn select(names: &BTreeSet<&str>, part: Part, fp16_first: bool) -> Result<Vec<String>, String> {
    match part {
        Part::Model => model(names, fp16_first),
        Part::Vae => vae(names, fp16_first),
        Part::Tokenizer => tokenizer(names),
    }
}

/// The small files that say what the model, or the VAE, is.
pub fn config_files(names: &BTreeSet<&str>, part: Part) -> Vec<String> {
    if part == Part::Vae {
        let below = vae_folder(names);
        return below.map(|below| format!("{below}config.json")).into_iter().collect();
    }
    let wanted = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ];
    wanted
        .into_iter()
        .filter(|name| names.contains(name))
        .map(str::to_owned)
        .collect()
}

fn model(names: &BTreeSet<&str>, fp16_first: bool) -> Result<Vec<String>, String> {
    let mut files = config_files(names, Part::Model);
    let needed = [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ];
    if let Some(missing) = needed.iter().find(|name| !names.contains(*name)) {
        return Err(format!(
            "it has no {missing}, so it is no Stable Diffusion in diffusers' layout; of a single .safetensors or .ckpt \
             file give the path on this machine"
        ));
    }
    for network in ["unet", "vae", "text_encoder"] {
        files.extend(weights(names, &format!("{network}/"), network, fp16_first)?);
    }
    let tokenizer = TOKENIZER.map(|name| format!("tokenizer/{name}"));
    files.extend(tokenizer.into_iter().filter(|name| names.contains(name.as_str())));
    Ok(files)
}

/// Where the VAE's configuration is: at the root, or in `vae/` of a whole model.
fn vae_folder(names: &BTreeSet<&str>) -> Option<&'static str> {
    ["", "vae/"].into_iter().find(|below| {
        let is_whole_model = below.is_empty() && names.contains("unet/config.json");
        !is_whole_model && names.contains(format!("{below}config.json").as_str())
    })
}

fn vae(names: &BTreeSet<&str>, fp16_first: bool) -> Result<Vec<String>, String> {
    let below = vae_folder(names)
        .ok_or("it has neither config.json nor vae/config.json, so it is no VAE in diffusers' layout")?;
    let mut files = vec![format!("{below}config.json")];
    files.extend(weights(names, below, "vae", fp16_first)?);
    Ok(files)
}

fn tokenizer(names: &BTreeSet<&str>) -> Result<Vec<String>, String> {
    let below = ["", "tokenizer/"]
        .into_iter()
        .find(|below| names.contains(format!("{below}vocab.json").as_str()));
    let below =
        below.ok_or("it has neither vocab.json nor tokenizer/vocab.json, so it has no tokenizer of CLIP's kind")?;
    let files = TOKENIZER.map(|name| format!("{below}{name}"));
    Ok(files.into_iter().filter(|name| names.contains(name.as_str())).collect())
}

fn weights(names: &BTreeSet<&str>, below: &str, network: &str, fp16_first: bool) -> Result<Vec<String>, String> {
    let forms = weight_names(network, fp16_first);
    for form in &forms {
        let (file, index) = (format!("{below}{}", form.file), format!("{below}{}", form.index));
        if names.contains(file.as_str()) {
            return Ok(vec![file]);
        }
        if names.contains(index.as_str()) {
            let shards = names
                .iter()
                .filter(|name| name.strip_prefix(below).is_some_and(|name| form.is_shard(name)));
            return Ok(shards.map(|name| (*name).to_owned()).chain([index]).collect());
        }
    }
    let looked_for: Vec<&str> = forms.iter().map(|form| form.file.as_str()).collect();
    Err(format!("{below} has no weights (looked for {})", looked_for.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_alone_is_a_few_small_files() {
        let of_model = files(&SD15, Part::Tokenizer, false).expect("there");
        assert!(
            of_model.contains(&"tokenizer/vocab.json".to_owned()) && of_model.len() <= 4,
            "{of_model:?}"
        );
        let alone = ["merges.txt", "model.safetensors", "vocab.json"];
        assert_eq!(
            files(&alone, Part::Tokenizer, false).expect("there"),
            ["vocab.json", "merges.txt"]
        );
        let none = files(&["tokenizer.json"], Part::Tokenizer, false).expect_err("none");
        assert!(none.contains("vocab.json"), "{none}");
    }

    fn files(names: &[&str], part: Part, fp16: bool) -> Result<Vec<String>, String> {
        select(&names.iter().copied().collect(), part, fp16)
    }

    const SD15: [&str; 24] = [
        ".gitattributes",
        "README.md",
        "feature_extractor/preprocessor_config.json",
        "model_index.json",
        "safety_checker/model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "v1-5-pruned-emaonly.safetensors",
        "v1-5-pruned.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ];

    #[test]
    fn one_form_of_each_weight_is_taken_and_nothing_else() -> Result<(), String> {
        let full = files(&SD15, Part::Model, false)?;
        assert!(full.contains(&"unet/diffusion_pytorch_model.safetensors".to_owned()));
        // There is no 32-bit safetensors of the VAE: 16 bits come before a pickle.
        assert!(full.contains(&"vae/diffusion_pytorch_model.fp16.safetensors".to_owned()));
        assert_eq!(full.len(), 5 + 3 + 4, "{full:?}");
        let half = files(&SD15, Part::Model, true)?;
        assert!(half.contains(&"unet/diffusion_pytorch_model.fp16.safetensors".to_owned()));
        assert!(half.contains(&"text_encoder/model.fp16.safetensors".to_owned()));
        assert_eq!(half.len(), full.len());
        assert_eq!(files(&SD15, Part::Vae, false)?.len(), 2);
        Ok(())
    }

    #[test]
    fn shards_come_with_their_index() -> Result<(), String> {
        let mut names: Vec<&str> = SD15
            .iter()
            .copied()
            .filter(|name| !name.starts_with("unet/d"))
            .collect();
        names.extend([
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ]);
        assert_eq!(files(&names, Part::Model, false)?.len(), 5 + 5 + 4);
        Ok(())
    }

    #[test]
    fn a_repository_without_what_is_needed_says_what() {
        assert!(files(&["a.safetensors"], Part::Model, false).is_err_and(|e| e.contains("unet/config.json")));
        assert!(files(&["README.md"], Part::Vae, false).is_err_and(|e| e.contains("vae/config.json")));
        let root_vae = [
            "config.json",
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.safetensors",
        ];
        let wanted = ["config.json", "diffusion_pytorch_model.safetensors"].map(str::to_owned);
        assert_eq!(files(&root_vae, Part::Vae, false), Ok(wanted.to_vec()));
    }
}
