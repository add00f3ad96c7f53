//! Text encoder, VAE and U-Net against diffusers' outputs on the same weights.

use std::collections::BTreeMap;

use candle_core::{D, DType, IndexOp, Tensor};
use serde::Deserialize;
use trainer::engine::builder::Scope;
use trainer::engine::ir::{Group, Kind};
use trainer::engine::nets::networks::Networks;
use trainer::engine::nets::programs::{Part, Plan};
use trainer::engine::nets::text_encoder::{pooled, text_encoder};
use trainer::engine::nets::unet::{UNetInputs, sinusoids, unet};
use trainer::engine::nets::vae;
use trainer::models::config::{TextEncoderConfig, UNetConfig, VaeConfig};
use trainer::models::{ModelConfig, parameter_shapes};

use super::engine::{Given, networks, probed, text};
use super::support::{
    Golden, Table, Tensors, inputs, json, load, part_of, peek, relmax, relmax_named, relmax_values, values,
};

const TEXT_TOLERANCE: f64 = 1e-5;
const TOLERANCE: f64 = 2e-5;
const END_ID: u32 = 49407;

pub fn text_encoder_weights() -> Tensors {
    inputs("tiny-sd/text_encoder/model.safetensors")
}

pub fn unet_weights() -> Tensors {
    inputs("tiny-sd/unet/diffusion_pytorch_model.safetensors")
}

fn vae_weights() -> Tensors {
    inputs("tiny-sd/vae/diffusion_pytorch_model.safetensors")
}

fn text_config() -> TextEncoderConfig {
    json("tiny-sd/text_encoder/config.json")
}

fn unet_config() -> UNetConfig {
    json("tiny-sd/unet/config.json")
}

fn vae_config() -> VaeConfig {
    json("tiny-sd/vae/config.json")
}

fn text_only(weights: &Tensors) -> Networks {
    let plan = Plan {
        text_encoder: Some(text_config()),
        ..Plan::default()
    };
    networks(plan, &[(Part::TextEncoder, weights)])
}

/// The U-Net, and an eye with the same weights.
fn unet_only(weights: &Tensors) -> Networks {
    let plan = Plan {
        unet: Some(unet_config()),
        eye: true,
        ..Plan::default()
    };
    networks(plan, &[(Part::UNet, weights), (Part::Eye, weights)])
}

fn vae_only(weights: &Tensors) -> Networks {
    let plan = Plan {
        vae: Some(vae_config()),
        ..Plan::default()
    };
    networks(plan, &[(Part::Vae, weights)])
}

#[test]
fn text_encoder_gives_the_reference_states() {
    let golden = load("forward/text_encoder.safetensors");
    let mut model = text_only(&text_encoder_weights());
    let ids = golden["input_ids"].to_dtype(DType::U32).unwrap();
    let short = golden["short_input_ids"].to_dtype(DType::U32).unwrap();
    let states = text(&mut model, &ids, 1);

    let mut table = Table::new("text encoder");
    let mut check = |name: &str, got: &Tensor| table.check(name, relmax(got, &golden[name]), TEXT_TOLERANCE);
    check("last_hidden_state", &states);
    check("clip_skip2", &text(&mut model, &ids, 2));
    check("pooler_output", &pooled(&states, &ids, END_ID).unwrap());
    check("short_last_hidden_state", &text(&mut model, &short, 1));
    let ids = ids.i(..1).unwrap();
    let seen = probed(&text_encoder_weights(), "text_encoder.", |b| {
        let input = b.input("ids", ids.dims(), Kind::Ids);
        let scope = Scope::new("text_encoder", Group::TextEncoder, false);
        text_encoder(b, &text_config(), input, 1, &scope).unwrap();
        BTreeMap::from([("ids", Given::Ids(&ids))])
    });
    for layer in 0..=text_config().num_hidden_layers {
        let name = format!("hidden_states.{layer}");
        check(&name, &seen[&format!("text_encoder.text_model.{name}")]);
    }
    table.finish();
}

