//! Files as older or other programs wrote them.

use super::*;

#[test]
fn old_names_and_position_ids_are_accepted() -> anyhow::Result<()> {
    let folder = copy_of_tiny()?;
    let model = tiny()?;
    let vae = in_old_names(&model.vae);
    assert!(!vae.contains_key("encoder.mid_block.attentions.0.to_q.weight"));
    save_tensors(&folder.path().join("vae/diffusion_pytorch_model.safetensors"), &vae)?;
    let mut text = model.text_encoder.clone();
    text.insert("text_model.embeddings.position_ids".into(), position_ids()?);
    save_tensors(&folder.path().join("text_encoder/model.safetensors"), &text)?;
    same_weights(&formats::load(&folder.path().to_string_lossy())?, &model)
}

fn position_ids() -> candle_core::Result<Tensor> {
    Tensor::from_vec((0..77i64).collect(), (1, 77), &Device::Cpu)
}

/// A VAE under the names that diffusers had before 0.17.
pub fn in_old_names(vae: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let old = [
        ("to_q.", "query."),
        ("to_k.", "key."),
        ("to_v.", "value."),
        ("to_out.0.", "proj_attn."),
    ];
    let name = |name: &str| {
        old.iter()
            .fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
    };
    vae.iter().map(|(path, tensor)| (name(path), tensor.clone())).collect()
}

#[test]
fn a_single_file_of_2022_is_read() -> anyhow::Result<()> {
    let (folder, model) = (tempfile::tempdir()?, tiny()?);
    let path = folder.path().join("old.safetensors");
    formats::save_single_file(&path, &model, Width::Half, Container::Safetensors)?;
    let metadata = TensorFile::open(&path)?.metadata().clone().into_iter().collect();
    let text = "cond_stage_model.transformer.";
    let mut tensors = BTreeMap::new();
    for (name, mut tensor) in candle_core::safetensors::load(&path, &Device::Cpu)? {
        if name.starts_with("first_stage_model.") && name.contains(".attn_1.") && tensor.rank() == 4 {
            tensor = tensor.flatten_from(1)?;
        }
        tensors.insert(name.replace(&format!("{text}text_model."), text), tensor);
    }
    assert_eq!(tensors["first_stage_model.encoder.mid.attn_1.q.weight"].rank(), 2);
    assert!(tensors.contains_key(&format!("{text}final_layer_norm.bias")));
    tensors.insert(format!("{text}embeddings.position_ids"), position_ids()?);
    safetensors::serialize_to_file(&tensors, Some(metadata), &path)?;
    let read = formats::load(&path.to_string_lossy())?;
    assert_eq!(read.ignored, 0);
    same_weights(&read, &model)
}

#[test]
fn weights_in_shards_are_read_by_their_index() -> anyhow::Result<()> {
    let (folder, model) = (copy_of_tiny()?, tiny()?);
    let unet = folder.path().join("unet");
    std::fs::remove_file(unet.join("diffusion_pytorch_model.safetensors"))?;
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut weight_map = serde_json::Map::new();
    let shard_name = |number: usize| format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", number + 1);
    for (i, (name, tensor)) in model.unet.iter().enumerate() {
        let number = i % 2;
        shards[number].insert(name.clone(), tensor.clone());
        weight_map.insert(name.clone(), shard_name(number).into());
    }
    for (number, tensors) in shards.iter().enumerate() {
        save_tensors(&unet.join(shard_name(number)), tensors)?;
    }
    let index = unet.join("diffusion_pytorch_model.safetensors.index.json");
    let written = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
    std::fs::write(&index, written.to_string())?;
    let reference = folder.path().to_string_lossy().into_owned();
    same_weights(&formats::load(&reference)?, &model)?;

    // A tensor that is not in the shard that the index says.
    let name = "conv_in.weight";
    let is_first = written["weight_map"][name] == shard_name(0);
    let mut wrong = written;
    wrong["weight_map"][name] = shard_name(usize::from(is_first)).into();
    std::fs::write(&index, wrong.to_string())?;
    let error = formats::load(&reference).expect_err("it is not there");
    assert!(
        matches!(&error, ModelError::Missing { tensor, .. } if tensor == name),
        "{error}"
    );
    Ok(())
}
