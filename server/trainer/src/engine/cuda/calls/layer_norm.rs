//! Layer norm and its gradient (`layer_norm.cu`).

use super::{
    super::call::{Address, Call, Element},
    Launch, THREADS, sums, vector,
};

/// Vectors of a token that a lane holds, for which kernels are built.
const VECTORS: [usize; 4] = [2, 3, 5, 10];
/// A warp has a token.
const WARPS: usize = 4;
/// Blocks of the backward, each with partial sums of its own; fixed, so that sums are made alike on every card.
const BLOCKS: usize = 264;

/// Operands of [`layer_norm`], as `Op::LayerNorm` names them.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub x: Address,
    pub w: Address,
    pub b: Address,
    pub y: Address,
    pub stats: Address,
}

/// Operands of [`layer_norm_grad`], as `Op::LayerNormGrad` names them; `plus`, `dw` and `db` may be absent, `plus` may be `dx`.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub dy: Address,
    pub x: Address,
    pub w: Address,
    pub stats: Address,
    pub plus: Address,
    pub dx: Address,
    pub dw: Address,
    pub db: Address,
    /// Of [`layer_norm_grad_workspace`] bytes.
    pub workspace: Address,
}

/// Vectors a lane has to hold, when a warp can hold a token.
fn held(element: Element, channels: usize) -> Option<usize> {
    let vectors = channels / vector(element);
    VECTORS
        .into_iter()
        .find(|held| channels.is_multiple_of(vector(element)) && held * 32 >= vectors)
}

/// `tokens`: everything but the channels.
pub fn layer_norm(element: Element, at: &Forward, tokens: usize, channels: usize, eps: f64) -> Vec<Call> {
    let suffix = element.suffix();
    let launch = match held(element, channels) {
        Some(held) => Launch::new(
            format!("layer_norm_{held}_{suffix}"),
            [tokens.div_ceil(WARPS), 1, 1],
            WARPS * 32,
        ),
        None => Launch::new(format!("layer_norm_any_{suffix}"), [tokens, 1, 1], THREADS),
    };
    vec![
        launch
            .at([at.x, at.w, at.b, at.y, at.stats])
            .ints([tokens, channels])
            .float(eps)
            .0,
    ]
}

fn parts(tokens: usize) -> usize {
    tokens.div_ceil(WARPS).min(BLOCKS)
}

/// Bytes that [`layer_norm_grad`] needs besides its operands.
pub fn layer_norm_grad_workspace(tokens: usize, channels: usize) -> usize {
    parts(tokens) * 2 * channels * 4
}

pub fn layer_norm_grad(element: Element, at: &Backward, tokens: usize, channels: usize, add: bool) -> Vec<Call> {
    let suffix = element.suffix();
    let trained = at.dw != Address::NONE || at.db != Address::NONE;
    let partial = if trained { at.workspace } else { Address::NONE };
    let addresses = [at.dy, at.x, at.w, at.stats, at.plus, at.dx];
    let mut calls = Vec::new();
    if let Some(held) = held(element, channels) {
        let name = format!("layer_norm_grad_{held}_{suffix}");
        let launch = Launch::new(name, [parts(tokens), 1, 1], WARPS * 32).shared(2 * channels * 4);
        calls.push(launch.at(addresses).at([partial]).ints([tokens, channels]).0);
    } else {
        // First, because `dx` may lie over `plus` but never over what this reads.
        if trained {
            let name = format!("layer_norm_columns_{suffix}");
            let launch = Launch::new(name, [channels.div_ceil(THREADS), parts(tokens), 1], THREADS);
            calls.push(launch.at([at.dy, at.x, at.stats, partial]).ints([tokens, channels]).0);
        }
        let launch = Launch::new(format!("layer_norm_grad_any_{suffix}"), [tokens, 1, 1], THREADS);
        calls.push(launch.at(addresses).ints([tokens, channels]).0);
    }
    if trained {
        calls.push(sums::sum_parts(
            element,
            partial,
            [at.dw, at.db],
            [parts(tokens), channels],
            add,
        ));
    }
    calls
}
