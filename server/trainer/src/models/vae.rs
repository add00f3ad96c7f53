//! `AutoencoderKL`: pictures to latents of an eighth of their side, and back.

use candle_core::{Result, Tensor};

use super::{
    config::VaeConfig,
    layers::{Conv2d, GroupNorm, Linear},
    params::{ParamError, Params},
    probe::Probe,
    resnet::{ResnetBlock2D, ResnetSettings},
    transformer::{to_pixels, to_tokens},
};
use crate::ops::{self, Conv2dShape, Mask};

/// Of every norm in the VAE, the attention's included.
const EPS: f64 = 1e-6;
/// Bounds of the log-variance, so that its exponential stays finite.
const LOGVAR_RANGE: (f64, f64) = (-30., 20.);

pub struct AutoencoderKl {
    encoder: Encoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    decoder: Decoder,
    config: VaeConfig,
}

/// What the encoder knows about a picture's latents: independent normal distributions, `[rows, 4, h / 8, w / 8]` each.
#[derive(Clone, Debug)]
pub struct LatentDistribution {
    pub mean: Tensor,
    pub logvar: Tensor,
}

impl LatentDistribution {
    pub fn std(&self) -> Result<Tensor> {
        (&self.logvar * 0.5)?.exp()
    }

    /// A draw, `eps` being standard normal. Not yet times the scaling factor.
    pub fn sample_with(&self, eps: &Tensor) -> Result<Tensor> {
        &self.mean + (self.std()? * eps)?
    }
}

impl AutoencoderKl {
    /// # Errors
    /// When a weight is missing or has another shape than `config` asks for.
    pub fn new(config: &VaeConfig, params: &Params) -> std::result::Result<Self, ParamError> {
        let (latent, one) = (config.latent_channels, Conv2dShape::same(1));
        Ok(Self {
            encoder: Encoder::new(config, &params.pp("encoder"))?,
            quant_conv: Conv2d::new(2 * latent, 2 * latent, one, &params.pp("quant_conv"))?,
            post_quant_conv: Conv2d::new(latent, latent, one, &params.pp("post_quant_conv"))?,
            decoder: Decoder::new(config, &params.pp("decoder"))?,
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// `images` `[rows, 3, h, w]` in -1 to 1.
    pub fn encode(&self, images: &Tensor) -> Result<LatentDistribution> {
        self.encode_probed(images, Probe::off())
    }

    /// `z` `[rows, 4, h, w]`, already divided by the scaling factor, to `[rows, 3, 8 h, 8 w]` around -1 to 1.
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        self.decode_probed(z, Probe::off())
    }

    pub fn encode_probed(&self, images: &Tensor, mut probe: Probe) -> Result<LatentDistribution> {
        let moments = self
            .quant_conv
            .forward(&self.encoder.forward(images, probe.at("encoder"))?)?;
        let (mean, logvar) = (
            moments.narrow(1, 0, self.config.latent_channels)?,
            moments.narrow(1, self.config.latent_channels, self.config.latent_channels)?,
        );
        Ok(LatentDistribution {
            mean,
            logvar: logvar.clamp(LOGVAR_RANGE.0, LOGVAR_RANGE.1)?,
        })
    }

    pub fn decode_probed(&self, z: &Tensor, mut probe: Probe) -> Result<Tensor> {
        let z = self.post_quant_conv.forward(z)?;
        probe.see("post_quant_conv", &z);
        self.decoder.forward(&z, probe.at("decoder"))
    }
}

fn resnet(
    inputs: usize,
    outputs: usize,
    config: &VaeConfig,
    params: &Params,
) -> std::result::Result<ResnetBlock2D, ParamError> {
    let settings = ResnetSettings {
        groups: config.norm_num_groups,
        eps: EPS,
        time_channels: None,
    };
    ResnetBlock2D::new(inputs, outputs, settings, params)
}

/// Resnets of one resolution, and the convolution that leaves it.
struct Level {
    resnets: Vec<ResnetBlock2D>,
    resample: Option<Conv2d>,
}

impl Level {
    fn new(
        (inputs, outputs): (usize, usize),
        resnets: usize,
        resample: Option<(&str, Conv2dShape)>,
        config: &VaeConfig,
        params: &Params,
    ) -> std::result::Result<Self, ParamError> {
        let make = |index| {
            resnet(
                if index == 0 { inputs } else { outputs },
                outputs,
                config,
                &params.pp(format!("resnets.{index}")),
            )
        };
        Ok(Self {
            resnets: (0..resnets).map(make).collect::<std::result::Result<_, _>>()?,
            resample: resample
                .map(|(name, shape)| Conv2d::new(outputs, outputs, shape, &params.pp(name).pp("0.conv")))
                .transpose()?,
        })
    }

    fn forward_resnets(&self, x: &Tensor, probe: &mut Probe) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(&x, None, probe.at(format_args!("resnets.{index}")))?;
        }
        Ok(x)
    }
}

struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(config: &VaeConfig, params: &Params) -> std::result::Result<Self, ParamError> {
        let (widths, conv3) = (&config.block_out_channels, Conv2dShape::same(3));
        let (first, last) = ends(widths)?;
        // Pads right and bottom only, unlike the U-Net.
        let halve = Conv2dShape {
            stride: 2,
            before: 0,
            after: 1,
            ..conv3
        };
        let down_blocks = (0..widths.len()).map(|level| {
            let channels = (if level == 0 { first } else { widths[level - 1] }, widths[level]);
            let resample = (level + 1 < widths.len()).then_some(("downsamplers", halve));
            let params = params.pp(format!("down_blocks.{level}"));
            Level::new(channels, config.layers_per_block, resample, config, &params)
        });
        Ok(Self {
            conv_in: Conv2d::new(config.in_channels, first, conv3, &params.pp("conv_in"))?,
            down_blocks: down_blocks.collect::<std::result::Result<_, _>>()?,
            mid_block: MidBlock::new(last, config, &params.pp("mid_block"))?,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, last, EPS, &params.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(last, 2 * config.latent_channels, conv3, &params.pp("conv_out"))?,
        })
    }

    fn forward(&self, images: &Tensor, mut probe: Probe) -> Result<Tensor> {
        let mut x = self.conv_in.forward(images)?;
        probe.see("conv_in", &x);
        for (level, block) in self.down_blocks.iter().enumerate() {
            let mut probe = probe.at(format_args!("down_blocks.{level}"));
            x = block.forward_resnets(&x, &mut probe)?;
            if let Some(downsample) = &block.resample {
                x = downsample.forward(&x)?;
            }
            probe.see("", &x);
        }
        let x = self.mid_block.forward(&x, probe.at("mid_block"))?;
        let x = self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)?;
        probe.see("out", &x);
        Ok(x)
    }
}

struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(config: &VaeConfig, params: &Params) -> std::result::Result<Self, ParamError> {
        let (widths, conv3) = (&config.block_out_channels, Conv2dShape::same(3));
        let (first, last) = ends(widths)?;
        let up_blocks = (0..widths.len()).map(|index| {
            let level = widths.len() - 1 - index;
            let channels = (if index == 0 { last } else { widths[level + 1] }, widths[level]);
            let resample = (level > 0).then_some(("upsamplers", conv3));
            let params = params.pp(format!("up_blocks.{index}"));
            Level::new(channels, config.layers_per_block + 1, resample, config, &params)
        });
        Ok(Self {
            conv_in: Conv2d::new(config.latent_channels, last, conv3, &params.pp("conv_in"))?,
            mid_block: MidBlock::new(last, config, &params.pp("mid_block"))?,
            up_blocks: up_blocks.collect::<std::result::Result<_, _>>()?,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, first, EPS, &params.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(first, config.out_channels, conv3, &params.pp("conv_out"))?,
        })
    }

    fn forward(&self, z: &Tensor, mut probe: Probe) -> Result<Tensor> {
        let x = self.conv_in.forward(z)?;
        probe.see("conv_in", &x);
        let mut x = self.mid_block.forward(&x, probe.at("mid_block"))?;
        for (index, block) in self.up_blocks.iter().enumerate() {
            let mut probe = probe.at(format_args!("up_blocks.{index}"));
            x = block.forward_resnets(&x, &mut probe)?;
            if let Some(upsample) = &block.resample {
                let (_, _, height, width) = x.dims4()?;
                x = upsample.forward(&ops::upsample_nearest(&x, 2 * height, 2 * width)?)?;
            }
            probe.see("", &x);
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)
    }
}

fn ends(widths: &[usize]) -> std::result::Result<(usize, usize), ParamError> {
    match (widths.first(), widths.last()) {
        (Some(&first), Some(&last)) => Ok((first, last)),
        _ => Err(ParamError::Config {
            setting: "block_out_channels",
            got: "[]".to_string(),
            supported: "at least one level",
        }),
    }
}

/// `UNetMidBlock2D` with one attention of a single head.
struct MidBlock {
    before: ResnetBlock2D,
    attention: Attention,
    after: ResnetBlock2D,
}

impl MidBlock {
    fn new(channels: usize, config: &VaeConfig, params: &Params) -> std::result::Result<Self, ParamError> {
        Ok(Self {
            before: resnet(channels, channels, config, &params.pp("resnets.0"))?,
            attention: Attention::new(channels, config.norm_num_groups, &params.pp("attentions.0"))?,
            after: resnet(channels, channels, config, &params.pp("resnets.1"))?,
        })
    }

    fn forward(&self, x: &Tensor, mut probe: Probe) -> Result<Tensor> {
        let x = self.before.forward(x, None, probe.at("resnets.0"))?;
        let x = self.attention.forward(&x, probe.at("attentions.0"))?;
        let x = self.after.forward(&x, None, probe.at("resnets.1"))?;
        probe.see("", &x);
        Ok(x)
    }
}

struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn new(channels: usize, groups: usize, params: &Params) -> std::result::Result<Self, ParamError> {
        let linear = |name| Linear::new(channels, channels, &params.pp(name));
        Ok(Self {
            group_norm: GroupNorm::new(groups, channels, EPS, &params.pp("group_norm"))?,
            to_q: linear("to_q")?,
            to_k: linear("to_k")?,
            to_v: linear("to_v")?,
            to_out: linear("to_out.0")?,
        })
    }

    fn forward(&self, x: &Tensor, mut probe: Probe) -> Result<Tensor> {
        let tokens = to_tokens(&self.group_norm.forward(x)?)?;
        let (q, k, v) = (
            self.to_q.forward(&tokens)?,
            self.to_k.forward(&tokens)?,
            self.to_v.forward(&tokens)?,
        );
        let attended = self.to_out.forward(&ops::attention(&q, &k, &v, 1, Mask::None)?)?;
        let output = (to_pixels(&attended, x.dims4()?)? + x)?;
        probe.see("", &output);
        Ok(output)
    }
}
