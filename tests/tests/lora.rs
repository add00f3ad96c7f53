//! LoRA files against diffusers and PEFT, which read and ran the fixture (`tests/fixtures/README.md`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use trainer::engine::adapter::{Adapter, pairs};
use trainer::engine::ir::Group;
use trainer::engine::nets::networks::Networks;
use trainer::engine::nets::programs::{Part, Plan};
use trainer::formats::{self, Lora, ModelWeights, TensorFile, Width};

use super::golden::engine::{networks, text};
use super::golden::support::{Tensors, relmax};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn kohya() -> PathBuf {
    repository("fixtures/lora/kohya.safetensors")
}

/// The model that the fixture was made with.
fn base() -> ModelWeights {
    formats::load(&repository("golden/tiny-sd").display().to_string()).unwrap()
}

fn expected() -> Tensors {
    let path = repository("fixtures/lora/diffusers.safetensors");
    let all = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    all.into_iter().collect()
}

fn loaded(model: &ModelWeights, adapter: Option<Adapter>) -> Networks {
    let plan = Plan {
        unet: Some(model.unet_config.clone()),
        text_encoder: Some(model.text_encoder_config.clone()),
        trains: BTreeSet::from([Group::UNet, Group::TextEncoder]),
        adapter,
        ..Plan::default()
    };
    let parts = [(Part::UNet, &model.unet), (Part::TextEncoder, &model.text_encoder)];
    networks(plan, &parts)
}

/// The text encoder's states, and the U-Net's prediction.
fn run(mut networks: Networks, given: &Tensors) -> [Tensor; 2] {
    let ids = given["input_ids"].to_dtype(DType::U32).unwrap();
    let states = text(&mut networks, &ids, 1);
    let timesteps = given["timesteps"].to_vec1::<f32>().unwrap();
    let out = networks.predict(&given["latents"], &timesteps, &states).unwrap();
    [states, out]
}

#[test]
fn a_merged_lora_computes_what_diffusers_computes() {
    let (given, mut model) = (expected(), base());
    let apart = run(loaded(&model, None), &given);
    assert!(relmax(&apart[1], &given["base_out"]) < 1e-4);
    assert!(relmax(&apart[1], &given["out"]) > 0.1);
    let lora = formats::load_lora(&kohya(), &model).unwrap();
    lora.merge_into(&mut model, &kohya()).unwrap();
    as_diffusers_has_it(run(loaded(&model, None), &given), &given);
}

