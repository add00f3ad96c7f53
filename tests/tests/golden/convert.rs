//! Checkpoint formats against files that diffusers' converter and torch wrote.

mod foreign;
pub mod recognition;
pub use foreign::in_old_names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use trainer::formats::{
    self, Configs, Container, Lora, LowRank, ModelError, ModelWeights, TensorFile, Width, architecture,
};

use super::support::Table;

fn tiny() -> anyhow::Result<ModelWeights> {
    Ok(formats::load(&super::dir().join("tiny-sd").to_string_lossy())?)
}

fn golden(name: &str) -> PathBuf {
    super::dir().join("convert").join(name)
}

/// Bits of a tensor's numbers; all floating-point types widen to f64 exactly.
fn bits(tensor: &Tensor) -> anyhow::Result<Vec<u64>> {
    let values: Vec<f64> = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
    Ok(values.into_iter().map(f64::to_bits).collect())
}

#[track_caller]
fn same_tensor(name: &str, a: &Tensor, b: &Tensor) -> anyhow::Result<()> {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()), "{name}");
    assert!(bits(a)? == bits(b)?, "{name} differs");
    Ok(())
}

#[track_caller]
fn same_weights(a: &ModelWeights, b: &ModelWeights) -> anyhow::Result<()> {
    assert_eq!(a.configs(), b.configs());
    for (a, b) in [(&a.unet, &b.unet), (&a.vae, &b.vae), (&a.text_encoder, &b.text_encoder)] {
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (name, tensor) in a {
            same_tensor(name, tensor, &b[name])?;
        }
    }
    Ok(())
}

#[test]
fn every_tensor_of_sd15_has_its_names_and_shape() -> anyhow::Result<()> {
    let table: Value = serde_json::from_slice(&std::fs::read(golden("sd15_keys.json"))?)?;
    type Row = (String, Vec<usize>, String, String, u8, Option<String>);
    let rows: Vec<Row> = serde_json::from_value(table["rows"].clone())?;
    assert_eq!(rows.len(), 1130);
    for network in ["unet", "vae", "text_encoder"] {
        let count = rows.iter().filter(|row| row.2 == network).count();
        assert_eq!(table["counts"][network], count, "{network}");
    }
    let sd1 = Configs::sd1();
    let networks = BTreeMap::from([
        ("unet", architecture::unet(&sd1.unet)),
        ("vae", architecture::vae(&sd1.vae)),
        ("text_encoder", architecture::text_encoder(&sd1.text_encoder)),
    ]);
    assert_eq!(networks.values().map(Vec::len).sum::<usize>(), rows.len());
    for (original, shape, network, path, is_reshaped, legacy_path) in rows {
        let ours = networks[network.as_str()].iter().find(|p| p.original == original);
        let ours = ours.ok_or_else(|| anyhow::anyhow!("{original} is not ours"))?;
        assert_eq!(ours.path, path, "{original}");
        assert_eq!(ours.original_shape(), shape, "{original}");
        assert_eq!(ours.is_conv_in_original, is_reshaped == 1, "{original}");
        if let Some(legacy_path) = legacy_path {
            assert_eq!(architecture::present_vae_path(&legacy_path), path);
        }
    }
    Ok(())
}

#[test]
fn a_half_export_is_the_converters_file() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tiny.safetensors");
    formats::save_single_file(&path, &tiny()?, Width::Half, Container::Safetensors)?;
    let wanted = candle_core::safetensors::load(golden("tiny-sd.half.safetensors"), &Device::Cpu)?;
    let got = candle_core::safetensors::load(&path, &Device::Cpu)?;
    assert_eq!(
        got.keys().collect::<BTreeSet<_>>(),
        wanted.keys().collect::<BTreeSet<_>>()
    );
    let mut table = Table::new("single file");
    for (name, wanted) in &wanted {
        assert_eq!(
            (got[name].dims(), got[name].dtype()),
            (wanted.dims(), wanted.dtype()),
            "{name}"
        );
        table.equal(name, &bits(&got[name])?, &bits(wanted)?);
    }
    table.finish();
    // The numbers lie in the same order, too.
    let data = |path: &Path| -> anyhow::Result<Vec<u8>> {
        let bytes = std::fs::read(path)?;
        let header = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
        Ok(bytes[8 + header..].to_vec())
    };
    assert!(data(&path)? == data(&golden("tiny-sd.half.safetensors"))?);
    Ok(())
}

