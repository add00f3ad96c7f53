//! `Transformer2DModel`: attention over the pixels of a feature map and to the prompt.

use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{Shift, ValueId};

/// Of the GroupNorm before the blocks; the U-Net's other group norms take theirs from the config.
const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;

#[derive(Clone, Copy)]
pub(super) struct TransformerSettings {
    pub groups: usize,
    /// SD 2.x: `proj_in` and `proj_out` are linear layers on tokens instead of 1x1 convolutions.
    pub linear_projection: bool,
}

/// `x` `[rows, h, w, channels]`, `context` `[rows, tokens, width]`.
pub(super) fn transformer(
    b: &mut Builder,
    x: ValueId,
    context: ValueId,
    heads: usize,
    settings: TransformerSettings,
    scope: &Scope,
) -> ValueId {
    let (dims, channels) = (b.dims(x).to_vec(), b.dims(x)[3]);
    let output = b.segment(|b| {
        let norm = (settings.groups, GROUP_NORM_EPS);
        let normed = b.group_norm(x, Shift::default(), &scope.at("norm"), norm, false);
        b.probe(scope, "norm", normed);
        let project = |b: &mut Builder, tokens, name, residual| match settings.linear_projection {
            true => b.linear(tokens, &scope.at(name), channels, Bias::Own, residual),
            false => b.pointwise(tokens, &scope.at(name), channels, residual),
        };
        let (tokens, residual) = (b.tokens(normed), b.tokens(x));
        let tokens = project(b, tokens, "proj_in", None);
        b.probe(scope, "proj_in", tokens);
        let tokens = block(b, tokens, context, heads, &scope.at("transformer_blocks.0"));
        project(b, tokens, "proj_out", Some(residual))
    });
    let output = b.reshape(output, &dims);
    b.probe(scope, "", output);
    output
}

/// `BasicTransformerBlock`. Its probes are the sums after each residual connection.
fn block(b: &mut Builder, x: ValueId, context: ValueId, heads: usize, scope: &Scope) -> ValueId {
    let normed = b.layer_norm(x, &scope.at("norm1"), LAYER_NORM_EPS);
    b.probe(scope, "norm1", normed);
    let x = attend(b, [normed, normed, x], heads, &scope.at("attn1"));
    let normed = b.layer_norm(x, &scope.at("norm2"), LAYER_NORM_EPS);
    let x = attend(b, [normed, context, x], heads, &scope.at("attn2"));
    let normed = b.layer_norm(x, &scope.at("norm3"), LAYER_NORM_EPS);
    feed_forward(b, normed, x, &scope.at("ff"))
}

/// No bias on q, k and v, unlike everywhere else.
fn attend(b: &mut Builder, [x, context, residual]: [ValueId; 3], heads: usize, scope: &Scope) -> ValueId {
    let width = b.dims(x)[2];
    let [q, k, v] = [(x, "to_q"), (context, "to_k"), (context, "to_v")]
        .map(|(from, name)| b.adapted(from, &scope.at(name), width, Bias::None, None));
    let attended = b.attention([q, k, v], heads, false);
    let output = b.adapted(attended, &scope.at("to_out.0"), width, Bias::Own, Some(residual));
    b.probe(scope, "", output);
    output
}

/// `GEGLU`, then back to the width.
fn feed_forward(b: &mut Builder, x: ValueId, residual: ValueId, scope: &Scope) -> ValueId {
    let width = b.dims(x)[2];
    let gate = b.linear(x, &scope.at("net.0.proj"), 8 * width, Bias::Own, None);
    let gated = b.geglu(gate);
    b.probe(scope, "geglu", gated);
    let output = b.linear(gated, &scope.at("net.2"), width, Bias::Own, Some(residual));
    b.probe(scope, "", output);
    output
}
