//! The original single-file layout: all three networks in one `.safetensors` or `.ckpt`, as WebUIs take it.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{CpuStorage, DType, Storage, Tensor};
use rayon::prelude::*;

use super::architecture::{self, Parameter, TEXT_ENCODER_PREFIX, UNET_PREFIX, VAE_PREFIX};
use super::configs::{ConfigFiles, Configs};
use super::error::ModelError;
use super::found::{Found, Network, Place, locate};
use super::tensor_file::TensorFile;
use super::weights::ModelWeights;
use super::{atomic, open_clip, safetensors_out, starter, torch_out};
use crate::bytes;
use crate::models::config::PredictionType;
use crate::store::{self, StoreError};
use crate::tokenizer::TokenizerFiles;

/// Type of the numbers in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// All f16, the tutorial's `--half`.
    Half,
    /// All f32.
    Single,
    /// Each tensor as it is in memory.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Safetensors,
    /// torch's zip, for WebUIs of 2022.
    Ckpt,
}

/// Where a file of an architecture that nobody else knows says what it is.
const CONFIG_KEY: &str = "likeness.config";

/// Starts of names that are within a network's prefix, no weights of it, and no surprise.
const EXTRAS: [&str; 2] = [
    "first_stage_model.loss.",
    "cond_stage_model.transformer.text_projection",
];

/// A tensor on its way into a file.
pub(super) struct Outgoing {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// On whatever device it is.
    pub tensor: Tensor,
}

/// Opens a single file.
pub(super) fn open(path: &Path) -> Result<Found, ModelError> {
    let file = TensorFile::open(path)?;
    let mut names = original_names(&file);
    let mut guess = None;
    let config_files = config_files(&file, &names, &mut guess)?;
    let configs = config_files.parse(path)?;
    let original: fn(&Parameter) -> Place = |parameter| Place::whole(parameter.original.clone());
    let mut find = |parameters, place_of: fn(&Parameter) -> Place| -> Result<Network, ModelError> {
        let tensors = locate(&file, &mut names, parameters, place_of)?;
        Ok(Network { file: 0, tensors })
    };
    let text_config = &configs.text_encoder;
    let is_open_clip = file.entries().keys().any(|name| name.starts_with(open_clip::PREFIX));
    let text_place = if is_open_clip { open_clip::place_of } else { original };
    let networks = [
        find(architecture::unet(&configs.unet), original)?,
        find(architecture::vae(&configs.vae), original)?,
        find(architecture::text_encoder(text_config), text_place)?,
    ];

    let prefixes = [UNET_PREFIX, VAE_PREFIX, TEXT_ENCODER_PREFIX, open_clip::PREFIX];
    let mut unknown = names.keys().filter(|name| {
        let is_extra = EXTRAS.iter().any(|extra| name.starts_with(extra)) || open_clip::is_extra(name, text_config);
        !is_extra && prefixes.iter().any(|prefix| name.starts_with(prefix))
    });
    if let Some(first) = unknown.next() {
        return Err(ModelError::Unknown {
            path: path.into(),
            tensor: first.clone(),
            others: unknown.count(),
        });
    }
    let tokenizer_files = if is_open_clip {
        TokenizerFiles::clip_padded_with("!")
    } else {
        TokenizerFiles::clip()
    };
    Ok(Found {
        path: path.into(),
        config_files,
        configs,
        tokenizer_files,
        networks,
        ignored: names.len() + file.others,
        files: vec![file],
        guess,
    })
}

/// Present names of the file's tensors, each with the name it has there.
fn original_names(file: &TensorFile) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for stored in file.entries().keys() {
        if stored.ends_with("embeddings.position_ids") {
            // 0 to 76, which needs no file.
            continue;
        }
        let text = stored.strip_prefix(TEXT_ENCODER_PREFIX);
        let old = text.filter(|rest| {
            ["embeddings.", "encoder.", "final_layer_norm."]
                .iter()
                .any(|start| rest.starts_with(start))
        });
        // Files of before transformers 4.20 or so lack a level.
        let present = match old {
            Some(rest) => format!("{TEXT_ENCODER_PREFIX}text_model.{rest}"),
            None => stored.clone(),
        };
        names.insert(present, stored.clone());
    }
    names
}

