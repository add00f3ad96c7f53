//! Whole networks of few channels: every gradient against central differences, odd sizes among them.

use super::unet::{UNetInputs, sinusoids, unet};
use super::{text_encoder::text_encoder, vae};
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{Group, Kind, Op, Program};
use crate::engine::plan::{lives, plan};
use crate::engine::testing::Case;
use crate::models::config::{TextEncoderConfig, UNetConfig, VaeConfig};

fn unet_config() -> UNetConfig {
    serde_json::from_str(
        r#"{"sample_size": 8, "block_out_channels": [4, 8], "cross_attention_dim": 4, "norm_num_groups": 2,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 2}"#,
    )
    .unwrap()
}

fn text_config() -> TextEncoderConfig {
    serde_json::from_str(
        r#"{"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 6}"#,
    )
    .unwrap()
}

fn vae_config() -> VaeConfig {
    serde_json::from_str(r#"{"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2}"#).unwrap()
}

/// Prompt to prediction, both networks trained.
fn dreambooth(b: &mut Builder) -> crate::engine::ir::ValueId {
    let ids = b.input("ids", &[2, 5], Kind::Ids);
    let text_scope = Scope::new("text_encoder", Group::TextEncoder, true);
    let context = text_encoder(b, &text_config(), ids, 1, &text_scope).unwrap();
    let [latents, time] = [("latents", &[2, 5, 6, 4][..]), ("time", &[2, 4])].map(|(name, dims)| {
        let input = b.input(name, dims, Kind::F32);
        b.cast(input, Kind::Activation)
    });
    let inputs = UNetInputs { latents, time, context };
    unet(b, &unet_config(), inputs, &Scope::new("unet", Group::UNet, true)).unwrap()
}

#[test]
fn a_unet_and_its_text_encoder_learn_right() {
    let case = Case::new(|b, _| dreambooth(b));
    case.check(1);
    let (kept, again) = (case.program(false, false), case.program(false, true));
    assert_eq!(case.gradients(&kept), case.gradients(&again));
}

#[test]
fn both_halves_of_a_vae_learn_right() {
    let scope = Scope::new("vae", Group::Vae, true);
    Case::new(|b, wanted| {
        let images = b.input("images", &[1, 6, 4, 3], Kind::Activation);
        wanted.push(("d images", images));
        let moments = vae::encode(b, &vae_config(), images, &scope).unwrap();
        // All eight channels of moments enter the loss.
        let z = b.linear(moments, &scope.at("between"), 4, Bias::None, None);
        vae::decode(b, &vae_config(), z, &scope).unwrap()
    })
    .check(1);
}

/// What fusing is for: the bias of the first convolution and the timestep cost nothing of their own.
#[test]
fn sums_are_left_to_the_instructions_around_them() {
    let case = Case::new(|b, _| dreambooth(b));
    let adds = |code: &[Op]| code.iter().filter(|op| matches!(op, Op::Add { .. })).count();
    assert_eq!(adds(&case.forward.program.code), 0);
    let backward = case.program(false, false);
    // Two skips go into a resnet that hands them on as they are, too: there the sum of two finished gradients is due.
    assert_eq!(adds(&backward.code), 2);
}

#[test]
fn sinusoids_are_cosines_first() {
    let config = unet_config();
    let row = sinusoids(&config, &[3.5]);
    let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-6;
    assert!(close(row[0], 3.5f64.cos()) && close(row[2], 3.5f64.sin()), "{row:?}");
    assert!(
        close(row[1], 0.035f64.cos()) && close(row[3], 0.035f64.sin()),
        "{row:?}"
    );
}

fn sd15() -> (UNetConfig, TextEncoderConfig) {
    let unet = r#"{"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 8}"#;
    let text = r#"{"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12}"#;
    (serde_json::from_str(unet).unwrap(), serde_json::from_str(text).unwrap())
}

/// An optimizer step of two rows at 512 x 512 in 16 bits has to leave room for 8 GB of weights, moments and gradients.
#[test]
fn the_plan_of_an_sd15_step_is_close_to_what_lives_at_once() {
    let (unet_config, text_config) = sd15();
    let case = Case::shapes_only(|b| {
        let ids = b.input("ids", &[2, 77], Kind::Ids);
        let text_scope = Scope::new("text_encoder", Group::TextEncoder, true);
        let context = text_encoder(b, &text_config, ids, 1, &text_scope).unwrap();
        let latents = b.input("latents", &[2, 64, 64, 4], Kind::Activation);
        let time = b.input("time", &[2, 320], Kind::Activation);
        let inputs = UNetInputs { latents, time, context };
        unet(b, &unet_config, inputs, &Scope::new("unet", Group::UNet, true)).unwrap()
    });
    let weights: usize = case.table.params.iter().map(|param| param.len()).sum();
    assert_eq!(weights, 859_520_964 + 123_060_480);
    let size_of = |kind| if kind == Kind::Activation { 2 } else { 4 };
    for (recompute, most_mib) in [(false, 1700), (true, 400)] {
        let program = case.program(false, recompute);
        let (planned, live) = (plan(&program, size_of).arena_bytes, live_bytes(&program, size_of));
        println!(
            "recompute {recompute}: {} instructions, {} of {} MiB",
            program.code.len(),
            live >> 20,
            planned >> 20
        );
        assert!(planned as f64 <= 1.05 * live as f64, "{planned} for {live}");
        assert!(planned >> 20 <= most_mib, "{} MiB", planned >> 20);
    }
}

/// The most bytes that live at one instruction: no plan takes less.
fn live_bytes(program: &Program, size_of: impl Fn(Kind) -> usize) -> usize {
    let mut at = vec![0; program.code.len()];
    for (value, life) in program.values.iter().zip(lives(program)) {
        let Some(life) = life else { continue };
        at[life.first..=life.last]
            .iter_mut()
            .for_each(|bytes| *bytes += value.len() * size_of(value.kind));
    }
    at.into_iter().max().unwrap_or(0)
}