#[test]
fn f32_weights_round_to_the_converters_halves() -> anyhow::Result<()> {
    let mut wide = tiny()?;
    for tensors in [&mut wide.unet, &mut wide.vae, &mut wide.text_encoder] {
        for tensor in tensors.values_mut() {
            // A third of the last place of f16 off: rounding brings it back.
            let nudged = tensor.to_dtype(DType::F32)?.affine(1.0 + 1.0 / 6144.0 / 4.0, 0.0)?;
            *tensor = nudged;
        }
    }
    let folder = tempfile::tempdir()?;
    let full = folder.path().join("full.safetensors");
    formats::save_single_file(&full, &wide, Width::Full, Container::Safetensors)?;
    let read = formats::load(&full.to_string_lossy())?;
    assert!(read.unet.values().all(|tensor| tensor.dtype() == DType::F32));
    same_weights(&read, &wide)?;
    let half = folder.path().join("half.ckpt");
    formats::save_single_file(&half, &wide, Width::Half, Container::Ckpt)?;
    same_weights(&formats::load(&half.to_string_lossy())?, &tiny()?)
}

#[test]
fn a_ckpt_is_laid_out_as_torch_lays_it_out() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tiny.ckpt");
    formats::save_single_file(&path, &tiny()?, Width::Half, Container::Ckpt)?;
    let structure: Value = serde_json::from_slice(&std::fs::read(golden("ckpt_structure.json"))?)?;
    let order: Vec<(String, String, Vec<usize>)> =
        serde_json::from_value(structure["order_dtype_shape_of_f16-half.ckpt"].clone())?;

    let bytes = std::fs::read(&path)?;
    let members = zip_members(&bytes)?;
    // What AUTOMATIC1111's first safe loader let pass: `archive/` and nothing but these.
    for member in &members {
        let rest = member.name.strip_prefix("archive/").unwrap_or("");
        let is_data = rest
            .strip_prefix("data/")
            .is_some_and(|key| key.parse::<usize>().is_ok());
        assert!(is_data || rest == "data.pkl" || rest == "version", "{}", member.name);
        assert_eq!(member.method, 0, "{} is stored", member.name);
        assert_eq!(member.start % 64, 0, "{} is aligned", member.name);
    }
    assert_eq!(members.len(), order.len() + 2);
    let content = |name: &str| {
        let member = members.iter().find(|m| m.name == name).expect(name);
        &bytes[member.start..member.start + member.size]
    };
    assert_eq!(content("archive/version"), b"3\n");

    let file = TensorFile::open(&path)?;
    assert_eq!(file.entries().len(), order.len());
    let pickle = content("archive/data.pkl");
    let torchs = &structure["files"]["f16-half.ckpt"];
    assert_eq!(torchs["version"], "3");
    assert_eq!(torchs["tensor_count"], order.len());
    assert_eq!(
        pickle[..2],
        [0x80, torchs["pickle_protocol"].as_u64().unwrap() as u8],
        "PROTO"
    );
    assert_eq!(globals(pickle), strings(&torchs["globals"]));
    // Two dictionaries, one in the other.
    assert_eq!(strings(&torchs["top_level"]["keys"]), ["state_dict"]);
    assert!(pickle.windows(10).any(|window| window == b"state_dict"));
    let mut at = 0;
    for (key, (name, dtype, shape)) in order.iter().enumerate() {
        assert_eq!(dtype, "torch.float16");
        let entry = &file.entries()[name];
        assert_eq!((entry.dtype, &entry.shape), (DType::F16, shape), "{name}");
        let found = pickle[at..]
            .windows(name.len())
            .position(|window| window == name.as_bytes());
        at += found.ok_or_else(|| anyhow::anyhow!("{name} out of order"))?;
        let count: usize = shape.iter().product();
        assert_eq!(content(&format!("archive/data/{key}")).len(), 2 * count, "{name}");
    }
    Ok(())
}

#[test]
fn another_reader_of_torch_files_reads_our_ckpt() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tiny.ckpt");
    formats::save_single_file(&path, &tiny()?, Width::Half, Container::Ckpt)?;
    let wanted = candle_core::safetensors::load(golden("tiny-sd.half.safetensors"), &Device::Cpu)?;
    let got = candle_core::pickle::read_all_with_key(&path, Some("state_dict"))?;
    assert_eq!(got.len(), wanted.len());
    for (name, tensor) in got {
        same_tensor(&name, &tensor, &wanted[&name])?;
    }
    Ok(())
}