/// A single file seldom says what it is: known by the shapes of a few tensors, or by what our own exports say.
fn config_files(
    file: &TensorFile,
    names: &BTreeMap<String, String>,
    guess: &mut Option<String>,
) -> Result<ConfigFiles, ModelError> {
    let path = file.path();
    let unsupported = |what: &str| {
        Err(ModelError::Unsupported {
            path: path.into(),
            what: what.into(),
        })
    };
    let json = |source| ModelError::Json {
        path: path.into(),
        source,
    };
    if let Some(config) = file.metadata().get(CONFIG_KEY) {
        return serde_json::from_str(config).map_err(json);
    }
    let has = |start: &str| file.entries().keys().any(|name| name.starts_with(start));
    if has("conditioner.embedders.") {
        return unsupported("this is a Stable Diffusion XL model");
    }
    let shape = |name: &str| {
        let stored = names.get(&format!("{UNET_PREFIX}{name}"));
        stored.map(|stored| file.entries()[stored].shape.as_slice())
    };
    let Some(first) = shape("input_blocks.0.0.weight") else {
        return unsupported(
            "it has no `model.diffusion_model.input_blocks.0.0.weight`; it is no whole Stable Diffusion",
        );
    };
    match first.get(1) {
        Some(9) => return unsupported("this is an inpainting model"),
        Some(8) => return unsupported("this is an InstructPix2Pix model"),
        _ => {}
    }
    let context = shape("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight");
    if first == [320, 4, 3, 3] && context == Some(&[320, 768]) {
        return Configs::sd1().files().map_err(json);
    }
    if first == [320, 4, 3, 3] && has(open_clip::PREFIX) {
        // Only the name tells what its target is. Those of 512 px predict noise.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let prediction = match name.contains("base") || name.contains("512") {
            true => PredictionType::Epsilon,
            false => PredictionType::VPrediction,
        };
        *guess = Some(guess_in_words(path, prediction));
        return Configs::sd2(prediction).files().map_err(json);
    }
    // The starter's exports of before files said so, or without what they said.
    let starter = starter::config_files()?;
    let configs = starter.parse(path)?;
    let wanted = [
        architecture::unet(&configs.unet),
        architecture::vae(&configs.vae),
        architecture::text_encoder(&configs.text_encoder),
    ]
    .concat();
    let is_starter = wanted.iter().all(|parameter| {
        let stored = names.get(&parameter.original);
        stored.is_some_and(|stored| file.entries()[stored].shape == parameter.original_shape())
    });
    if is_starter {
        return Ok(starter);
    }
    unsupported("its shapes are neither Stable Diffusion 1.x's nor the starter's")
}

fn guess_in_words(path: &Path, prediction: PredictionType) -> String {
    let (guessed, other) = match prediction {
        PredictionType::Epsilon => (
            "noise (epsilon, the 512 px kind), because its name holds `base` or `512`",
            "without these, if it predicts velocity",
        ),
        PredictionType::VPrediction => (
            "velocity (v_prediction, the 768 px kind), because its name holds neither `base` nor `512`",
            "with one of them, if it predicts noise",
        ),
    };
    let path = path.display();
    format!(
        "{path}: a Stable Diffusion 2 file does not say what it predicts; taken for {guessed}. Give it a name {other}"
    )
}

