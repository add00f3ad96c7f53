//! `AutoencoderKL`: pictures to latents of an eighth of their side, and back.

use candle_core::Tensor;

use super::SAME;
use super::resnet::{ResnetSettings, resnet};
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{Shift, ValueId, Window};
use crate::models::config::VaeConfig;
use crate::models::params::ParamError;

/// Of every norm in the VAE, the attention's included.
const EPS: f64 = 1e-6;
/// Bounds of the log-variance, so that its exponential stays finite.
pub const LOGVAR_RANGE: (f64, f64) = (-30., 20.);
/// Pads right and bottom only, unlike the U-Net.
const HALVE: Window = Window {
    kernel: 3,
    stride: 2,
    before: 0,
    after: 1,
};

/// What the encoder knows about a picture's latents: independent normal distributions, `[rows, 4, h / 8, w / 8]` each.
#[derive(Clone, Debug)]
pub struct LatentDistribution {
    pub mean: Tensor,
    pub logvar: Tensor,
}

impl LatentDistribution {
    /// Of `moments` `[rows, 8, h / 8, w / 8]`: means, then log-variances.
    ///
    /// # Errors
    /// When it has another shape.
    pub fn new(moments: &Tensor) -> candle_core::Result<Self> {
        let channels = moments.dim(1)? / 2;
        Ok(Self {
            mean: moments.narrow(1, 0, channels)?.contiguous()?,
            logvar: moments
                .narrow(1, channels, channels)?
                .clamp(LOGVAR_RANGE.0, LOGVAR_RANGE.1)?,
        })
    }

    /// # Errors
    /// Those of the tensor operations.
    pub fn std(&self) -> candle_core::Result<Tensor> {
        (&self.logvar * 0.5)?.exp()
    }

    /// A draw, `eps` being standard normal. Not yet times the scaling factor.
    ///
    /// # Errors
    /// When `eps` has another shape.
    pub fn sample_with(&self, eps: &Tensor) -> candle_core::Result<Tensor> {
        &self.mean + (self.std()? * eps)?
    }
}

/// `images` `[rows, h, w, 3]` in -1 to 1, to `[rows, h / 8, w / 8, 8]`: four channels of means, then four of
/// log-variances, of independent normal distributions.
///
/// # Errors
/// When the configuration has no level.
pub fn encode(b: &mut Builder, config: &VaeConfig, images: ValueId, scope: &Scope) -> Result<ValueId, ParamError> {
    let moments = 2 * config.latent_channels;
    let encoder = scope.at("encoder");
    let (first, _) = ends(config)?;
    let mut x = b.conv(images, &encoder.at("conv_in"), first, SAME, Bias::Own, None);
    b.probe(&encoder, "conv_in", x);
    let widths = &config.block_out_channels;
    for (level, &channels) in widths.iter().enumerate() {
        let scope = encoder.at(format_args!("down_blocks.{level}"));
        x = resnets(b, config, x, channels, config.layers_per_block, &scope);
        if level + 1 < widths.len() {
            x = b.conv(x, &scope.at("downsamplers.0.conv"), channels, HALVE, Bias::Own, None);
        }
        b.probe(&scope, "", x);
    }
    x = middle(b, config, x, &encoder.at("mid_block"));
    x = norm_silu(b, config, x, &encoder.at("conv_norm_out"));
    x = b.conv(x, &encoder.at("conv_out"), moments, SAME, Bias::Own, None);
    b.probe(&encoder, "out", x);
    Ok(b.pointwise(x, &scope.at("quant_conv"), moments, None))
}

/// `z` `[rows, h, w, 4]`, already divided by the scaling factor, to `[rows, 8 h, 8 w, 3]` around -1 to 1.
///
/// # Errors
/// As [`encode`].
pub fn decode(b: &mut Builder, config: &VaeConfig, z: ValueId, scope: &Scope) -> Result<ValueId, ParamError> {
    let x = decode_deep(b, config, z, scope)?;
    decode_up(b, config, x, scope)
}

