//! Text encoder, VAE and U-Net against diffusers' outputs on the same weights.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, IndexOp, Tensor};
use serde::Deserialize;
use trainer::models::{
    ModelConfig, parameter_shapes, params::Params, probe::Probe, text_encoder::ClipTextModel,
    unet::UNet2DConditionModel, vae::AutoencoderKl,
};

use super::support::{Table, Tensors, json, load, relmax, relmax_named};

const TEXT_TOLERANCE: f64 = 1e-5;
const TOLERANCE: f64 = 2e-5;
const END_ID: u32 = 49407;

pub fn text_encoder_weights() -> Tensors {
    load("tiny-sd/text_encoder/model.safetensors")
}

pub fn unet_weights() -> Tensors {
    load("tiny-sd/unet/diffusion_pytorch_model.safetensors")
}

fn vae_weights() -> Tensors {
    load("tiny-sd/vae/diffusion_pytorch_model.safetensors")
}

fn frozen(weights: &Tensors) -> Params {
    Params::frozen(weights, DType::F32, &Device::Cpu).unwrap()
}

fn text_encoder(weights: &Tensors) -> ClipTextModel {
    let params = frozen(weights);
    let model = ClipTextModel::new(&json("tiny-sd/text_encoder/config.json"), &params).unwrap();
    params.finish().unwrap();
    model
}

fn unet(weights: &Tensors) -> UNet2DConditionModel {
    let params = frozen(weights);
    let model = UNet2DConditionModel::new(&json("tiny-sd/unet/config.json"), &params).unwrap();
    params.finish().unwrap();
    model
}

fn vae(weights: &Tensors) -> AutoencoderKl {
    let params = frozen(weights);
    let model = AutoencoderKl::new(&json("tiny-sd/vae/config.json"), &params).unwrap();
    params.finish().unwrap();
    model
}

