//! What others make of a downloaded checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub fn sha256_of(path: &Path) -> anyhow::Result<String> {
    Ok(hex::encode(Sha256::digest(std::fs::read(path)?)))
}

/// Draws with the file through the command line; the picture is not one colour.
pub fn draw_with(checkpoint: &Path, out: &Path) -> anyhow::Result<()> {
    let drawn = Command::new(tests::executable("likeness"))
        .args([
            "sample",
            "--prompt",
            "photo of zwx dog",
            "--steps",
            "6",
            "--seed",
            "3",
            "--num_samples",
            "1",
        ])
        .arg("--model")
        .arg(checkpoint)
        .arg("--out")
        .arg(out)
        .output()?;
    anyhow::ensure!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let picture = std::fs::read_dir(out)?.next().context("a picture")??.path();
    let colours: BTreeSet<_> = image::open(picture)?.to_rgb8().pixels().map(|p| p.0).collect();
    anyhow::ensure!(colours.len() > 16, "a picture of {} colours", colours.len());
    Ok(())
}

/// Opens a checkpoint with the safetensors crate and compares it with SD's own list of keys: what the base model
/// has of it, with the base model's shapes, all in f16 and finite, and nothing else.
pub fn check_against_sd(checkpoint: &Path, base: &Path) -> anyhow::Result<()> {
    let list = std::fs::read(tests::repository().join("tests/golden/convert/sd15_keys.json"))?;
    let list: Value = serde_json::from_slice(&list)?;
    let mut base_shapes = BTreeMap::new();
    for (network, file) in [
        ("unet", "unet/diffusion_pytorch_model.safetensors"),
        ("vae", "vae/diffusion_pytorch_model.safetensors"),
        ("text_encoder", "text_encoder/model.safetensors"),
    ] {
        let bytes = std::fs::read(base.join(file))?;
        for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
            base_shapes.insert((network, name), view.shape().to_vec());
        }
    }
    let mut expected = BTreeMap::new();
    for row in list["rows"].as_array().context("rows")? {
        let text = |at: usize| row[at].as_str().context("text");
        let network = ["unet", "vae", "text_encoder"]
            .into_iter()
            .find(|n| Some(*n) == row[2].as_str());
        let network = network.context("a network")?;
        if let Some(mut shape) = base_shapes.remove(&(network, text(3)?.to_owned())) {
            if row[4] == 1 {
                shape.extend([1, 1]);
            }
            expected.insert(text(0)?.to_owned(), shape);
        }
    }
    anyhow::ensure!(base_shapes.is_empty(), "not in SD's list: {:?}", base_shapes.keys());

    let bytes = std::fs::read(checkpoint)?;
    let found = SafeTensors::deserialize(&bytes)?;
    anyhow::ensure!(
        found.len() == expected.len(),
        "{} keys, not {}",
        found.len(),
        expected.len()
    );
    for (key, shape) in expected {
        let view = found.tensor(&key).with_context(|| key.clone())?;
        anyhow::ensure!(view.shape() == shape, "{key}: {:?}, not {shape:?}", view.shape());
        anyhow::ensure!(view.dtype() == Dtype::F16, "{key}: {:?}", view.dtype());
        let halves = view
            .data()
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes([b[0], b[1]]));
        anyhow::ensure!(halves.into_iter().all(|v| v.is_finite()), "{key} is not finite");
    }
    Ok(())
}