/// The part of [`decode`] that looks at the whole picture, to `[rows, h, w, widest]`.
///
/// # Errors
/// As [`encode`].
pub fn decode_deep(b: &mut Builder, config: &VaeConfig, z: ValueId, scope: &Scope) -> Result<ValueId, ParamError> {
    let decoder = scope.at("decoder");
    let (_, last) = ends(config)?;
    let z = b.pointwise(z, &scope.at("post_quant_conv"), config.latent_channels, None);
    b.probe(scope, "post_quant_conv", z);
    let mut x = b.conv(z, &decoder.at("conv_in"), last, SAME, Bias::Own, None);
    b.probe(&decoder, "conv_in", x);
    x = middle(b, config, x, &decoder.at("mid_block"));
    Ok(x)
}

/// The rest of [`decode`], which looks at neighbours alone but for the statistics of its norms.
///
/// # Errors
/// As [`encode`].
pub fn decode_up(b: &mut Builder, config: &VaeConfig, mut x: ValueId, scope: &Scope) -> Result<ValueId, ParamError> {
    let decoder = scope.at("decoder");
    let widths = &config.block_out_channels;
    for (index, &channels) in widths.iter().rev().enumerate() {
        let scope = decoder.at(format_args!("up_blocks.{index}"));
        x = resnets(b, config, x, channels, config.layers_per_block + 1, &scope);
        if index + 1 < widths.len() {
            let (height, width) = (2 * b.dims(x)[1], 2 * b.dims(x)[2]);
            x = b.upsample(x, height, width);
            x = b.conv(x, &scope.at("upsamplers.0.conv"), channels, SAME, Bias::Own, None);
        }
        b.probe(&scope, "", x);
    }
    x = norm_silu(b, config, x, &decoder.at("conv_norm_out"));
    Ok(b.conv(x, &decoder.at("conv_out"), config.out_channels, SAME, Bias::Own, None))
}

fn settings(config: &VaeConfig) -> ResnetSettings {
    ResnetSettings {
        groups: config.norm_num_groups,
        eps: EPS,
    }
}

fn norm_silu(b: &mut Builder, config: &VaeConfig, x: ValueId, scope: &Scope) -> ValueId {
    b.group_norm(x, Shift::default(), scope, (config.norm_num_groups, EPS), true)
}

fn resnets(
    b: &mut Builder,
    config: &VaeConfig,
    mut x: ValueId,
    channels: usize,
    count: usize,
    scope: &Scope,
) -> ValueId {
    for index in 0..count {
        let scope = scope.at(format_args!("resnets.{index}"));
        x = resnet(b, x, None, channels, settings(config), &scope);
    }
    x
}

/// `UNetMidBlock2D` with one attention of a single head.
fn middle(b: &mut Builder, config: &VaeConfig, x: ValueId, scope: &Scope) -> ValueId {
    let channels = b.dims(x)[3];
    let x = resnet(b, x, None, channels, settings(config), &scope.at("resnets.0"));
    let x = attention(b, config, x, &scope.at("attentions.0"));
    let x = resnet(b, x, None, channels, settings(config), &scope.at("resnets.1"));
    b.probe(scope, "", x);
    x
}

fn attention(b: &mut Builder, config: &VaeConfig, x: ValueId, scope: &Scope) -> ValueId {
    let (dims, channels) = (b.dims(x).to_vec(), b.dims(x)[3]);
    let output = b.segment(|b| {
        let norm = (config.norm_num_groups, EPS);
        let normed = b.group_norm(x, Shift::default(), &scope.at("group_norm"), norm, false);
        let (tokens, residual) = (b.tokens(normed), b.tokens(x));
        let qkv = ["to_q", "to_k", "to_v"].map(|name| b.linear(tokens, &scope.at(name), channels, Bias::Own, None));
        let attended = b.attention(qkv, 1, false);
        b.linear(attended, &scope.at("to_out.0"), channels, Bias::Own, Some(residual))
    });
    let output = b.reshape(output, &dims);
    b.probe(scope, "", output);
    output
}

/// First and last width.
pub(super) fn ends(config: &VaeConfig) -> Result<(usize, usize), ParamError> {
    let widths = &config.block_out_channels;
    match (widths.first(), widths.last()) {
        (Some(&first), Some(&last)) => Ok((first, last)),
        _ => Err(ParamError::Config {
            setting: "block_out_channels",
            got: "[]".to_string(),
            supported: "at least one level",
        }),
    }
}
