//! The U-Net's levels: `CrossAttnDownBlock2D`, `DownBlock2D`, the middle, `UpBlock2D`, `CrossAttnUpBlock2D`.

use candle_core::{Result, Tensor};

use super::{
    layers::Conv2d,
    params::{ParamError, Params},
    probe::Probe,
    resnet::{ResnetBlock2D, ResnetSettings},
    transformer::{Transformer2DModel, TransformerSettings},
};
use crate::ops::{self, Conv2dShape};

/// What a level is made of.
#[derive(Clone, Copy)]
pub(super) struct LevelSettings {
    pub resnet: ResnetSettings,
    pub transformer: TransformerSettings,
    /// Heads of the level's attention; none at levels without.
    pub heads: Option<usize>,
}

/// What each block of a forward pass gets besides the feature map.
#[derive(Clone, Copy)]
pub(super) struct Conditioning<'a> {
    /// SiLU of the time embedding, `[rows, time_channels]`.
    pub activated_time: &'a Tensor,
    /// `[rows, tokens, width]`.
    pub context: &'a Tensor,
}

/// A resnet and, at levels with attention, the transformer after it.
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2DModel>,
}

impl Layer {
    fn new(
        index: usize,
        inputs: usize,
        outputs: usize,
        settings: LevelSettings,
        params: &Params,
    ) -> std::result::Result<Self, ParamError> {
        let resnet = params.pp(format!("resnets.{index}"));
        let attention = params.pp(format!("attentions.{index}"));
        Ok(Self {
            resnet: ResnetBlock2D::new(inputs, outputs, settings.resnet, &resnet)?,
            attention: settings
                .heads
                .map(|heads| Transformer2DModel::new(outputs, heads, settings.transformer, &attention))
                .transpose()?,
        })
    }

    fn forward(&self, index: usize, x: &Tensor, given: Conditioning, probe: &mut Probe) -> Result<Tensor> {
        let resnet_probe = probe.at(format_args!("resnets.{index}"));
        let x = self.resnet.forward(x, Some(given.activated_time), resnet_probe)?;
        match &self.attention {
            Some(attention) => attention.forward(&x, given.context, probe.at(format_args!("attentions.{index}"))),
            None => Ok(x),
        }
    }
}

pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Conv2d>,
}

impl DownBlock {
    pub fn new(
        (inputs, outputs): (usize, usize),
        layers: usize,
        downsamples: bool,
        settings: LevelSettings,
        params: &Params,
    ) -> std::result::Result<Self, ParamError> {
        let layers = (0..layers)
            .map(|index| {
                Layer::new(
                    index,
                    if index == 0 { inputs } else { outputs },
                    outputs,
                    settings,
                    params,
                )
            })
            .collect::<std::result::Result<_, _>>()?;
        let halve = Conv2dShape {
            stride: 2,
            ..Conv2dShape::same(3)
        };
        let downsampler = downsamples
            .then(|| Conv2d::new(outputs, outputs, halve, &params.pp("downsamplers.0.conv")))
            .transpose()?;
        Ok(Self { layers, downsampler })
    }

    /// Pushes what the up path joins in again onto `skips`.
    pub fn forward(
        &self,
        x: &Tensor,
        given: Conditioning,
        skips: &mut Vec<Tensor>,
        mut probe: Probe,
    ) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(index, &x, given, &mut probe)?;
            probe.see(&format!("res.{index}"), &x);
            skips.push(x.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x)?;
            probe.see(&format!("res.{}", self.layers.len()), &x);
            skips.push(x.clone());
        }
        probe.see("", &x);
        Ok(x)
    }
}

/// `UNetMidBlock2DCrossAttn`.
pub(super) struct MidBlock {
    before: ResnetBlock2D,
    attention: Transformer2DModel,
    after: ResnetBlock2D,
}

impl MidBlock {
    pub fn new(
        channels: usize,
        heads: usize,
        settings: LevelSettings,
        params: &Params,
    ) -> std::result::Result<Self, ParamError> {
        let resnet = |name| ResnetBlock2D::new(channels, channels, settings.resnet, &params.pp(name));
        Ok(Self {
            before: resnet("resnets.0")?,
            attention: Transformer2DModel::new(channels, heads, settings.transformer, &params.pp("attentions.0"))?,
            after: resnet("resnets.1")?,
        })
    }

    pub fn forward(&self, x: &Tensor, given: Conditioning, mut probe: Probe) -> Result<Tensor> {
        let time = Some(given.activated_time);
        let x = self.before.forward(x, time, probe.at("resnets.0"))?;
        let x = self.attention.forward(&x, given.context, probe.at("attentions.0"))?;
        let x = self.after.forward(&x, time, probe.at("resnets.1"))?;
        probe.see("", &x);
        Ok(x)
    }
}

/// Channels around an up block: what comes from below, what it puts out, and what the lowest of its skips has.
#[derive(Clone, Copy)]
pub(super) struct UpChannels {
    pub below: usize,
    pub outputs: usize,
    pub last_skip: usize,
}

pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Conv2d>,
}

impl UpBlock {
    pub fn new(
        channels: UpChannels,
        layers: usize,
        upsamples: bool,
        settings: LevelSettings,
        params: &Params,
    ) -> std::result::Result<Self, ParamError> {
        let UpChannels {
            below,
            outputs,
            last_skip,
        } = channels;
        let layers = (0..layers)
            .map(|index| {
                let skip = if index + 1 == layers { last_skip } else { outputs };
                let hidden = if index == 0 { below } else { outputs };
                Layer::new(index, hidden + skip, outputs, settings, params)
            })
            .collect::<std::result::Result<_, _>>()?;
        let upsampler = upsamples
            .then(|| Conv2d::new(outputs, outputs, Conv2dShape::same(3), &params.pp("upsamplers.0.conv")))
            .transpose()?;
        Ok(Self { layers, upsampler })
    }

    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// `skips`: one a layer, the deepest last. `size`: height and width the next block works at, which twice the
    /// own size misses where the latents' side is no multiple of 8.
    pub fn forward(
        &self,
        x: &Tensor,
        given: Conditioning,
        skips: &[Tensor],
        size: Option<(usize, usize)>,
        mut probe: Probe,
    ) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, (layer, skip)) in self.layers.iter().zip(skips.iter().rev()).enumerate() {
            x = layer.forward(index, &Tensor::cat(&[&x, skip], 1)?, given, &mut probe)?;
        }
        if let Some(upsampler) = &self.upsampler {
            let (_, _, height, width) = x.dims4()?;
            let (height, width) = size.unwrap_or((2 * height, 2 * width));
            x = upsampler.forward(&ops::upsample_nearest(&x, height, width)?)?;
        }
        probe.see("", &x);
        Ok(x)
    }
}
