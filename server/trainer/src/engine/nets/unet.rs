//! `UNet2DConditionModel`: predicts the noise in latents, given the timestep of each row and the prompt's states.

use super::SAME;
use super::resnet::ResnetSettings;
use super::transformer::TransformerSettings;
use super::unet_blocks::{Conditioning, Level};
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{Activation, Shift, ValueId};
use crate::models::config::UNetConfig;
use crate::models::params::ParamError;

/// Sinusoids reach from period 2 pi to 10000 times that.
const MAX_PERIOD: f64 = 10_000.;

/// What a U-Net reads, all in the kind that the backend computes in.
#[derive(Clone, Copy)]
pub struct UNetInputs {
    /// `[rows, h, w, 4]`.
    pub latents: ValueId,
    /// [`sinusoids`] of the timesteps, `[rows, first width]`.
    pub time: ValueId,
    /// `[rows, tokens, width]`.
    pub context: ValueId,
}

/// Where the up path starts.
struct Bottom {
    hidden: ValueId,
    skips: Vec<ValueId>,
    given: Conditioning,
}

/// The prediction, `[rows, h, w, 4]`.
///
/// # Errors
/// When the configuration asks for what there is none of.
pub fn unet(b: &mut Builder, config: &UNetConfig, inputs: UNetInputs, scope: &Scope) -> Result<ValueId, ParamError> {
    let levels = Levels::new(config)?;
    let bottom = levels.descend(b, inputs, scope)?;
    levels.ascend(b, bottom, scope)
}

/// What the deepest level makes of the latents, `[rows, h / 8, w / 8, last width]`; the way up is not computed.
///
/// # Errors
/// As [`unet`].
pub fn unet_middle(
    b: &mut Builder,
    config: &UNetConfig,
    inputs: UNetInputs,
    scope: &Scope,
) -> Result<ValueId, ParamError> {
    Ok(Levels::new(config)?.descend(b, inputs, scope)?.hidden)
}

struct Levels<'a> {
    config: &'a UNetConfig,
    first: usize,
}

impl<'a> Levels<'a> {
    fn new(config: &'a UNetConfig) -> Result<Self, ParamError> {
        let widths = &config.block_out_channels;
        let Some(&first) = widths.first() else {
            return Err(unsupported("block_out_channels", "[]", "at least one level"));
        };
        if config.down_block_types.len() != widths.len() || config.up_block_types.len() != widths.len() {
            let kinds = config.down_block_types.join(", ");
            return Err(unsupported("down_block_types", &kinds, "one block a level"));
        }
        Ok(Self { config, first })
    }

    fn count(&self) -> usize {
        self.config.block_out_channels.len()
    }

    fn resnet(&self) -> ResnetSettings {
        ResnetSettings {
            groups: self.config.norm_num_groups,
            eps: self.config.norm_eps,
        }
    }

    fn level(&self, index: usize, attends: bool, layers: usize, resamples: bool) -> Level {
        Level {
            resnet: self.resnet(),
            transformer: TransformerSettings {
                groups: self.config.norm_num_groups,
                linear_projection: self.config.use_linear_projection,
            },
            heads: attends.then(|| self.config.attention_head_dim.of(index)),
            channels: self.config.block_out_channels[index],
            layers,
            resamples,
        }
    }

    fn descend(&self, b: &mut Builder, inputs: UNetInputs, scope: &Scope) -> Result<Bottom, ParamError> {
        let config = self.config;
        let given = Conditioning {
            activated_time: self.embed_time(b, inputs.time, scope),
            context: inputs.context,
        };
        let mut hidden = b.conv(inputs.latents, &scope.at("conv_in"), self.first, SAME, Bias::Own, None);
        b.probe(scope, "conv_in", hidden);
        let mut skips = vec![hidden];
        for index in 0..self.count() {
            let attends = attends(&config.down_block_types[index], "down_block_types")?;
            let level = self.level(index, attends, config.layers_per_block, index + 1 < self.count());
            let scope = scope.at(format_args!("down_blocks.{index}"));
            hidden = level.down(b, hidden, given, &mut skips, &scope);
        }
        let deepest = self.level(self.count() - 1, true, 1, false);
        hidden = deepest.middle(b, hidden, given, &scope.at("mid_block"));
        Ok(Bottom { hidden, skips, given })
    }

    fn ascend(&self, b: &mut Builder, bottom: Bottom, scope: &Scope) -> Result<ValueId, ParamError> {
        let Bottom {
            mut hidden,
            mut skips,
            given,
        } = bottom;
        let config = self.config;
        for (step, index) in (0..self.count()).rev().enumerate() {
            let attends = attends(&config.up_block_types[step], "up_block_types")?;
            let level = self.level(index, attends, config.layers_per_block + 1, index > 0);
            let scope = scope.at(format_args!("up_blocks.{step}"));
            hidden = level.up(b, hidden, given, &mut skips, &scope);
        }
        let ResnetSettings { groups, eps } = self.resnet();
        let normed = b.group_norm(
            hidden,
            Shift::default(),
            &scope.at("conv_norm_out"),
            (groups, eps),
            true,
        );
        b.probe(scope, "conv_norm_out.silu", normed);
        Ok(b.conv(
            normed,
            &scope.at("conv_out"),
            config.out_channels,
            SAME,
            Bias::Own,
            None,
        ))
    }

    /// SiLU of the time embedding: each resnet starts with it.
    fn embed_time(&self, b: &mut Builder, time: ValueId, scope: &Scope) -> ValueId {
        let (scope, width) = (scope.at("time_embedding"), 4 * self.first);
        let hidden = b.linear(time, &scope.at("linear_1"), width, Bias::Own, None);
        let hidden = b.activate(Activation::Silu, hidden);
        let embedding = b.linear(hidden, &scope.at("linear_2"), width, Bias::Own, None);
        b.probe(&scope, "", embedding);
        b.activate(Activation::Silu, embedding)
    }
}

/// Sinusoids of timesteps (fractional ones too), `[rows, width]` with the U-Net's first width; in f32 whatever the
/// device computes in: at t near 1000 a 16-bit angle is noise.
pub fn sinusoids(config: &UNetConfig, timesteps: &[f32]) -> Vec<f32> {
    let half = config.block_out_channels.first().map_or(0, |width| width / 2);
    // Rounded to f32 at each step, as the field's training code does.
    let step = (-MAX_PERIOD.ln()) as f32;
    let span = (half as f64 - config.freq_shift) as f32;
    let frequencies: Vec<f32> = (0..half).map(|i| (step * i as f32 / span).exp()).collect();
    let row = |&timestep: &f32| {
        let angles = || frequencies.iter().map(move |frequency| timestep * frequency);
        let (sine, cosine): (Vec<f32>, Vec<f32>) = (angles().map(f32::sin).collect(), angles().map(f32::cos).collect());
        match config.flip_sin_to_cos {
            true => [cosine, sine].concat(),
            false => [sine, cosine].concat(),
        }
    };
    timesteps.iter().flat_map(row).collect()
}

fn attends(kind: &str, setting: &'static str) -> Result<bool, ParamError> {
    match kind {
        "CrossAttnDownBlock2D" | "CrossAttnUpBlock2D" => Ok(true),
        "DownBlock2D" | "UpBlock2D" => Ok(false),
        other => Err(unsupported(
            setting,
            other,
            "CrossAttnDownBlock2D, DownBlock2D and their up blocks",
        )),
    }
}

fn unsupported(setting: &'static str, got: &str, supported: &'static str) -> ParamError {
    ParamError::Config {
        setting,
        got: got.to_string(),
        supported,
    }
}