fn strings(list: &Value) -> Vec<String> {
    serde_json::from_value(list.clone()).unwrap()
}

/// What a pickle asks its reader for, by the opcode `c`: two lines, module and name. Sorted.
fn globals(pickle: &[u8]) -> Vec<String> {
    let is_name = |line: &[u8]| !line.is_empty() && line.iter().all(|b| b.is_ascii_alphanumeric() || b"._".contains(b));
    let mut found = BTreeSet::new();
    let mut rest = pickle;
    while let Some(at) = rest.iter().position(|byte| *byte == b'c') {
        rest = &rest[at + 1..];
        let mut lines = rest.splitn(3, |byte| *byte == b'\n');
        if let (Some(module), Some(name), Some(after)) = (lines.next(), lines.next(), lines.next())
            && is_name(module)
            && is_name(name)
        {
            found.insert(format!(
                "{}.{}",
                String::from_utf8_lossy(module),
                String::from_utf8_lossy(name)
            ));
            rest = after;
        }
    }
    found.into_iter().collect()
}

struct Member {
    name: String,
    method: u16,
    start: usize,
    size: usize,
}

/// Local headers of a zip, read without the library that wrote it.
fn zip_members(bytes: &[u8]) -> anyhow::Result<Vec<Member>> {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut members = Vec::new();
    let mut at = 0;
    while bytes[at..].starts_with(b"PK\x03\x04") {
        anyhow::ensure!(u16_at(at + 6) & 8 == 0, "sizes are in the header");
        let name_length = usize::from(u16_at(at + 26));
        let start = at + 30 + name_length + usize::from(u16_at(at + 28));
        let size = u32_at(at + 22) as usize;
        members.push(Member {
            name: String::from_utf8(bytes[at + 30..at + 30 + name_length].to_vec())?,
            method: u16_at(at + 8),
            start,
            size,
        });
        at = start + size;
    }
    assert!(bytes[at..].starts_with(b"PK\x01\x02"), "the directory follows");
    Ok(members)
}

#[test]
fn torchs_own_files_are_read_whole() -> anyhow::Result<()> {
    let wanted = candle_core::safetensors::load(golden("tiny-sd.half.safetensors"), &Device::Cpu)?;
    for (name, dtype) in [
        ("sample.half.ckpt", DType::F16),
        ("sample.f32.ckpt", DType::F32),
        ("sample.legacy-format.ckpt", DType::F32),
    ] {
        let file = TensorFile::open(&golden(name))?;
        // Beside `state_dict` this one has a number, which is no tensor.
        let bytes = std::fs::read(golden(name))?;
        let has_step = bytes.windows(11).any(|window| window == b"global_step");
        assert_eq!(has_step, name == "sample.f32.ckpt");
        assert!(file.entries().keys().all(|key| !key.contains("global_step")));
        assert!(file.entries().len() > 10, "{name}: {}", file.entries().len());
        for key in file.entries().keys() {
            let got = file.read(key)?;
            assert_eq!(got.dtype(), dtype, "{name} {key}");
            assert_eq!(got.dims(), wanted[key].dims(), "{name} {key}");
            assert!(bits(&got)? == bits(&wanted[key])?, "{name} {key}");
        }
        // A part of a model is not a model.
        assert!(formats::load(&golden(name).to_string_lossy()).is_err());
    }
    Ok(())
}

#[test]
fn what_is_exported_is_read_back_bit_for_bit_and_the_same_twice() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let model = tiny()?;
    for (name, container) in [("a.safetensors", Container::Safetensors), ("a.ckpt", Container::Ckpt)] {
        let path = folder.path().join(name);
        formats::save_single_file(&path, &model, Width::Half, container)?;
        same_weights(&formats::load(&path.to_string_lossy())?, &model)?;
        let first = std::fs::read(&path)?;
        formats::save_single_file(&path, &model, Width::Half, container)?;
        assert!(std::fs::read(&path)? == first, "{name} differs the second time");
    }
    let diffusers = folder.path().join("diffusers");
    formats::save_diffusers(&diffusers, &model, Width::Full)?;
    let again = formats::load(&diffusers.to_string_lossy())?;
    same_weights(&again, &model)?;
    // Fields that we know nothing of stay.
    assert_eq!(again.config_files, model.config_files);
    assert_eq!(again.tokenizer_files.vocab_json, model.tokenizer_files.vocab_json);
    assert_eq!(again.tokenizer_files.config, model.tokenizer_files.config);
    let left: Vec<_> = std::fs::read_dir(folder.path())?.collect::<Result<_, _>>()?;
    assert_eq!(left.len(), 3, "no scratch files: {left:?}");
    Ok(())
}