/// Writes a model as a single file: the same bytes for the same model, under a scratch name until it is whole, and
/// read back before it gets its own. Answers its length and lower-case hex SHA-256.
///
/// # Errors
/// When it can't be written, or doesn't read back.
pub fn save_single_file(
    path: &Path,
    weights: &ModelWeights,
    width: Width,
    container: Container,
) -> Result<(u64, String), ModelError> {
    weights.check(path)?;
    let outgoing = outgoing(weights, width).map_err(|source| ModelError::Tensor {
        path: path.into(),
        tensor: "text_model".into(),
        source: Box::new(source),
    })?;
    // Everyone knows Stable Diffusion 1.x by its shapes; nothing is put beside the tensors.
    let metadata = if weights.configs().is_plain_sd1() {
        BTreeMap::new()
    } else {
        let config = serde_json::to_string(&weights.config_files).map_err(|source| ModelError::Json {
            path: path.into(),
            source,
        })?;
        BTreeMap::from([(CONFIG_KEY.to_owned(), config)])
    };
    atomic::write_beside(
        path,
        |out| match container {
            Container::Safetensors => safetensors_out::write(path, out, &outgoing, &metadata),
            Container::Ckpt => torch_out::write(path, out, &outgoing, &metadata),
        },
        |scratch, written| {
            // A zip's writer goes back to what it left open; safetensors only grow.
            if container == Container::Ckpt {
                written.wait();
            }
            store::hash_growing(scratch, || written.is_whole()).map_err(|StoreError { source, .. }| ModelError::Write {
                path: path.into(),
                source,
            })
        },
        |scratch| read_back(path, scratch, &outgoing),
    )
}

/// The tensors under their original names, network by network in the order of diffusers' names, as the tutorial's
/// converter leaves them.
fn outgoing(weights: &ModelWeights, width: Width) -> candle_core::Result<Vec<Outgoing>> {
    let dtype = |tensor: &Tensor| match width {
        Width::Half => DType::F16,
        Width::Single => DType::F32,
        Width::Full => tensor.dtype(),
    };
    let as_open_clip = open_clip::is_open_clip(&weights.text_encoder_config);
    let mut all = Vec::new();
    for (parameter, tensors) in weights.parameters() {
        let is_text = parameter.original.starts_with(TEXT_ENCODER_PREFIX);
        let Some(tensor) = tensors.get(&parameter.path).filter(|_| !(is_text && as_open_clip)) else {
            continue;
        };
        all.push(Outgoing {
            shape: parameter.original_shape(),
            name: parameter.original,
            dtype: dtype(tensor),
            tensor: tensor.clone(),
        });
    }
    if as_open_clip {
        for (name, tensor) in open_clip::tensors(&weights.text_encoder)? {
            all.push(Outgoing {
                name,
                dtype: dtype(&tensor),
                shape: tensor.dims().to_vec(),
                tensor,
            });
        }
    }
    Ok(all)
}

/// Opens what was written with our own reader: every name, type and shape, and nothing else.
pub(super) fn read_back(path: &Path, scratch: &Path, outgoing: &[Outgoing]) -> Result<(), ModelError> {
    let wrong = |reason: String| ModelError::ReadBack {
        path: path.into(),
        reason,
    };
    let file = TensorFile::open(scratch)?;
    for tensor in outgoing {
        let name = &tensor.name;
        let entry = file
            .entries()
            .get(name)
            .ok_or_else(|| wrong(format!("`{name}` is not there")))?;
        if entry.shape != tensor.shape || entry.dtype != tensor.dtype {
            let (dtype, shape) = (entry.dtype, &entry.shape);
            return Err(wrong(format!("`{name}` is {dtype:?} {shape:?}")));
        }
    }
    if file.entries().len() != outgoing.len() {
        return Err(wrong(format!("it holds {} tensors", file.entries().len())));
    }
    // The last in the file, to its last byte.
    let last = file.entries().iter().max_by_key(|(_, entry)| entry.offset);
    last.map_or(Ok(()), |(name, _)| file.read(name).map(drop))
}