fn timesteps(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn text_encoder_gives_the_reference_states() {
    let (golden, model) = (
        load("forward/text_encoder.safetensors"),
        text_encoder(&text_encoder_weights()),
    );
    let ids = golden["input_ids"].to_dtype(DType::U32).unwrap();
    let short = golden["short_input_ids"].to_dtype(DType::U32).unwrap();
    let states = model.forward(&ids).unwrap();

    let mut table = Table::new("text encoder");
    let mut check = |name: &str, got: &Tensor| table.check(name, relmax(got, &golden[name]), TEXT_TOLERANCE);
    check("last_hidden_state", &states);
    check("clip_skip2", &model.forward_clip_skip(&ids, 2).unwrap());
    check("pooler_output", &model.pooled(&states, &ids, END_ID).unwrap());
    check("short_last_hidden_state", &model.forward(&short).unwrap());
    let mut observe = |name: &str, got: &Tensor| check(name, &got.i(..1).unwrap());
    model.forward_probed(&ids, 1, Probe::new(&mut observe)).unwrap();
    table.finish();
}

#[test]
fn vae_gives_the_reference_moments_and_pictures() {
    let (golden, model) = (load("forward/vae.safetensors"), vae(&vae_weights()));
    let mut table = Table::new("vae");
    for case in ["sq", "wide"] {
        let mut seen: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut observe = |name: &str, got: &Tensor| drop(seen.insert(name.to_string(), got.clone()));
        let golden_of = |name: &str| &golden[&format!("{case}.{name}")];
        let latents = model
            .encode_probed(golden_of("image"), Probe::new(&mut observe))
            .unwrap();
        let sample = latents.sample_with(golden_of("eps")).unwrap();
        let decoded = model.decode_probed(golden_of("z"), Probe::new(&mut observe)).unwrap();
        let outputs = [
            ("mean", &latents.mean),
            ("logvar", &latents.logvar),
            ("std", &latents.std().unwrap()),
            ("sample", &sample),
            ("latents", &(&sample * model.config().scaling_factor).unwrap()),
            ("decoded", &decoded),
        ];
        for (name, got) in outputs {
            let name = format!("{case}.{name}");
            table.check(&name, relmax(got, &golden[&name]), TOLERANCE);
        }
        for name in activations(&golden, &format!("{case}.act.")) {
            let full = format!("{case}.act.{name}");
            table.check(&full, relmax_named(&seen[&name], &golden, &full), TOLERANCE);
        }
    }
    table.finish();
}

/// Names of the golden module outputs under `prefix`.
fn activations(golden: &Tensors, prefix: &str) -> Vec<String> {
    golden
        .keys()
        .filter_map(|name| name.strip_prefix(prefix))
        .map(|name| name.replace("#stride7", ""))
        .collect()
}

#[test]
fn unet_gives_the_reference_predictions() {
    let (golden, model) = (load("forward/unet.safetensors"), unet(&unet_weights()));
    let states = &golden["encoder_hidden_states"];
    let mut table = Table::new("unet");
    for (case, rows) in [
        ("sq", 0..2),
        ("small", 0..2),
        ("wide", 3..4),
        ("tall", 0..1),
        ("odd", 2..3),
    ] {
        let (sample, context) = (&golden[&format!("{case}.sample")], states.i(rows).unwrap());
        for t in [1f32, 500., 981.] {
            let prefix = format!("{case}.t{t}");
            let Some(want) = golden.get(&format!("{prefix}.out")) else {
                continue;
            };
            let mut seen: BTreeMap<String, Tensor> = BTreeMap::new();
            let mut observe = |name: &str, got: &Tensor| drop(seen.insert(name.to_string(), got.i(..1).unwrap()));
            let t = timesteps(&vec![t; sample.dim(0).unwrap()]);
            let got = model
                .forward_probed(sample, &t, &context, Probe::new(&mut observe))
                .unwrap();
            table.check(format!("{prefix}.out"), relmax(&got, want), TOLERANCE);
            for name in activations(&golden, &format!("{prefix}.act.")) {
                let full = format!("{prefix}.act.{name}");
                let error = if name == "conv_norm_out" {
                    relmax_before_silu(&seen["conv_norm_out.silu"], &golden, &full)
                } else {
                    relmax_named(&seen[&parameter_path(&name)], &golden, &full)
                };
                table.check(full, error, TOLERANCE);
            }
            let mid = model.mid_features(sample, &t, &context).unwrap().i(..1).unwrap();
            assert_eq!(
                relmax(&mid, &seen["mid_block"]),
                0.,
                "mid_features is the forward's own"
            );
        }
    }
    table.finish();
}

/// The golden file's short names for the insides of down block 0.
fn parameter_path(name: &str) -> String {
    let attention = "down_blocks.0.attentions.0";
    match name {
        "d0r0" => "down_blocks.0.resnets.0".to_string(),
        "d0a0.out" => attention.to_string(),
        "d0a0.norm" | "d0a0.proj_in" => name.replace("d0a0", attention),
        _ => name.replace("d0a0", &format!("{attention}.transformer_blocks.0")),
    }
}

/// The golden value is the norm's output; ours has the SiLU in the same pass.
fn relmax_before_silu(got: &Tensor, golden: &Tensors, name: &str) -> f64 {
    let silu = |x: &Tensor| x.silu().unwrap();
    let name = if golden.contains_key(name) {
        name.to_string()
    } else {
        format!("{name}#stride7")
    };
    relmax_named(
        got,
        &BTreeMap::from([(name.clone(), silu(&golden[&name]))]),
        name.trim_end_matches("#stride7"),
    )
}

#[test]
fn unet_takes_a_timestep_per_row_a_fractional_one_and_short_prompts() {
    let (golden, model) = (load("forward/unet.safetensors"), unet(&unet_weights()));
    let states = &golden["encoder_hidden_states"];
    let (two, one) = (&golden["sq.sample"], golden["sq.sample"].i(..1).unwrap());
    let mut table = Table::new("unet, special cases");
    let mut check = |name: &str, sample: &Tensor, t: &Tensor, context: &Tensor| {
        let got = model.forward(sample, t, context).unwrap();
        table.check(name, relmax(&got, &golden[name]), TOLERANCE);
    };
    let mixed = golden["mixed_timesteps"].to_dtype(DType::F32).unwrap();
    check("mixed_t.out", two, &mixed, &states.i(..2).unwrap());
    check("float_t.out", &one, &timesteps(&[958.0435]), &states.i(..1).unwrap());
    let short = &load("forward/text_encoder.safetensors")["short_last_hidden_state"];
    check("short_ctx.out", &one, &timesteps(&[500.]), short);
    table.finish();
}

#[derive(Deserialize)]
struct EpsProbe {
    factor: f64,
    unet_timestep: f32,
    scaled_tensors: BTreeMap<String, Vec<String>>,
}

/// The probe's weights: some tensors made so small that a norm's eps decides the outputs.
fn scaled(weights: Tensors, model: &str, probe: &EpsProbe) -> Tensors {
    let scale = |(name, tensor): (String, Tensor)| {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        let scaled = probe.scaled_tensors[model].contains(&name);
        (
            name,
            if scaled {
                (tensor * probe.factor).unwrap()
            } else {
                tensor
            },
        )
    };
    weights.into_iter().map(scale).collect()
}

#[test]
fn every_norm_has_the_right_eps() {
    let (golden, probe) = (
        load("forward/eps_probe.safetensors"),
        json::<EpsProbe>("forward/eps_probe.json"),
    );
    let (unet_inputs, vae_inputs) = (load("forward/unet.safetensors"), load("forward/vae.safetensors"));
    let mut table = Table::new("eps probe");
    let mut check = |name: &str, got: &Tensor| table.check(name, relmax_named(got, &golden, name), TOLERANCE);

    let context = unet_inputs["encoder_hidden_states"].i(..2).unwrap();
    let t = timesteps(&[probe.unet_timestep; 2]);
    let model = unet(&scaled(unet_weights(), "unet", &probe));
    check(
        "unet.sq.out",
        &model.forward(&unet_inputs["sq.sample"], &t, &context).unwrap(),
    );

    let model = vae(&scaled(vae_weights(), "vae", &probe));
    let latents = model.encode(&vae_inputs["sq.image"]).unwrap();
    check("vae.sq.mean", &latents.mean);
    check("vae.sq.logvar", &latents.logvar);
    check("vae.sq.decoded", &model.decode(&vae_inputs["sq.z"]).unwrap());

    let ids = load("forward/text_encoder.safetensors")["input_ids"]
        .to_dtype(DType::U32)
        .unwrap()
        .i(..2)
        .unwrap();
    let model = text_encoder(&scaled(text_encoder_weights(), "text_encoder", &probe));
    check("text.last_hidden_state", &model.forward(&ids).unwrap());
    table.finish();
}

/// Original key and shape, component, diffusers key, 1 where the original has a convolution [c, c, 1, 1] for a linear
/// layer [c, c], the VAE attention's old key.
type Sd15Row = (String, Vec<usize>, String, String, u8, Option<String>);

#[derive(Deserialize)]
struct Sd15Keys {
    rows: Vec<Sd15Row>,
}

#[test]
fn full_size_models_have_sd15s_weights_and_no_others() {
    let unet = serde_json::from_str(
        r#"{"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": 8}"#,
    );
    let text_encoder = serde_json::from_str(
        r#"{"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12}"#,
    );
    let vae = serde_json::from_str(r#"{"block_out_channels": [128, 256, 512, 512]}"#);
    let (unet, text_encoder, vae) = (unet.unwrap(), text_encoder.unwrap(), vae.unwrap());
    let configs = [
        ("unet", ModelConfig::UNet(&unet)),
        ("text_encoder", ModelConfig::TextEncoder(&text_encoder)),
        ("vae", ModelConfig::Vae(&vae)),
    ];
    let keys: Sd15Keys = json("convert/sd15_keys.json");
    for (component, config) in configs {
        let ours: BTreeMap<String, Vec<usize>> = parameter_shapes(config).unwrap().into_iter().collect();
        let rows = keys.rows.iter().filter(|row| row.2 == component);
        let theirs: BTreeMap<String, Vec<usize>> = rows
            .map(|(_, shape, _, key, is_conv_there, _)| {
                let length = if *is_conv_there == 1 { 2 } else { shape.len() };
                (key.clone(), shape[..length].to_vec())
            })
            .collect();
        assert_eq!(ours, theirs, "{component}");
    }
}

/// Guards the reader of this folder: a golden file that was cut short would make the tests above vacuous.
#[test]
fn the_last_dimension_of_the_states_is_the_models_width() {
    let golden = load("forward/text_encoder.safetensors");
    let config: trainer::models::config::TextEncoderConfig = json("tiny-sd/text_encoder/config.json");
    assert_eq!(golden["last_hidden_state"].dim(D::Minus1).unwrap(), config.hidden_size);
}