fn as_diffusers_has_it([states, out]: [Tensor; 2], given: &Tensors) {
    for (got, name) in [(states, "states"), (out, "out")] {
        let error = relmax(&got, &given[name]);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn running_with_adapters_is_running_merged() {
    let (given, model) = (expected(), base());
    let lora = formats::load_lora(&kohya(), &model).unwrap();
    let mut networks = loaded(&model, Some(Adapter { rank: 3, alpha: 1.5 }));
    networks.start_adapters(7).unwrap();
    let started = networks.lora().unwrap().unwrap();
    assert!(
        started
            .layers
            .values()
            .all(|low| all(&low.up, 0.) && !all(&low.down, 0.))
    );
    let pairs = pairs(networks.params());
    assert!(pairs.keys().eq(lora.layers.keys()), "an attention projection each");
    for (layer, pair) in pairs {
        let low_rank = &lora.layers[&layer];
        for (id, tensor) in [(pair.down, &low_rank.down), (pair.up, &low_rank.up)] {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            networks.session().set_weight(id, &values).unwrap();
        }
    }
    let names: Vec<String> = networks.trained().into_iter().map(|(_, param)| param.name).collect();
    assert_eq!(names.len(), 2 * lora.layers.len(), "{names:?}");
    assert_eq!(flat(&networks.lora().unwrap().unwrap()), flat(&lora));
    // The networks' own weights are those of the base, and no others.
    for (part, tensors) in [(Part::UNet, &model.unet), (Part::TextEncoder, &model.text_encoder)] {
        let own = networks.weights(part).unwrap();
        assert!(own.iter().all(|(path, weight)| relmax(weight, &tensors[path]) == 0.));
    }
    as_diffusers_has_it(run(networks, &given), &given);
}

fn all(tensor: &Tensor, value: f32) -> bool {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.iter().all(|v| *v == value)
}

fn listing(path: &Path) -> Vec<(String, Vec<usize>)> {
    let file = TensorFile::open(path).unwrap();
    let entries = file.entries().iter();
    entries
        .map(|(name, entry)| (name.clone(), entry.shape.clone()))
        .collect()
}

fn flat(lora: &Lora) -> Vec<f32> {
    let layers = lora.layers.values();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    layers
        .flat_map(|low| [values(&low.down), values(&low.up), vec![low.alpha as f32]].concat())
        .collect()
}

#[test]
fn what_is_written_has_kohyas_names_and_the_same_numbers() {
    let (model, folder) = (base(), tempfile::tempdir().unwrap());
    let lora = formats::load_lora(&kohya(), &model).unwrap();
    let path = folder.path().join("full.safetensors");
    formats::save_lora(&path, &lora, &model, Width::Full).unwrap();
    assert_eq!(listing(&path), listing(&kohya()));
    assert_eq!(flat(&formats::load_lora(&path, &model).unwrap()), flat(&lora));
    let metadata = TensorFile::open(&path).unwrap().metadata().clone();
    assert_eq!(metadata["ss_network_dim"], "3");
    assert_eq!(metadata["ss_network_alpha"], "1.5");

    let again = folder.path().join("again.safetensors");
    formats::save_lora(&again, &lora, &model, Width::Full).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());

    let half = folder.path().join("half.safetensors");
    formats::save_lora(&half, &lora, &model, Width::Half).unwrap();
    let file = TensorFile::open(&half).unwrap();
    let is_half = |(name, dtype): (&String, DType)| (dtype == DType::F16) != name.ends_with(".alpha");
    assert!(file.entries().iter().all(|(name, entry)| is_half((name, entry.dtype))));
}

/// A copy of the fixture, changed.
fn changed(folder: &Path, change: impl Fn(&mut Tensors)) -> PathBuf {
    let all = candle_core::safetensors::load(kohya(), &candle_core::Device::Cpu).unwrap();
    let mut all: Tensors = all.into_iter().collect();
    change(&mut all);
    let path = folder.join("changed.safetensors");
    let all: std::collections::HashMap<String, Tensor> = all.into_iter().collect();
    candle_core::safetensors::save(&all, &path).unwrap();
    path
}

#[test]
fn a_file_that_does_not_fit_names_its_tensor() {
    let (model, folder) = (base(), tempfile::tempdir().unwrap());
    let layer = "lora_te_text_model_encoder_layers_0_self_attn_k_proj";
    let (down, up) = (format!("{layer}.lora_down.weight"), format!("{layer}.lora_up.weight"));
    let refused = |named: &str, change: &dyn Fn(&mut Tensors)| {
        let path = changed(folder.path(), change);
        let error = formats::load_lora(&path, &model).unwrap_err().to_string();
        assert!(
            error.contains(named) && error.contains("changed.safetensors"),
            "{error}"
        );
    };
    refused(&up, &|all| drop(all.remove(&up)));
    refused(&down, &|all| {
        let narrow = all[&down].narrow(1, 0, 5).unwrap().contiguous().unwrap();
        all.insert(down.clone(), narrow);
    });
    refused(&up, &|all| {
        let narrow = all[&up].narrow(1, 0, 2).unwrap().contiguous().unwrap();
        all.insert(up.clone(), narrow);
    });
    refused("lora_unet_no_such_layer.alpha", &|all| {
        all.insert(
            "lora_unet_no_such_layer.alpha".into(),
            all[&format!("{layer}.alpha")].clone(),
        );
    });
    refused("layers of a LoRA", &|all| all.clear());

    let path = changed(folder.path(), |all| all.retain(|name, _| !name.ends_with(".alpha")));
    let lora = formats::load_lora(&path, &model).unwrap();
    assert!(lora.layers.values().all(|low| low.alpha == 3.));
}