#[test]
fn the_starter_is_read_from_the_executable_and_survives_export() -> anyhow::Result<()> {
    let starter = formats::load("starter")?;
    assert!(!starter.loads_in_webuis());
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("starter.ckpt");
    formats::save_single_file(&path, &starter, Width::Full, Container::Ckpt)?;
    same_weights(&formats::load(&path.to_string_lossy())?, &starter)
}

/// A copy of tiny-sd to break.
fn copy_of_tiny() -> anyhow::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    formats::save_diffusers(folder.path(), &tiny()?, Width::Full)?;
    Ok(folder)
}

fn save_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    let tensors: std::collections::HashMap<_, _> = tensors.clone().into_iter().collect();
    Ok(candle_core::safetensors::save(&tensors, path)?)
}

#[test]
fn a_folder_with_a_wrong_tensor_is_refused_by_name() -> anyhow::Result<()> {
    let folder = copy_of_tiny()?;
    let reference = folder.path().to_string_lossy().into_owned();
    let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let whole = tiny()?.unet;
    let name = "mid_block.attentions.0.proj_in.weight";

    let mut unet = whole.clone();
    unet.remove(name);
    save_tensors(&path, &unet)?;
    let error = formats::load(&reference).expect_err("one is missing");
    assert!(
        matches!(&error, ModelError::Missing { tensor, others: 0, .. } if tensor == name),
        "{error}"
    );
    assert!(
        error.to_string().contains("unet/diffusion_pytorch_model.safetensors"),
        "{error}"
    );

    let mut unet = whole.clone();
    unet.insert(name.into(), whole[name].narrow(0, 0, 8)?);
    save_tensors(&path, &unet)?;
    let error = formats::load(&reference).expect_err("one is too small");
    assert!(
        matches!(&error, ModelError::Shape { tensor, .. } if tensor == name),
        "{error}"
    );

    let mut unet = whole.clone();
    unet.insert(
        "mid_block.attentions.1.norm.weight".into(),
        whole["conv_norm_out.weight"].clone(),
    );
    save_tensors(&path, &unet)?;
    let error = formats::load(&reference).expect_err("one is unknown");
    assert!(matches!(&error, ModelError::Unknown { .. }), "{error}");

    std::fs::write(&path, &std::fs::read(&path)?[..5000])?;
    assert!(matches!(formats::load(&reference), Err(ModelError::Safetensors { .. })));
    std::fs::remove_file(&path)?;
    assert!(matches!(formats::load(&reference), Err(ModelError::Lacks { .. })));
    assert!(matches!(formats::load("no/such/model"), Err(ModelError::NotFound(_))));
    Ok(())
}

#[test]
fn what_a_training_run_left_in_a_single_file_is_counted_and_ignored() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("full-ema.safetensors");
    let model = tiny()?;
    formats::save_single_file(&path, &model, Width::Half, Container::Safetensors)?;
    let (mut tensors, metadata) = (BTreeMap::new(), TensorFile::open(&path)?.metadata().clone());
    for (name, tensor) in candle_core::safetensors::load(&path, &Device::Cpu)? {
        tensors.insert(name, tensor);
    }
    let extra = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
    for name in ["model_ema.decay", "alphas_cumprod", "first_stage_model.loss.logvar"] {
        tensors.insert(name.into(), extra.clone());
    }
    let save = |tensors: &BTreeMap<String, Tensor>| -> anyhow::Result<()> {
        let metadata = metadata.clone().into_iter().collect();
        Ok(safetensors::serialize_to_file(tensors, Some(metadata), &path)?)
    };
    save(&tensors)?;
    let read = formats::load(&path.to_string_lossy())?;
    assert_eq!(read.ignored, 3);
    same_weights(&read, &model)?;
    tensors.insert("first_stage_model.encoder.mid.attn_2.q.weight".into(), extra);
    save(&tensors)?;
    let error = formats::load(&path.to_string_lossy()).expect_err("no known part");
    assert!(matches!(&error, ModelError::Unknown { .. }), "{error}");
    Ok(())
}

