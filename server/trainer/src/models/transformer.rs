//! `Transformer2DModel`: attention over the pixels of a feature map and to the prompt.

use candle_core::{Result, Tensor};

use super::{
    layers::{Conv2d, GroupNorm, LayerNorm, Linear},
    params::{ParamError, Params},
    probe::Probe,
};
use crate::ops::{self, Conv2dShape, Mask};

/// Of the GroupNorm before the blocks; the U-Net's other group norms take theirs from the config.
const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;

#[derive(Clone, Copy)]
pub(super) struct TransformerSettings {
    pub groups: usize,
    /// Width of the prompt's states.
    pub context: usize,
    /// SD 2.x: `proj_in` and `proj_out` are linear layers on tokens instead of 1x1 convolutions.
    pub linear_projection: bool,
}

enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

pub(super) struct Transformer2DModel {
    norm: GroupNorm,
    proj_in: Projection,
    block: BasicTransformerBlock,
    proj_out: Projection,
}

impl Transformer2DModel {
    pub fn new(
        channels: usize,
        heads: usize,
        settings: TransformerSettings,
        params: &Params,
    ) -> std::result::Result<Self, ParamError> {
        let projection = |params: Params| {
            Ok(if settings.linear_projection {
                Projection::Linear(Linear::new(channels, channels, &params)?)
            } else {
                Projection::Conv(Conv2d::new(channels, channels, Conv2dShape::same(1), &params)?)
            })
        };
        Ok(Self {
            norm: GroupNorm::new(settings.groups, channels, GROUP_NORM_EPS, &params.pp("norm"))?,
            proj_in: projection(params.pp("proj_in"))?,
            block: BasicTransformerBlock::new(channels, heads, settings.context, &params.pp("transformer_blocks.0"))?,
            proj_out: projection(params.pp("proj_out"))?,
        })
    }

    /// `x` `[rows, channels, h, w]`, `context` `[rows, tokens, width]`.
    pub fn forward(&self, x: &Tensor, context: &Tensor, mut probe: Probe) -> Result<Tensor> {
        let size = x.dims4()?;
        let normed = self.norm.forward(x)?;
        probe.see("norm", &normed);
        let tokens = match &self.proj_in {
            Projection::Conv(conv) => {
                let projected = conv.forward(&normed)?;
                probe.see("proj_in", &projected);
                to_tokens(&projected)?
            }
            Projection::Linear(linear) => linear.forward(&to_tokens(&normed)?)?,
        };
        let tokens = self.block.forward(&tokens, context, probe.at("transformer_blocks.0"))?;
        let projected = match &self.proj_out {
            Projection::Conv(conv) => conv.forward(&to_pixels(&tokens, size)?)?,
            Projection::Linear(linear) => to_pixels(&linear.forward(&tokens)?, size)?,
        };
        let output = (projected + x)?;
        probe.see("", &output);
        Ok(output)
    }
}

/// `[rows, channels, h, w]` to `[rows, h * w, channels]`.
pub(super) fn to_tokens(x: &Tensor) -> Result<Tensor> {
    ops::transpose(&x.flatten_from(2)?)
}

/// The way back.
pub(super) fn to_pixels(x: &Tensor, (rows, channels, height, width): (usize, usize, usize, usize)) -> Result<Tensor> {
    ops::transpose(x)?.reshape((rows, channels, height, width))
}

struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl BasicTransformerBlock {
    fn new(width: usize, heads: usize, context: usize, params: &Params) -> std::result::Result<Self, ParamError> {
        let norm = |name| LayerNorm::new(width, LAYER_NORM_EPS, &params.pp(name));
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(width, width, heads, &params.pp("attn1"))?,
            norm2: norm("norm2")?,
            attn2: Attention::new(width, context, heads, &params.pp("attn2"))?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(width, &params.pp("ff"))?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor, mut probe: Probe) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        probe.see("norm1", &normed);
        let own = self.attn1.forward(&normed, &normed)?;
        probe.see("attn1", &own);
        let x = (own + x)?;
        let prompt = self.attn2.forward(&self.norm2.forward(&x)?, context)?;
        probe.see("attn2", &prompt);
        let x = (prompt + x)?;
        self.ff.forward(&self.norm3.forward(&x)?, probe.at("ff"))? + x
    }
}

/// No bias on q, k and v, unlike everywhere else.
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Attention {
    fn new(width: usize, context: usize, heads: usize, params: &Params) -> std::result::Result<Self, ParamError> {
        Ok(Self {
            to_q: Linear::without_bias(width, width, &params.pp("to_q"))?,
            to_k: Linear::without_bias(context, width, &params.pp("to_k"))?,
            to_v: Linear::without_bias(context, width, &params.pp("to_v"))?,
            to_out: Linear::new(width, width, &params.pp("to_out.0"))?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (
            self.to_q.forward(x)?,
            self.to_k.forward(context)?,
            self.to_v.forward(context)?,
        );
        self.to_out
            .forward(&ops::attention(&q, &k, &v, self.heads, Mask::None)?)
    }
}

/// `GEGLU`, then back to the width.
struct FeedForward {
    gate: Linear,
    output: Linear,
}

impl FeedForward {
    fn new(width: usize, params: &Params) -> std::result::Result<Self, ParamError> {
        Ok(Self {
            gate: Linear::new(width, 8 * width, &params.pp("net.0.proj"))?,
            output: Linear::new(4 * width, width, &params.pp("net.2"))?,
        })
    }

    fn forward(&self, x: &Tensor, mut probe: Probe) -> Result<Tensor> {
        let gated = ops::geglu(&self.gate.forward(x)?)?;
        probe.see("geglu", &gated);
        let output = self.output.forward(&gated)?;
        probe.see("", &output);
        Ok(output)
    }
}
