//! The smallest parts: weights with the op that uses them.

use candle_core::{Result, Tensor};

use super::params::{ParamError, Params};
use crate::ops::{self, Conv2dShape, Fused};

pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub fn new(inputs: usize, outputs: usize, params: &Params) -> std::result::Result<Self, ParamError> {
        Ok(Self {
            weight: params.get((outputs, inputs), "weight")?,
            bias: Some(params.get(outputs, "bias")?),
        })
    }

    pub fn without_bias(inputs: usize, outputs: usize, params: &Params) -> std::result::Result<Self, ParamError> {
        Ok(Self {
            weight: params.get((outputs, inputs), "weight")?,
            bias: None,
        })
    }

    /// `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref())
    }
}

pub(super) struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    shape: Conv2dShape,
}

impl Conv2d {
    pub fn new(
        inputs: usize,
        outputs: usize,
        shape: Conv2dShape,
        params: &Params,
    ) -> std::result::Result<Self, ParamError> {
        let weight = params.get((outputs, inputs, shape.kernel, shape.kernel), "weight")?;
        Ok(Self {
            weight,
            bias: params.get(outputs, "bias")?,
            shape,
        })
    }

    /// `[rows, inputs, h, w]` to `[rows, outputs, h', w']`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::conv2d(x, &self.weight, Some(&self.bias), self.shape)
    }
}

pub(super) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub fn new(groups: usize, channels: usize, eps: f64, params: &Params) -> std::result::Result<Self, ParamError> {
        Ok(Self {
            weight: params.get(channels, "weight")?,
            bias: params.get(channels, "bias")?,
            groups,
            eps,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, Fused::Nothing)
    }

    /// The norm and the SiLU after it, in one pass.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        ops::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, Fused::Silu)
    }
}

pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn new(width: usize, eps: f64, params: &Params) -> std::result::Result<Self, ParamError> {
        Ok(Self {
            weight: params.get(width, "weight")?,
            bias: params.get(width, "bias")?,
            eps,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
