//! `convert` and `inspect` as typed: the files that they leave, under whatever name, and what they read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};

use super::world::{World, finished, names, tiny_model};
use crate::golden::convert::{in_old_names, recognition};
use crate::golden::support::{Tensors, inputs, values};

/// Writes a copy of the small reference model in f32, under the names of diffusers before 0.17.
fn write_old_model(to: &Path) {
    for folder in names(&tiny_model()) {
        let from = tiny_model().join(&folder);
        if !from.is_dir() {
            continue;
        }
        std::fs::create_dir_all(to.join(&folder)).unwrap();
        for name in names(&from) {
            let (from, to) = (from.join(&name), to.join(&folder).join(&name));
            if !name.ends_with(".safetensors") {
                std::fs::copy(from, to).unwrap();
                continue;
            }
            let tensors = candle_core::safetensors::load(from, &Device::Cpu).unwrap();
            let wide = |(name, tensor): (String, Tensor)| (name, tensor.to_dtype(DType::F32).unwrap());
            let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().map(wide).collect();
            if folder == "vae" {
                tensors = in_old_names(&tensors);
            }
            let tensors: HashMap<String, Tensor> = tensors.into_iter().collect();
            candle_core::safetensors::save(&tensors, to).unwrap();
        }
    }
}

#[track_caller]
fn same_numbers(got: &Tensors, dtype: DType, what: &str) {
    let wanted = inputs("convert/tiny-sd.half.safetensors");
    assert!(got.keys().eq(wanted.keys()), "{what}");
    for (name, wanted) in &wanted {
        let got = &got[name];
        assert_eq!((got.dtype(), got.dims()), (dtype, wanted.dims()), "{what}: {name}");
        assert!(values(got) == values(wanted), "{what}: {name}");
    }
}

fn safetensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    tensors.into_iter().collect()
}

fn ckpt(path: &Path) -> Tensors {
    let tensors = candle_core::pickle::read_all_with_key(path, Some("state_dict")).unwrap();
    tensors.into_iter().collect()
}

#[test]
fn all_forms_of_an_old_model_hold_the_converters_numbers() {
    let world = World::new();
    write_old_model(&world.path("old"));
    let convert = |to: &str, flags: &str| {
        let line = format!("convert --model_path old --checkpoint_path {to} {flags}");
        world.run(&line).ok();
        world.path(to)
    };
    // Every number of the model fits into half precision, so that rounding to it changes none.
    same_numbers(&safetensors(&convert("a.safetensors", "")), DType::F32, "safetensors");
    same_numbers(
        &safetensors(&convert("b.safetensors", "--half")),
        DType::F16,
        "half safetensors",
    );
    same_numbers(&ckpt(&convert("a.ckpt", "")), DType::F32, "ckpt");
    same_numbers(&ckpt(&convert("b.ckpt", "--half")), DType::F16, "half ckpt");
    // The flag says what it is where the name does not, and it is read again under such a name.
    for name in ["model", "model.bin"] {
        let path = convert(name, "--use_safetensors --half");
        same_numbers(&safetensors(&path), DType::F16, name);
        let line = format!("convert --half --model_path ./{name} --checkpoint_path again.safetensors");
        world.run(&line).ok();
        same_numbers(&safetensors(&world.path("again.safetensors")), DType::F16, name);
    }
}

#[test]
fn a_model_is_described_without_reading_its_weights() {
    let world = World::new();
    recognition::write(&world.path(""), "v2-1.safetensors", &recognition::sd2());
    // In less memory than the 3.4 GB of the U-Net alone.
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -v 2500000 && exec \"$0\" inspect --model v2-1.safetensors",
    ]);
    command
        .arg(tests::executable("likeness-trainer"))
        .env("RAYON_NUM_THREADS", "2")
        .current_dir(world.path(""));
    let ran = finished(&mut command).ok();
    let info: app::api::ModelInfo = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((info.title.as_str(), info.resolution), ("v2-1", 768));
    // U-Net, and text encoder without its last layer.
    assert_eq!(info.parameters, 865_910_724 + 340_387_840);
    assert!(info.loads_in_webuis);
    // A guess is told.
    assert!(ran.stderr.contains("taken for velocity"), "{}", ran.stderr);
}
