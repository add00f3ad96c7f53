//! Runs that train adapters in place of the weights.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use trainer::formats::{self, Lora, ModelWeights, Tensors};

use super::*;
use crate::golden::support::relmax;

/// With an alpha that is not the rank, and nothing left out that a state must hold.
fn lora_recipe(steps: u32) -> RecipeDraft {
    RecipeDraft {
        lora_rank: Some(4),
        lora_alpha: Some(6.0),
        train_text_encoder: true,
        use_8bit_adam: true,
        learning_rate: 1e-2,
        ..recipe(steps)
    }
}

fn exported(job: &Job, run: &Run, format: ExportFormat) -> PathBuf {
    let file = run.exported.iter().find(|file| file.format == format).unwrap();
    job.path("export").join(&file.name)
}

fn model(path: &Path) -> ModelWeights {
    formats::load(&path.display().to_string()).unwrap()
}

/// All tensors that training could have touched.
fn learners(model: &ModelWeights) -> BTreeMap<String, Tensor> {
    let of = |network: &'static str, tensors: &Tensors| -> Vec<(String, Tensor)> {
        let named = tensors
            .iter()
            .map(|(path, tensor)| (format!("{network}.{path}"), tensor.clone()));
        named.collect()
    };
    let all = [of("unet", &model.unet), of("text_encoder", &model.text_encoder)].concat();
    all.into_iter().collect()
}

fn halves(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F16).unwrap()
}

#[test]
fn a_lora_is_exported_alone_and_merged() {
    let job = Job::new(&lora_recipe(6));
    let (status, printed) = job.run();
    assert!(status.success(), "{status}: {:?}", printed.last());
    let run = Run::from_events(&printed).expect("no gap in seq");
    let formats: Vec<ExportFormat> = run.exported.iter().map(|file| file.format).collect();
    assert_eq!(
        formats,
        [ExportFormat::Lora, ExportFormat::Safetensors, ExportFormat::Ckpt]
    );
    assert_ne!(
        sha256(&job.path("samples/0/0.png")),
        sha256(&job.path("samples/6/0.png")),
        "samples are drawn with what was learned"
    );

    let base = model(Path::new(&tiny_model()));
    let path = exported(&job, &run, ExportFormat::Lora);
    let lora: Lora = formats::load_lora(&path, &base).unwrap();
    let is_attention = |layer: &str| {
        [".attn1.", ".attn2.", ".self_attn."]
            .iter()
            .any(|part| layer.contains(part))
    };
    assert!(lora.layers.keys().all(|layer| is_attention(layer)));
    assert!(
        lora.layers
            .values()
            .all(|low| low.alpha == 6.0 && low.down.dim(0).unwrap() == 4)
    );
    let mut by_hand = base.clone();
    lora.merge_into(&mut by_hand, &path).unwrap();

    let (base, by_hand) = (learners(&base), learners(&by_hand));
    let merged = learners(&model(&exported(&job, &run, ExportFormat::Safetensors)));
    let mut still = Vec::new();
    for (name, got) in &merged {
        if lora.layers.contains_key(name.trim_end_matches(".weight")) {
            // Both were rounded to 16 bits, the sum and what was added.
            let error = relmax(got, &by_hand[name]);
            assert!(error < 2e-3, "{name}: {error}");
            if relmax(got, &halves(&base[name])) < 1e-3 {
                still.push(name.as_str());
            }
        } else {
            assert_eq!(relmax(got, &halves(&base[name])), 0.0, "{name} is not to be touched");
        }
    }
    // Pictures of 64 pixels are a single place at the deepest level: there is nothing to choose between.
    let to = |leaf: &str| format!("unet.mid_block.attentions.0.transformer_blocks.0.attn1.{leaf}.weight");
    assert_eq!(still, [to("to_k"), to("to_q")], "every other layer learned");
}

#[test]
fn a_killed_lora_run_ends_with_the_same_bits() {
    const STEPS: u32 = 12;
    let whole = Job::new(&lora_recipe(STEPS));
    assert!(whole.run().0.success());
    let cut = Job::new(&lora_recipe(STEPS));
    let mut trainer = cut.start();
    trainer.wait_for(|kind| is_step(kind, 5));
    trainer.kill();
    assert!(cut.run().0.success());
    let (whole, cut) = (whole.exports(), cut.exports());
    assert_eq!(whole.len(), 3);
    for ((name, bytes), (cut_name, cut_bytes)) in whole.iter().zip(&cut) {
        assert_eq!(name, cut_name);
        assert!(bytes == cut_bytes, "{name} differs");
    }
}
