//! `ResnetBlock2D`: two convolutions with a residual connection, and in the U-Net the timestep between them.

use super::SAME;
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{Shift, ValueId};

/// What all resnets of a model share.
#[derive(Clone, Copy)]
pub(super) struct ResnetSettings {
    pub groups: usize,
    pub eps: f64,
}

/// `x` `[rows, h, w, inputs]`; `activated_time`: SiLU of the time embedding, `[rows, width]`, none in the VAE.
///
/// The first convolution's bias and the timestep are added by the norm that reads the sum.
pub(super) fn resnet(
    b: &mut Builder,
    x: ValueId,
    activated_time: Option<ValueId>,
    outputs: usize,
    ResnetSettings { groups, eps }: ResnetSettings,
    scope: &Scope,
) -> ValueId {
    let inputs = b.dims(x)[3];
    let output = b.segment(|b| {
        let hidden = b.group_norm(x, Shift::default(), &scope.at("norm1"), (groups, eps), true);
        let conv1 = scope.at("conv1");
        let hidden = b.conv(hidden, &conv1, outputs, SAME, Bias::None, None);
        let rows = activated_time.map(|time| b.linear(time, &scope.at("time_emb_proj"), outputs, Bias::Own, None));
        let channels = Some(b.weight(&conv1, "bias", &[outputs]));
        let shift = Shift { rows, channels };
        let hidden = b.group_norm(hidden, shift, &scope.at("norm2"), (groups, eps), true);
        let shortcut = match inputs == outputs {
            true => x,
            false => b.pointwise(x, &scope.at("conv_shortcut"), outputs, None),
        };
        b.conv(hidden, &scope.at("conv2"), outputs, SAME, Bias::Own, Some(shortcut))
    });
    b.probe(scope, "", output);
    output
}
