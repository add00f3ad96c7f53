//! `UNet2DConditionModel`: predicts the noise in latents, given the timestep of each row and the prompt's states.

use candle_core::{DType, Result, Tensor};

use super::{
    config::UNetConfig,
    layers::{Conv2d, GroupNorm, Linear},
    params::{ParamError, Params},
    probe::Probe,
    resnet::ResnetSettings,
    transformer::TransformerSettings,
    unet_blocks::{Conditioning, DownBlock, LevelSettings, MidBlock, UpBlock, UpChannels},
};
use crate::ops::{self, Conv2dShape};

/// Sinusoids reach from period 2 pi to 10000 times that.
const MAX_PERIOD: f64 = 10_000.;

pub struct UNet2DConditionModel {
    config: UNetConfig,
    conv_in: Conv2d,
    time_linear_1: Linear,
    time_linear_2: Linear,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    dtype: DType,
}

/// Where the up path starts.
struct Bottom {
    hidden: Tensor,
    skips: Vec<Tensor>,
    activated_time: Tensor,
}

impl UNet2DConditionModel {
    /// # Errors
    /// When a weight is missing or has another shape than `config` asks for, or a block type is unknown.
    pub fn new(config: &UNetConfig, params: &Params) -> std::result::Result<Self, ParamError> {
        let widths = &config.block_out_channels;
        let (Some(&first), Some(&last)) = (widths.first(), widths.last()) else {
            return Err(unsupported("block_out_channels", "[]", "at least one level"));
        };
        if config.down_block_types.len() != widths.len() || config.up_block_types.len() != widths.len() {
            return Err(unsupported(
                "down_block_types",
                &config.down_block_types.join(", "),
                "one block a level",
            ));
        }
        let time_channels = 4 * first;
        let levels = widths.len();
        let settings = |heads| LevelSettings {
            resnet: ResnetSettings {
                groups: config.norm_num_groups,
                eps: config.norm_eps,
                time_channels: Some(time_channels),
            },
            transformer: TransformerSettings {
                groups: config.norm_num_groups,
                context: config.cross_attention_dim,
                linear_projection: config.use_linear_projection,
            },
            heads,
        };
        let heads = |level| config.attention_head_dim.of(level);
        let down_blocks = (0..levels).map(|level| {
            let kind = attends(&config.down_block_types[level], "down_block_types")?;
            let inputs = if level == 0 { first } else { widths[level - 1] };
            let params = params.pp(format!("down_blocks.{level}"));
            let settings = settings(kind.then(|| heads(level)));
            let channels = (inputs, widths[level]);
            DownBlock::new(channels, config.layers_per_block, level + 1 < levels, settings, &params)
        });
        let up_blocks = (0..levels).map(|index| {
            let level = levels - 1 - index;
            let kind = attends(&config.up_block_types[index], "up_block_types")?;
            let channels = UpChannels {
                below: if index == 0 { last } else { widths[level + 1] },
                outputs: widths[level],
                last_skip: if level == 0 { first } else { widths[level - 1] },
            };
            let params = params.pp(format!("up_blocks.{index}"));
            let settings = settings(kind.then(|| heads(level)));
            UpBlock::new(channels, config.layers_per_block + 1, level > 0, settings, &params)
        });
        Ok(Self {
            conv_in: Conv2d::new(config.in_channels, first, Conv2dShape::same(3), &params.pp("conv_in"))?,
            time_linear_1: Linear::new(first, time_channels, &params.pp("time_embedding.linear_1"))?,
            time_linear_2: Linear::new(time_channels, time_channels, &params.pp("time_embedding.linear_2"))?,
            down_blocks: down_blocks.collect::<std::result::Result<_, _>>()?,
            mid_block: MidBlock::new(last, heads(levels - 1), settings(None), &params.pp("mid_block"))?,
            up_blocks: up_blocks.collect::<std::result::Result<_, _>>()?,
            conv_norm_out: GroupNorm::new(
                config.norm_num_groups,
                first,
                config.norm_eps,
                &params.pp("conv_norm_out"),
            )?,
            conv_out: Conv2d::new(first, config.out_channels, Conv2dShape::same(3), &params.pp("conv_out"))?,
            dtype: params.dtype(),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// `latents` `[rows, 4, h, w]`, `timesteps` f32 `[rows]` (fractional ones too), `context` `[rows, tokens, width]`.
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, context: &Tensor) -> Result<Tensor> {
        self.forward_probed(latents, timesteps, context, Probe::off())
    }

    /// What the deepest level makes of the latents, `[rows, last width, h / 8, w / 8]`; the way up is not computed.
    pub fn mid_features(&self, latents: &Tensor, timesteps: &Tensor, context: &Tensor) -> Result<Tensor> {
        Ok(self.descend(latents, timesteps, context, &mut Probe::off())?.hidden)
    }

    /// [`Self::forward`], with the outputs of its modules shown to `probe`.
    pub fn forward_probed(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        context: &Tensor,
        mut probe: Probe,
    ) -> Result<Tensor> {
        let bottom = self.descend(latents, timesteps, context, &mut probe)?;
        self.ascend(bottom, context, &mut probe)
    }

    fn descend(&self, latents: &Tensor, timesteps: &Tensor, context: &Tensor, probe: &mut Probe) -> Result<Bottom> {
        let activated_time = ops::silu(&self.embed_time(timesteps, probe)?)?;
        let given = Conditioning {
            activated_time: &activated_time,
            context,
        };
        let mut hidden = self.conv_in.forward(latents)?;
        probe.see("conv_in", &hidden);
        let mut skips = vec![hidden.clone()];
        for (level, block) in self.down_blocks.iter().enumerate() {
            hidden = block.forward(
                &hidden,
                given,
                &mut skips,
                probe.at(format_args!("down_blocks.{level}")),
            )?;
        }
        hidden = self.mid_block.forward(&hidden, given, probe.at("mid_block"))?;
        Ok(Bottom {
            hidden,
            skips,
            activated_time,
        })
    }

    fn ascend(&self, bottom: Bottom, context: &Tensor, probe: &mut Probe) -> Result<Tensor> {
        let Bottom {
            mut hidden,
            mut skips,
            activated_time,
        } = bottom;
        let given = Conditioning {
            activated_time: &activated_time,
            context,
        };
        for (index, block) in self.up_blocks.iter().enumerate() {
            let own = skips.split_off(skips.len() - block.layers());
            let size = skips
                .last()
                .map(|next| next.dims4())
                .transpose()?
                .map(|(_, _, h, w)| (h, w));
            hidden = block.forward(&hidden, given, &own, size, probe.at(format_args!("up_blocks.{index}")))?;
        }
        let normed = self.conv_norm_out.forward_silu(&hidden)?;
        probe.see("conv_norm_out.silu", &normed);
        self.conv_out.forward(&normed)
    }

    fn embed_time(&self, timesteps: &Tensor, probe: &mut Probe) -> Result<Tensor> {
        let width = self.config.block_out_channels[0];
        let sinusoids = sinusoids(timesteps, width, self.config.flip_sin_to_cos, self.config.freq_shift)?;
        probe.see("time_proj", &sinusoids);
        let hidden = ops::silu(&self.time_linear_1.forward(&sinusoids.to_dtype(self.dtype)?)?)?;
        let embedding = self.time_linear_2.forward(&hidden)?;
        probe.see("time_embedding", &embedding);
        Ok(embedding)
    }
}

/// `[rows]` to `[rows, width]`, in f32 whatever the model computes in: at t near 1000 a 16-bit angle is noise.
fn sinusoids(timesteps: &Tensor, width: usize, cosine_first: bool, freq_shift: f64) -> Result<Tensor> {
    let half = width / 2;
    // Rounded to f32 at each step, as the field's training code does.
    let step = (-MAX_PERIOD.ln()) as f32;
    let span = (half as f64 - freq_shift) as f32;
    let frequencies: Vec<f32> = (0..half).map(|i| (step * i as f32 / span).exp()).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), timesteps.device())?;
    let angles = timesteps
        .to_dtype(DType::F32)?
        .unsqueeze(1)?
        .broadcast_mul(&frequencies)?;
    let (sine, cosine) = (angles.sin()?, angles.cos()?);
    let halves = if cosine_first { [cosine, sine] } else { [sine, cosine] };
    Tensor::cat(&halves, 1)
}

fn attends(kind: &str, setting: &'static str) -> std::result::Result<bool, ParamError> {
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