#[test]
fn vae_gives_the_reference_moments_and_pictures() {
    let golden = load("forward/vae.safetensors");
    let mut model = vae_only(&vae_weights());
    let mut table = Table::new("vae");
    for case in ["sq", "wide"] {
        let golden_of = |name: &str| &golden[format!("{case}.{name}").as_str()];
        let latents = model.encode(golden_of("image")).unwrap();
        let sample = latents.sample_with(golden_of("eps")).unwrap();
        let decoded = model.decode(golden_of("z")).unwrap();
        let outputs = [
            ("mean", &latents.mean),
            ("logvar", &latents.logvar),
            ("std", &latents.std().unwrap()),
            ("sample", &sample),
            ("latents", &(&sample * vae_config().scaling_factor).unwrap()),
            ("decoded", &decoded),
        ];
        for (name, got) in outputs {
            let name = format!("{case}.{name}");
            table.check(&name, relmax(got, &golden[name.as_str()]), TOLERANCE);
        }
        let seen = probed(&vae_weights(), "vae.", |b| {
            let scope = Scope::new("vae", Group::Vae, false);
            let given = [("image", golden_of("image")), ("z", golden_of("z"))].map(|(name, map)| {
                let (rows, channels, height, width) = map.dims4().unwrap();
                let input = b.input(name, &[rows, height, width, channels], Kind::Activation);
                match name {
                    "image" => vae::encode(b, &vae_config(), input, &scope),
                    _ => vae::decode(b, &vae_config(), input, &scope),
                }
                .unwrap();
                (name, Given::Map(map))
            });
            BTreeMap::from(given)
        });
        for name in activations(&golden, &format!("{case}.act.")) {
            let full = format!("{case}.act.{name}");
            table.check(
                &full,
                relmax_named(&seen[&format!("vae.{name}")], &golden, &full),
                TOLERANCE,
            );
        }
    }
    table.finish();
}

/// Names of the golden module outputs under `prefix`.
fn activations(golden: &Golden, prefix: &str) -> Vec<String> {
    golden
        .names()
        .filter_map(|name| name.strip_prefix(prefix))
        .map(|name| name.replace("#stride7", ""))
        .collect()
}

/// All that the U-Net's modules put out, of the first row.
fn seen_in_unet(sample: &Tensor, t: f32, context: &Tensor) -> Tensors {
    let (rows, channels, height, width) = sample.dims4().unwrap();
    let time = sinusoids(&unet_config(), &vec![t; rows]);
    let time = Tensor::from_vec(time.clone(), (rows, time.len() / rows), sample.device()).unwrap();
    let mut seen = probed(&unet_weights(), "unet.", |b| {
        let inputs = UNetInputs {
            latents: b.input("latents", &[rows, height, width, channels], Kind::Activation),
            time: b.input("time", time.dims(), Kind::Activation),
            context: b.input("context", context.dims(), Kind::Activation),
        };
        unet(b, &unet_config(), inputs, &Scope::new("unet", Group::UNet, false)).unwrap();
        BTreeMap::from([
            ("latents", Given::Map(sample)),
            ("time", Given::Values(&time)),
            ("context", Given::Values(context)),
        ])
    });
    seen.insert("unet.time_proj".to_string(), time);
    seen.into_iter()
        .map(|(name, value)| (name, value.i(..1).unwrap()))
        .collect()
}

#[test]
fn unet_gives_the_reference_predictions() {
    let golden = part_of("forward/unet.safetensors", "predictions");
    let mut model = unet_only(&unet_weights());
    let states = &golden["encoder_hidden_states"];
    let mut table = Table::new("unet");
    for (case, rows) in [
        ("sq", 0..2),
        ("small", 0..2),
        ("wide", 3..4),
        ("tall", 0..1),
        ("odd", 2..3),
    ] {
        let (sample, context) = (&golden[format!("{case}.sample").as_str()], states.i(rows).unwrap());
        for t in [1f32, 500., 981.] {
            let prefix = format!("{case}.t{t}");
            let Some(want) = golden.get(&format!("{prefix}.out")) else {
                continue;
            };
            let timesteps = vec![t; sample.dim(0).unwrap()];
            let got = model.predict(sample, &timesteps, &context).unwrap();
            table.check(format!("{prefix}.out"), relmax(&got, want), TOLERANCE);
            let names = activations(&golden, &format!("{prefix}.act."));
            if names.is_empty() {
                continue;
            }
            let seen = seen_in_unet(sample, t, &context);
            for name in names {
                let full = format!("{prefix}.act.{name}");
                table.check(&full, compare_activation(&name, &full, &seen, &golden), TOLERANCE);
            }
            let mid = model.look(sample, &timesteps, &context).unwrap().i(..1).unwrap();
            let want = seen["unet.mid_block"].mean((2, 3)).unwrap();
            table.check(format!("{prefix} seen by the eye"), relmax(&mid, &want), TOLERANCE);
        }
    }
    table.finish();
}