/// The small reference model with a text encoder of Stable Diffusion 2's depth.
fn tiny_of_23_layers() -> anyhow::Result<ModelWeights> {
    let mut model = tiny()?;
    model.config_files.text_encoder["num_hidden_layers"] = 23.into();
    for layer in 3..23 {
        for (path, tensor) in tiny()?.text_encoder {
            if let Some(rest) = path.strip_prefix("text_model.encoder.layers.1.") {
                // Every layer another, so that one in the place of another shows.
                let tensor = tensor.affine(1.0 + f64::from(layer), 0.0)?;
                model
                    .text_encoder
                    .insert(format!("text_model.encoder.layers.{layer}.{rest}"), tensor);
            }
        }
    }
    let networks = [model.unet, model.vae, model.text_encoder];
    let (path, files) = (Path::new("23"), model.config_files);
    Ok(ModelWeights::new(path, files, model.tokenizer_files, networks)?)
}

#[test]
fn a_text_encoder_of_23_layers_is_written_in_open_clips_names_and_read_back() -> anyhow::Result<()> {
    let model = tiny_of_23_layers()?;
    let (width, inner) = (
        model.text_encoder_config.hidden_size,
        model.text_encoder_config.intermediate_size,
    );
    let folder = tempfile::tempdir()?;
    for (name, container) in [("a.safetensors", Container::Safetensors), ("a.ckpt", Container::Ckpt)] {
        let path = folder.path().join(name);
        formats::save_single_file(&path, &model, Width::Full, container)?;
        let file = TensorFile::open(&path)?;
        let shape = |name: &str| file.entries().get(name).map(|entry| entry.shape.clone());
        let block = "cond_stage_model.model.transformer.resblocks.22";
        assert_eq!(
            shape(&format!("{block}.attn.in_proj_weight")),
            Some(vec![3 * width, width])
        );
        assert_eq!(shape(&format!("{block}.mlp.c_fc.bias")), Some(vec![inner]));
        assert_eq!(
            shape("cond_stage_model.model.positional_embedding"),
            Some(vec![77, width])
        );
        assert!(
            !file
                .entries()
                .keys()
                .any(|name| name.contains("cond_stage_model.transformer"))
        );
        // Query, key and value in this order.
        let together = file.read(&format!("{block}.attn.in_proj_bias"))?;
        for (i, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            let wanted = &model.text_encoder[&format!("text_model.encoder.layers.22.self_attn.{name}.bias")];
            same_tensor(name, &together.narrow(0, width * i, width)?, wanted)?;
        }
        let read = formats::load(&path.to_string_lossy())?;
        same_weights(&read, &model)?;
        assert_eq!(read.tokenizer_files.pad_token(), "!");
    }
    Ok(())
}

#[test]
fn a_lora_on_queries_alone_fits_into_open_clips_one_tensor() -> anyhow::Result<()> {
    let mut model = tiny_of_23_layers()?;
    let layer = "text_model.encoder.layers.22.self_attn";
    let width = model.text_encoder_config.hidden_size;
    let low_rank = LowRank {
        down: Tensor::ones((1, width), DType::F32, &Device::Cpu)?,
        up: Tensor::ones((width, 1), DType::F32, &Device::Cpu)?,
        alpha: 0.25,
    };
    let layers = BTreeMap::from([(format!("text_encoder.{layer}.q_proj"), low_rank)]);
    Lora { layers }.merge_into(&mut model, Path::new("lora"))?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("merged.safetensors");
    formats::save_single_file(&path, &model, Width::Full, Container::Safetensors)?;
    let read = formats::load(&path.to_string_lossy())?;
    for name in ["q_proj", "k_proj", "v_proj"] {
        let path = format!("{layer}.{name}.weight");
        // What it adds to is f32, and keys and values beside it with the same numbers.
        same_tensor(
            &path,
            &read.text_encoder[&path],
            &model.text_encoder[&path].to_dtype(DType::F32)?,
        )?;
    }
    Ok(())
}
