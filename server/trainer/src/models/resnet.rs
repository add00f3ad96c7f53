//! `ResnetBlock2D`: two convolutions with a residual connection, and in the U-Net the timestep between them.

use candle_core::{Result, Tensor};

use super::{
    layers::{Conv2d, GroupNorm, Linear},
    params::{ParamError, Params},
    probe::Probe,
};
use crate::ops::{self, Conv2dShape};

pub(super) struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

/// What all resnets of a model share.
#[derive(Clone, Copy)]
pub(super) struct ResnetSettings {
    pub groups: usize,
    pub eps: f64,
    /// Width of the time embedding; none in the VAE.
    pub time_channels: Option<usize>,
}

impl ResnetBlock2D {
    pub fn new(
        inputs: usize,
        outputs: usize,
        settings: ResnetSettings,
        params: &Params,
    ) -> std::result::Result<Self, ParamError> {
        let ResnetSettings {
            groups,
            eps,
            time_channels,
        } = settings;
        let conv3 = Conv2dShape::same(3);
        Ok(Self {
            norm1: GroupNorm::new(groups, inputs, eps, &params.pp("norm1"))?,
            conv1: Conv2d::new(inputs, outputs, conv3, &params.pp("conv1"))?,
            time_emb_proj: time_channels
                .map(|width| Linear::new(width, outputs, &params.pp("time_emb_proj")))
                .transpose()?,
            norm2: GroupNorm::new(groups, outputs, eps, &params.pp("norm2"))?,
            conv2: Conv2d::new(outputs, outputs, conv3, &params.pp("conv2"))?,
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::new(inputs, outputs, Conv2dShape::same(1), &params.pp("conv_shortcut")))
                .transpose()?,
        })
    }

    /// `activated_time`: SiLU of the time embedding, `[rows, time_channels]`.
    pub fn forward(&self, x: &Tensor, activated_time: Option<&Tensor>, mut probe: Probe) -> Result<Tensor> {
        let mut hidden = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        if let (Some(project), Some(time)) = (&self.time_emb_proj, activated_time) {
            hidden = ops::add_per_channel(&hidden, &project.forward(time)?)?;
        }
        let hidden = self.conv2.forward(&self.norm2.forward_silu(&hidden)?)?;
        let output = match &self.conv_shortcut {
            Some(shortcut) => (shortcut.forward(x)? + hidden)?,
            None => (x + hidden)?,
        };
        probe.see("", &output);
        Ok(output)
    }
}
