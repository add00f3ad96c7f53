//! Small networks with every instruction in them, in shapes that no kernel's tile fits.

use super::Result;
use crate::engine::{
    autodiff::{Backward, backward},
    builder::{
        Bias, Builder, Scope,
        diffusion::{Clean, Levels},
    },
    ir::{Activation, Group, Kind, ParamTable, Program, Shift, ValueId, Window},
    nets::{
        text_encoder::text_encoder,
        unet::{UNetInputs, unet},
        vae,
    },
    philox::Clock,
};
use crate::models::config::{TextEncoderConfig, UNetConfig, VaeConfig};

/// Timesteps of the test networks' schedule.
const STEPS: usize = 10;

type Written = (ValueId, Option<(ValueId, ValueId)>, Vec<(&'static str, ValueId)>);

/// A training step with its weights.
pub(super) struct Network {
    pub name: &'static str,
    pub table: ParamTable,
    pub program: Program,
}

impl Network {
    /// `write` gives the prediction, whose first dimension is the rows; target and weights, where they are not inputs; and inputs
    /// that get gradients, too.
    pub fn new(
        name: &'static str,
        accumulate: bool,
        write: impl FnOnce(&mut Builder) -> Result<Written>,
    ) -> Result<Self> {
        let mut table = ParamTable::default();
        let mut b = Builder::new(&mut table);
        let (predicted, judged_by, wanted) = write(&mut b)?;
        let dims = b.dims(predicted).to_vec();
        let (target, weights) = judged_by.unwrap_or_else(|| {
            let target = b.input("target", &dims, Kind::F32);
            (target, b.input("weights", &dims[..1], Kind::F32))
        });
        let scale = b.input("scale", &[1], Kind::F32);
        let (losses, dpredicted) = b.mse(predicted, target, weights, scale);
        b.output("losses", losses);
        let forward = b.finish()?;
        let options = Backward {
            accumulate,
            recompute: false,
            light_norms: 0,
            wanted: &wanted,
        };
        let program = backward(forward, &table, &[(predicted, dpredicted)], options)?;
        Ok(Self { name, table, program })
    }
}

pub(super) fn unet_config() -> Result<UNetConfig> {
    Ok(serde_json::from_str(
        r#"{"sample_size": 8, "block_out_channels": [16, 24, 32, 32], "cross_attention_dim": 24, "norm_num_groups": 8,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": 8}"#,
    )?)
}

pub(super) fn text_config() -> Result<TextEncoderConfig> {
    Ok(serde_json::from_str(
        r#"{"vocab_size": 100, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4}"#,
    )?)
}

pub(super) fn vae_config() -> Result<VaeConfig> {
    Ok(serde_json::from_str(
        r#"{"block_out_channels": [8, 16], "norm_num_groups": 4}"#,
    )?)
}

/// Prompt to prediction, both networks trained: `rows` maps of `height` by `width` latents, prompts of `tokens`.
pub(super) fn dreambooth(rows: usize, [height, width]: [usize; 2], tokens: usize) -> Result<Network> {
    Network::new("dreambooth", false, |b| {
        let ids = b.input("ids", &[rows, tokens], Kind::Ids);
        let scope = Scope::new("text_encoder", Group::TextEncoder, true);
        let context = text_encoder(b, &text_config()?, ids, 1, &scope)?;
        let dims = [rows, height, width, 4];
        let clock = b.input("clock", &[Clock::WORDS], Kind::Ids);
        let clean = Clean {
            mean: b.input("mean", &dims, Kind::F32),
            deviation: b.input("deviation", &dims, Kind::F32),
            shares: b.input("shares", &[rows], Kind::F32),
        };
        let chance = b.draw(clock, dims, STEPS, true);
        let levels = Levels {
            schedule: b.input("schedule", &[STEPS, 3], Kind::F32),
            times: b.input("times", &[STEPS, 16], Kind::F32),
            strengths: b.input("strengths", &[2], Kind::F32),
            velocity: true,
        };
        let noisy = b.diffuse(clean, chance, levels);
        let inputs = UNetInputs {
            latents: noisy.latents,
            time: noisy.time,
            context,
        };
        let predicted = unet(b, &unet_config()?, inputs, &Scope::new("unet", Group::UNet, true))?;
        Ok((predicted, Some((noisy.target, noisy.weights)), Vec::new()))
    })
}

/// Both halves, with gradients of weights and of the input. The encoder pads at one side alone.
pub(super) fn autoencoder() -> Result<Network> {
    Network::new("vae", false, |b| {
        let images = b.input("images", &[2, 10, 6, 3], Kind::Activation);
        let scope = Scope::new("vae", Group::Vae, true);
        let moments = vae::encode(b, &vae_config()?, images, &scope)?;
        let z = b.linear(moments, &scope.at("between"), 4, Bias::Own, None);
        let decoded = vae::decode(b, &vae_config()?, z, &scope)?;
        Ok((decoded, None, vec![("d images", images)]))
    })
}

/// Convolutions and norms of the widths that SD 1.5 has, on few pixels.
pub(super) fn wide() -> Result<Network> {
    Network::new("wide", true, |b| {
        let scope = Scope::new("unet", Group::UNet, true);
        let x = b.input("x", &[2, 9, 7, 320], Kind::Activation);
        let rows = b.input("rows", &[2, 640], Kind::F32);
        let rows = b.cast(rows, Kind::Activation);
        let window = |stride| Window {
            kernel: 3,
            stride,
            before: 1,
            after: 1,
        };
        let h = b.conv(x, &scope.at("conv1"), 640, window(1), Bias::None, None);
        let channels = Some(b.weight(&scope.at("conv1"), "bias", &[640]));
        let rows = Some(rows);
        let h = b.group_norm(h, Shift { rows, channels }, &scope.at("norm"), (32, 1e-5), true);
        let skip = b.pointwise(x, &scope.at("skip"), 640, None);
        let h = b.conv(h, &scope.at("conv2"), 640, window(1), Bias::Own, Some(skip));
        let h = b.conv(h, &scope.at("down"), 320, window(2), Bias::Own, None);
        let up = b.upsample(h, 9, 7);
        let both = b.concat(up, x);
        let h = b.group_norm(both, Shift::default(), &scope.at("last"), (32, 1e-5), false);
        let y = b.conv(h, &scope.at("out"), 4, window(1), Bias::Own, None);
        Ok((y, None, vec![("d x", x)]))
    })
}

/// Attention with one head size: over itself (causal or not) and over few tokens, and the layers around it.
pub(super) fn attention(name: &'static str, head: usize, tokens: usize, causal: bool) -> Result<Network> {
    Network::new(name, false, |b| {
        let scope = Scope::new("unet", Group::UNet, true);
        let (heads, width) = (2, 2 * head);
        let x = b.input("x", &[2, tokens, width], Kind::Activation);
        let context = b.input("context", &[2, 77, 24], Kind::Activation);
        let n = b.layer_norm(x, &scope.at("norm1"), 1e-5);
        let qkv = ["q", "k", "v"].map(|name| b.linear(n, &scope.at(name), width, Bias::None, None));
        let h = b.attention(qkv, heads, causal);
        let x1 = b.linear(h, &scope.at("out"), width, Bias::Own, Some(x));
        let n = b.layer_norm(x1, &scope.at("norm2"), 1e-5);
        let q = b.linear(n, &scope.at("cross.q"), width, Bias::None, None);
        let [k, v] = ["cross.k", "cross.v"].map(|name| b.linear(context, &scope.at(name), width, Bias::None, None));
        let h = b.attention([q, k, v], heads, false);
        let x2 = b.linear(h, &scope.at("cross.out"), width, Bias::Own, Some(x1));
        let gate = b.linear(x2, &scope.at("gate"), 4 * width, Bias::Own, None);
        let h = b.geglu(gate);
        let h = b.linear(h, &scope.at("down"), width, Bias::Own, Some(x2));
        let h = b.activate(Activation::QuickGelu, h);
        let h = b.activate(Activation::Gelu, h);
        Ok((h, None, vec![("d x", x), ("d context", context)]))
    })
}

/// A single head as wide as the autoencoder's, of more queries than are taken at once.
pub(super) fn wide_attention() -> Result<Network> {
    Network::new("wide attention", false, |b| {
        let scope = Scope::new("vae", Group::Vae, true);
        let x = b.input("x", &[2, 1100, 192], Kind::Activation);
        let qkv = ["q", "k", "v"].map(|name| b.linear(x, &scope.at(name), 192, Bias::Own, None));
        let h = b.attention(qkv, 1, false);
        Ok((h, None, vec![("d x", x)]))
    })
}