/// `full`: the golden name of what module `name` puts out.
fn compare_activation(name: &str, full: &str, seen: &Tensors, golden: &Golden) -> f64 {
    let attention = "unet.down_blocks.0.attentions.0";
    let of_block = |leaf: &str| &seen[&format!("{attention}.transformer_blocks.0.{leaf}")];
    // Sums with the residual are what ours are; the branch is the difference of two of them.
    let branch = |sum: &Tensor, before: &Tensor| relmax_named(&(sum - before).unwrap(), golden, full);
    match name {
        "conv_norm_out" => relmax_before_silu(&seen["unet.conv_norm_out.silu"], golden, full),
        "d0r0" => relmax_named(&seen["unet.down_blocks.0.resnets.0"], golden, full),
        "d0a0.out" => relmax_named(&seen[attention], golden, full),
        "d0a0.norm" => relmax_named(&seen[&format!("{attention}.norm")], golden, full),
        "d0a0.proj_in" => {
            let tokens = golden[full].flatten_from(2).unwrap().transpose(1, 2).unwrap();
            relmax(&seen[&format!("{attention}.proj_in")], &tokens)
        }
        "d0a0.attn1" => branch(of_block("attn1"), &seen[&format!("{attention}.proj_in")]),
        "d0a0.attn2" => branch(of_block("attn2"), of_block("attn1")),
        "d0a0.ff" => branch(of_block("ff"), of_block("attn2")),
        _ => match name.strip_prefix("d0a0.") {
            Some(leaf) => relmax_named(of_block(leaf), golden, full),
            None => relmax_named(&seen[&format!("unet.{name}")], golden, full),
        },
    }
}

/// The golden value is the norm's output; ours has the SiLU in the same pass.
fn relmax_before_silu(got: &Tensor, golden: &Golden, name: &str) -> f64 {
    let strided = format!("{name}#stride7");
    let (want, stride) = match golden.get(name) {
        Some(want) => (want, 1),
        None => (&golden[strided.as_str()], 7),
    };
    let kept: Vec<f64> = values(got).into_iter().step_by(stride).collect();
    relmax_values(&kept, &values(&want.silu().unwrap()))
}

#[test]
fn unet_takes_a_timestep_per_row_a_fractional_one_and_short_prompts() {
    let golden = part_of("forward/unet.safetensors", "special cases");
    let mut model = unet_only(&unet_weights());
    let states = &golden["encoder_hidden_states"];
    let (two, one) = (&golden["sq.sample"], golden["sq.sample"].i(..1).unwrap());
    let mut table = Table::new("unet, special cases");
    let mut check = |name: &str, sample: &Tensor, t: &[f32], context: &Tensor| {
        let got = model.predict(sample, t, context).unwrap();
        table.check(name, relmax(&got, &golden[name]), TOLERANCE);
    };
    let mixed = golden["mixed_timesteps"].to_dtype(DType::F32).unwrap();
    check("mixed_t.out", two, &mixed.to_vec1().unwrap(), &states.i(..2).unwrap());
    check("float_t.out", &one, &[958.0435], &states.i(..1).unwrap());
    let short = peek("forward/text_encoder.safetensors");
    check("short_ctx.out", &one, &[500.], &short["short_last_hidden_state"]);
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
        let tensor = match probe.scaled_tensors[model].contains(&name) {
            true => (tensor * probe.factor).unwrap(),
            false => tensor,
        };
        (name, tensor)
    };
    weights.into_iter().map(scale).collect()
}

#[test]
fn every_norm_has_the_right_eps() {
    let (golden, probe) = (
        load("forward/eps_probe.safetensors"),
        json::<EpsProbe>("forward/eps_probe.json"),
    );
    let (unet_inputs, vae_inputs) = (peek("forward/unet.safetensors"), peek("forward/vae.safetensors"));
    let mut table = Table::new("eps probe");
    let mut check = |name: &str, got: &Tensor| table.check(name, relmax_named(got, &golden, name), TOLERANCE);

    let context = unet_inputs["encoder_hidden_states"].i(..2).unwrap();
    let mut model = unet_only(&scaled(unet_weights(), "unet", &probe));
    let predicted = model.predict(&unet_inputs["sq.sample"], &[probe.unet_timestep; 2], &context);
    check("unet.sq.out", &predicted.unwrap());

    let mut model = vae_only(&scaled(vae_weights(), "vae", &probe));
    let latents = model.encode(&vae_inputs["sq.image"]).unwrap();
    check("vae.sq.mean", &latents.mean);
    check("vae.sq.logvar", &latents.logvar);
    check("vae.sq.decoded", &model.decode(&vae_inputs["sq.z"]).unwrap());

    let ids = peek("forward/text_encoder.safetensors")["input_ids"].to_dtype(DType::U32);
    let mut model = text_only(&scaled(text_encoder_weights(), "text_encoder", &probe));
    check(
        "text.last_hidden_state",
        &text(&mut model, &ids.unwrap().i(..2).unwrap(), 1),
    );
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
    let golden = peek("forward/text_encoder.safetensors");
    let config: trainer::models::config::TextEncoderConfig = json("tiny-sd/text_encoder/config.json");
    assert_eq!(golden["last_hidden_state"].dim(D::Minus1).unwrap(), config.hidden_size);
}
