//! A diffusers folder: a sub-folder for each network with its configuration and weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::architecture::{self, Parameter};
use super::configs::{ConfigFiles, DIFFUSERS_VERSION};
use super::error::ModelError;
use super::found::{Found, Located, Network, Place, locate};
use super::single_file::{Outgoing, Width, read_back};
use super::tensor_file::TensorFile;
use super::weight_names::weight_names;
use super::weights::{ModelWeights, Tensors, Vae};
use super::{atomic, found, safetensors_out, weights};
use crate::models::config::VaeConfig;
use crate::tokenizer::TokenizerFiles;

/// Opens a folder.
pub(super) fn open(folder: &Path) -> Result<Found, ModelError> {
    let config_files = config_files(folder)?;
    let files = [
        open_first(&folder.join("unet"), "unet", "U-Net's weights")?,
        open_first(&folder.join("vae"), "vae", "VAE's weights")?,
        open_first(&folder.join("text_encoder"), "text_encoder", "text encoder's weights")?,
    ];
    let tokenizer = folder.join("tokenizer");
    let found = find(folder, config_files, tokenizer_files(&tokenizer)?, files)?;
    weights::tokenizer(&tokenizer, &found.tokenizer_files, &found.configs.text_encoder)?;
    Ok(found)
}

pub(super) fn config_files(folder: &Path) -> Result<ConfigFiles, ModelError> {
    Ok(ConfigFiles {
        unet: read_json(&folder.join("unet/config.json"))?,
        vae: read_json(&folder.join("vae/config.json"))?,
        text_encoder: read_json(&folder.join("text_encoder/config.json"))?,
        scheduler: read_json(&folder.join("scheduler/scheduler_config.json"))?,
    })
}

/// Finds the networks in their files, in the order U-Net, VAE, text encoder.
pub(super) fn find(
    folder: &Path,
    config_files: ConfigFiles,
    tokenizer_files: TokenizerFiles,
    files: [TensorFile; 3],
) -> Result<Found, ModelError> {
    let configs = config_files.parse(folder)?;
    let find = |file: usize, parameters, present: fn(&str) -> String| -> Result<Network, ModelError> {
        let tensors = find_network(&files[file], parameters, present)?;
        Ok(Network { file, tensors })
    };
    let networks = [
        find(0, architecture::unet(&configs.unet), str::to_owned)?,
        find(1, architecture::vae(&configs.vae), architecture::present_vae_path)?,
        find(2, architecture::text_encoder(&configs.text_encoder), with_text_model)?,
    ];
    Ok(Found {
        path: folder.into(),
        config_files,
        configs,
        tokenizer_files,
        networks,
        ignored: files.iter().map(|file| file.others).sum(),
        files: files.into(),
        guess: None,
    })
}

/// Finds one network: every parameter, and nothing else. `present` gives a stored path the name it has today.
fn find_network(
    file: &TensorFile,
    parameters: Vec<Parameter>,
    present: fn(&str) -> String,
) -> Result<Vec<Located>, ModelError> {
    let stored = file.entries().keys();
    let stored = stored.filter(|name| !name.ends_with("embeddings.position_ids"));
    let mut names: BTreeMap<String, String> = stored.map(|name| (present(name), name.clone())).collect();
    let tensors = locate(file, &mut names, parameters, |parameter| {
        Place::whole(parameter.path.clone())
    })?;
    match names.first_key_value() {
        None => Ok(tensors),
        Some((_, first)) => Err(ModelError::Unknown {
            path: file.path().into(),
            tensor: first.clone(),
            others: names.len() - 1,
        }),
    }
}

/// transformers' newer and oldest releases write the text model's paths without their first level.
fn with_text_model(path: &str) -> String {
    let bare = ["embeddings.", "encoder.", "final_layer_norm."];
    if bare.iter().any(|start| path.starts_with(start)) {
        format!("text_model.{path}")
    } else {
        path.into()
    }
}

/// The weights of `network` in `folder`, in whichever form comes first.
fn open_first(folder: &Path, network: &str, which: &'static str) -> Result<TensorFile, ModelError> {
    let forms = weight_names(network, false);
    for form in &forms {
        let (file, index) = (folder.join(&form.file), folder.join(&form.index));
        if file.is_file() {
            return TensorFile::open(&file);
        }
        if index.is_file() {
            return TensorFile::sharded(&index);
        }
    }
    let names: Vec<&str> = forms.iter().map(|form| form.file.as_str()).collect();
    Err(ModelError::Lacks {
        path: folder.into(),
        which,
        names: names.join(", "),
    })
}

/// The VAE of `folder`: its configuration at the root, as VAEs are published, or in `vae/` of a whole model.
pub(super) fn load_vae(folder: &Path) -> Result<Vae, ModelError> {
    let folder = vae_folder(folder);
    let (config_file, config) = vae_config(&folder)?;
    let file = open_first(&folder, "vae", "VAE's weights")?;
    let tensors = find_network(&file, architecture::vae(&config), architecture::present_vae_path)?;
    Ok(Vae {
        tensors: found::read(&file, &tensors)?,
        config,
        config_file,
    })
}

pub(super) fn vae_folder(folder: &Path) -> PathBuf {
    let whole = folder.join("vae/config.json").is_file();
    if whole {
        folder.join("vae")
    } else {
        folder.to_path_buf()
    }
}