/// A tensor's numbers as they lie in a file. Infinities and NaN are refused: no loader would tell of them.
pub(super) fn bytes_of(path: &Path, outgoing: &Outgoing) -> Result<Vec<u8>, ModelError> {
    let read = || -> candle_core::Result<Vec<u8>> {
        // Trained weights are f32 and files mostly half: those go there in one pass.
        let tensor = match (outgoing.tensor.dtype(), outgoing.dtype) {
            (DType::F32, DType::F16 | DType::BF16) => outgoing.tensor.contiguous()?,
            (_, wanted) => outgoing.tensor.to_dtype(wanted)?.contiguous()?,
        };
        let mut out = vec![0; tensor.elem_count() * outgoing.dtype.size_in_bytes()];
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(values), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            candle_core::bail!("its numbers are not at hand")
        };
        match (values, outgoing.dtype) {
            (CpuStorage::F32(all), DType::F16) => bytes::write_as_f16(&all[start..end], &mut out),
            (CpuStorage::F32(all), DType::BF16) => bytes::write_as_bf16(&all[start..end], &mut out),
            (CpuStorage::F32(all), _) => bytes::write(&all[start..end], &mut out, f32::to_le_bytes),
            (CpuStorage::F16(all), _) => bytes::write(&all[start..end], &mut out, half::f16::to_le_bytes),
            (CpuStorage::BF16(all), _) => bytes::write(&all[start..end], &mut out, half::bf16::to_le_bytes),
            (CpuStorage::F64(all), _) => bytes::write(&all[start..end], &mut out, f64::to_le_bytes),
            _ => candle_core::bail!("no weights are of the type {:?}", outgoing.dtype),
        }
        Ok(out)
    };
    let bytes = read().map_err(|source| ModelError::Tensor {
        path: path.into(),
        tensor: outgoing.name.clone(),
        source: Box::new(source),
    })?;
    match is_finite(outgoing.dtype, &bytes) {
        true => Ok(bytes),
        false => Err(ModelError::NotFinite {
            path: path.into(),
            tensor: outgoing.name.clone(),
            dtype: outgoing.dtype.as_str(),
        }),
    }
}

/// Whether no number of little-endian `bytes` has all bits of its exponent set.
fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    // The exponent lies in the last two bytes of each.
    let (size, exponent): (usize, u16) = match dtype {
        DType::F16 => (2, 0x7c00),
        DType::BF16 => (2, 0x7f80),
        DType::F64 => (8, 0x7ff0),
        _ => (4, 0x7f80),
    };
    let is_finite = |number: &[u8]| u16::from_le_bytes([number[size - 2], number[size - 1]]) & exponent != exponent;
    bytes
        .par_chunks(bytes::RUN * size)
        .all(|run| run.chunks_exact(size).all(is_finite))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensors(shapes: &[(&str, &[usize])]) -> Vec<Outgoing> {
        let outgoing = shapes.iter().map(|(name, shape)| Outgoing {
            name: (*name).into(),
            dtype: DType::F16,
            shape: shape.to_vec(),
            tensor: Tensor::ones(*shape, DType::F32, &Device::Cpu).expect("a tensor"),
        });
        outgoing.collect()
    }

    #[test]
    fn a_file_that_is_not_what_was_to_be_written_is_not_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let meant = tensors(&[("a", &[2, 3]), ("b", &[4])]);
        let other = [
            (tensors(&[("a", &[2, 3])]), "`b` is not there"),
            (tensors(&[("a", &[3, 2]), ("b", &[4])]), "`a` is F16 [3, 2]"),
            (
                tensors(&[("a", &[2, 3]), ("b", &[4]), ("c", &[1])]),
                "it holds 3 tensors",
            ),
        ];
        for name in ["model.safetensors", "model.ckpt"] {
            let path = folder.path().join(name);
            let written = |tensors: &[Outgoing], cut: u64| {
                atomic::write(
                    &path,
                    |out| match name.ends_with("ckpt") {
                        false => safetensors_out::write(&path, out, tensors, &BTreeMap::new()),
                        true => torch_out::write(&path, out, tensors, &BTreeMap::new()),
                    },
                    |scratch| {
                        let length = std::fs::metadata(scratch).expect("written").len();
                        let file = std::fs::OpenOptions::new().write(true).open(scratch).expect("opens");
                        file.set_len(length - cut).expect("cuts");
                        read_back(&path, scratch, &meant)
                    },
                )
            };
            for (tensors, why) in &other {
                let error = written(tensors, 0).expect_err(why).to_string();
                assert!(error.contains(why), "{error}");
                assert!(!path.exists(), "{why}");
            }
            assert!(
                written(&meant, 1).is_err() && !path.exists(),
                "its last byte is missing"
            );
            written(&meant, 0).expect("as it was meant");
            assert!(path.is_file());
        }
    }
}
