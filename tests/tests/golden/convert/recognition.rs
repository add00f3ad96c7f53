//! What single files of full size are taken for, which say nothing but names and shapes. The files here have no values:
//! their length is set, and whoever read them would wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trainer::formats::{Configs, ModelError, Outline, outline};
use trainer::models::config::PredictionType;

pub type Shapes = BTreeMap<String, Vec<usize>>;

/// All 1130 of Stable Diffusion 1.5, as diffusers' converter names them.
fn sd15() -> Shapes {
    let table: Value = super::super::support::json("convert/sd15_keys.json");
    let rows = table["rows"].as_array().expect("rows").iter();
    rows.map(|row| {
        let shape = serde_json::from_value(row[1].clone()).expect("a shape");
        (row[0].as_str().expect("a name").to_owned(), shape)
    })
    .collect()
}

/// Stable Diffusion 2: linear projections, a context of 1024, and OpenCLIP's text model of 24 layers.
pub fn sd2() -> Shapes {
    let mut shapes = sd15();
    shapes.retain(|name, _| !name.starts_with("cond_stage_model."));
    for (name, shape) in &mut shapes {
        let is_projection = name.ends_with("proj_in.weight") || name.ends_with("proj_out.weight");
        if is_projection && !name.starts_with("first_stage") {
            shape.truncate(2);
        }
        if name.ends_with("attn2.to_k.weight") || name.ends_with("attn2.to_v.weight") {
            shape[1] = 1024;
        }
    }
    let text = "cond_stage_model.model";
    let mut add = |name: String, shape: &[usize]| drop(shapes.insert(format!("{text}.{name}"), shape.to_vec()));
    add("positional_embedding".into(), &[77, 1024]);
    add("token_embedding.weight".into(), &[49408, 1024]);
    add("text_projection".into(), &[1024, 1024]);
    add("logit_scale".into(), &[]);
    add("ln_final.weight".into(), &[1024]);
    add("ln_final.bias".into(), &[1024]);
    for block in 0..24 {
        for (part, out, input) in [
            ("attn.in_proj_", 3072, 1024),
            ("attn.out_proj.", 1024, 1024),
            ("mlp.c_fc.", 4096, 1024),
            ("mlp.c_proj.", 1024, 4096),
        ] {
            let name = format!("transformer.resblocks.{block}.{part}");
            add(format!("{name}weight"), &[out, input]);
            add(format!("{name}bias"), &[out]);
        }
        for norm in ["ln_1", "ln_2"] {
            let name = format!("transformer.resblocks.{block}.{norm}");
            add(format!("{name}.weight"), &[1024]);
            add(format!("{name}.bias"), &[1024]);
        }
    }
    shapes
}

pub fn write(folder: &Path, name: &str, shapes: &Shapes) -> PathBuf {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let info = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), info);
    }
    let header = serde_json::to_vec(&header).expect("JSON");
    let path = folder.join(name);
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(&path, [&length[..], &header].concat()).expect("written");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    file.set_len((8 + header.len() + end) as u64).expect("a sparse file");
    path
}

fn opened(path: &Path) -> Result<Outline, ModelError> {
    outline(&path.to_string_lossy())
}

#[test]
fn a_file_is_taken_for_what_its_shapes_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken_for = |name: &str, shapes: &Shapes| {
        let Outline { configs, guess } = opened(&write(folder.path(), name, shapes)).expect(name);
        (configs, guess.unwrap_or_default())
    };
    assert_eq!(taken_for("v1-5.safetensors", &sd15()), (Configs::sd1(), String::new()));
    // What it predicts only its name says, which is told.
    for (name, prediction, words) in [
        (
            "v2-1_768-ema-pruned.safetensors",
            PredictionType::VPrediction,
            "velocity",
        ),
        ("v2-1_512-ema-pruned.safetensors", PredictionType::Epsilon, "noise"),
        ("sd2-base.safetensors", PredictionType::Epsilon, "noise"),
    ] {
        let (configs, guess) = taken_for(name, &sd2());
        assert_eq!(configs, Configs::sd2(prediction), "{name}");
        assert!(
            guess.contains(name) && guess.contains(&format!("taken for {words}")),
            "{guess}"
        );
    }
}

#[test]
fn what_is_no_stable_diffusion_of_ours_is_refused_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let conv_in = "model.diffusion_model.input_blocks.0.0.weight";
    let with = |name: &str, shape: Option<&[usize]>| {
        let mut shapes = sd15();
        match shape {
            Some(shape) => shapes.insert(name.into(), shape.to_vec()),
            None => shapes.remove(name),
        };
        let path = write(folder.path(), "model.safetensors", &shapes);
        opened(&path).map(drop).expect_err(name)
    };
    let unsupported = |error: ModelError, words: &str| {
        assert!(matches!(&error, ModelError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    unsupported(with(conv_in, Some(&[320, 9, 3, 3])), "inpainting");
    unsupported(with(conv_in, Some(&[320, 8, 3, 3])), "InstructPix2Pix");
    unsupported(with(conv_in, Some(&[128, 4, 3, 3])), "shapes");
    unsupported(with(conv_in, None), "no whole Stable Diffusion");
    let xl = "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias";
    unsupported(with(xl, Some(&[768])), "Stable Diffusion XL");

    // Names and shapes are checked although no value is read.
    let name = "first_stage_model.decoder.conv_in.bias";
    let missing = with(name, None);
    assert!(
        matches!(&missing, ModelError::Missing { tensor, .. } if tensor == name),
        "{missing}"
    );
    let short = with(name, Some(&[511]));
    assert!(
        matches!(&short, ModelError::Shape { tensor, .. } if tensor == name),
        "{short}"
    );
}