/// The configuration of a VAE in its own folder, as it was read and as what we know of it.
pub(super) fn vae_config(folder: &Path) -> Result<(Value, VaeConfig), ModelError> {
    let path = folder.join("config.json");
    let config_file = read_json(&path)?;
    let config: VaeConfig = serde_json::from_value(config_file.clone()).map_err(|source| ModelError::Json {
        path: path.clone(),
        source,
    })?;
    if config.block_out_channels.is_empty() {
        let what = "it has no blocks".into();
        return Err(ModelError::Unsupported { path, what });
    }
    Ok((config_file, config))
}

fn read_text(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|source| ModelError::Read {
        path: path.into(),
        source,
    })
}

fn read_json(path: &Path) -> Result<Value, ModelError> {
    serde_json::from_str(&read_text(path)?).map_err(|source| ModelError::Json {
        path: path.into(),
        source,
    })
}

/// A tokenizer's own folder, or the one in a model's folder, as `--tokenizer_name` names it.
///
/// # Errors
/// When there is none, or its files cannot be read.
pub fn load_tokenizer(path: &Path) -> Result<TokenizerFiles, ModelError> {
    let folders = [path.to_owned(), path.join("tokenizer")];
    let found = folders.iter().find(|folder| folder.join("vocab.json").is_file());
    let folder = found.ok_or_else(|| ModelError::Lacks {
        path: path.into(),
        which: "tokenizer that --tokenizer_name asks for",
        names: "vocab.json and merges.txt".into(),
    })?;
    tokenizer_files(folder)
}

/// The folder's tokenizer, or CLIP's where there is none.
fn tokenizer_files(folder: &Path) -> Result<TokenizerFiles, ModelError> {
    let mut files = TokenizerFiles::clip();
    let if_there = |name: &str| -> Result<Option<Value>, ModelError> {
        let path = folder.join(name);
        path.is_file().then(|| read_json(&path)).transpose()
    };
    if folder.join("vocab.json").is_file() {
        files.vocab_json = read_text(&folder.join("vocab.json"))?.into();
        files.merges_txt = read_text(&folder.join("merges.txt"))?.into();
    }
    if let Some(config) = if_there("tokenizer_config.json")? {
        files.config = config;
    }
    files.special_tokens_map = if_there("special_tokens_map.json")?;
    Ok(files)
}

/// Writes a folder that diffusers, and `load`, read. `model_index.json` comes last: a folder with it is whole.
///
/// # Errors
/// When a file can't be written, or doesn't read back.
pub fn save_diffusers(folder: &Path, weights: &ModelWeights, width: Width) -> Result<(), ModelError> {
    weights.check(folder)?;
    let config = &weights.config_files;
    let networks = [
        ("unet", &weights.unet, &config.unet),
        ("vae", &weights.vae, &config.vae),
        ("text_encoder", &weights.text_encoder, &config.text_encoder),
    ];
    for (network, tensors, config) in networks {
        let folder = folder.join(network);
        write_json(&folder.join("config.json"), config)?;
        write_tensors(&folder.join(&weight_names(network, false)[0].file), tensors, width)?;
    }
    write_json(&folder.join("scheduler/scheduler_config.json"), &config.scheduler)?;
    let tokenizer = folder.join("tokenizer");
    let files = &weights.tokenizer_files;
    write_bytes(&tokenizer.join("vocab.json"), files.vocab_json.as_bytes())?;
    write_bytes(&tokenizer.join("merges.txt"), files.merges_txt.as_bytes())?;
    write_json(&tokenizer.join("tokenizer_config.json"), &files.config)?;
    let special_tokens = files.special_tokens_map.clone().unwrap_or_else(|| {
        json!({
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": files.pad_token(),
            "unk_token": "<|endoftext|>",
        })
    });
    write_json(&tokenizer.join("special_tokens_map.json"), &special_tokens)?;
    write_json(
        &folder.join("feature_extractor/preprocessor_config.json"),
        &image_processor(),
    )?;
    let scheduler = config.scheduler["_class_name"].as_str().unwrap_or("PNDMScheduler");
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    write_json(&folder.join("model_index.json"), &index)
}

/// CLIP's preparation of pictures, which diffusers' pipelines name even where nothing uses it (Radford et al. 2021).
fn image_processor() -> Value {
    json!({
        "crop_size": { "height": 224, "width": 224 },
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": { "shortest_edge": 224 },
    })
}

fn write_tensors(path: &Path, tensors: &Tensors, width: Width) -> Result<(), ModelError> {
    let outgoing: Vec<Outgoing> = tensors
        .iter()
        .map(|(name, tensor)| Outgoing {
            name: name.clone(),
            dtype: match width {
                Width::Half => candle_core::DType::F16,
                Width::Single => candle_core::DType::F32,
                Width::Full => tensor.dtype(),
            },
            shape: tensor.dims().to_vec(),
            tensor: tensor.clone(),
        })
        .collect();
    // transformers refuses a file that doesn't say so.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    atomic::write(
        path,
        |out| safetensors_out::write(path, out, &outgoing, &metadata),
        |scratch| read_back(path, scratch, &outgoing),
    )
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| ModelError::Json {
        path: path.into(),
        source,
    })?;
    text.push(b'\n');
    write_bytes(path, &text)
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let write = |out: &mut atomic::Out| {
        std::io::Write::write_all(out, bytes).map_err(|source| ModelError::Write {
            path: path.into(),
            source,
        })
    };
    atomic::write(path, write, |_| Ok(()))
}
