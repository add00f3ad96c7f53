//! The U-Net's levels: `CrossAttnDownBlock2D`, `DownBlock2D`, the middle, `UpBlock2D`, `CrossAttnUpBlock2D`.

use super::SAME;
use super::resnet::{ResnetSettings, resnet};
use super::transformer::{TransformerSettings, transformer};
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{ValueId, Window};

/// What each block gets besides the feature map.
#[derive(Clone, Copy)]
pub(super) struct Conditioning {
    /// SiLU of the time embedding, `[rows, time_channels]`.
    pub activated_time: ValueId,
    /// `[rows, tokens, width]`.
    pub context: ValueId,
}

/// What a level is made of.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub resnet: ResnetSettings,
    pub transformer: TransformerSettings,
    /// Heads of the level's attention; none at levels without.
    pub heads: Option<usize>,
    pub channels: usize,
    /// Resnets.
    pub layers: usize,
    /// Whether a convolution to the next resolution follows.
    pub resamples: bool,
}

impl Level {
    /// A resnet and, at levels with attention, the transformer after it.
    fn layer(&self, b: &mut Builder, index: usize, x: ValueId, given: Conditioning, scope: &Scope) -> ValueId {
        let resnet_scope = scope.at(format_args!("resnets.{index}"));
        let x = resnet(
            b,
            x,
            Some(given.activated_time),
            self.channels,
            self.resnet,
            &resnet_scope,
        );
        let Some(heads) = self.heads else { return x };
        let scope = scope.at(format_args!("attentions.{index}"));
        transformer(b, x, given.context, heads, self.transformer, &scope)
    }

    /// Pushes what the up path joins in again onto `skips`.
    pub fn down(
        &self,
        b: &mut Builder,
        mut x: ValueId,
        given: Conditioning,
        skips: &mut Vec<ValueId>,
        scope: &Scope,
    ) -> ValueId {
        for index in 0..self.layers {
            x = self.layer(b, index, x, given, scope);
            b.probe(scope, &format!("res.{index}"), x);
            skips.push(x);
        }
        if self.resamples {
            let halve = Window { stride: 2, ..SAME };
            x = b.conv(
                x,
                &scope.at("downsamplers.0.conv"),
                self.channels,
                halve,
                Bias::Own,
                None,
            );
            b.probe(scope, &format!("res.{}", self.layers), x);
            skips.push(x);
        }
        b.probe(scope, "", x);
        x
    }

    /// `UNetMidBlock2DCrossAttn`.
    pub fn middle(&self, b: &mut Builder, x: ValueId, given: Conditioning, scope: &Scope) -> ValueId {
        let x = self.layer(b, 0, x, given, scope);
        let time = Some(given.activated_time);
        let x = resnet(b, x, time, self.channels, self.resnet, &scope.at("resnets.1"));
        b.probe(scope, "", x);
        x
    }

    /// Takes its skips from the end of `skips`. What is left there last has the size that the next block works at,
    /// which twice the own size misses where the latents' side is no multiple of 8.
    pub fn up(
        &self,
        b: &mut Builder,
        mut x: ValueId,
        given: Conditioning,
        skips: &mut Vec<ValueId>,
        scope: &Scope,
    ) -> ValueId {
        for index in 0..self.layers {
            if let Some(skip) = skips.pop() {
                x = b.concat(x, skip);
            }
            x = self.layer(b, index, x, given, scope);
        }
        if self.resamples {
            let like = b.dims(skips.last().copied().unwrap_or(x));
            let (height, width) = (like[1], like[2]);
            x = b.upsample(x, height, width);
            x = b.conv(x, &scope.at("upsamplers.0.conv"), self.channels, SAME, Bias::Own, None);
        }
        b.probe(scope, "", x);
        x
    }
}
