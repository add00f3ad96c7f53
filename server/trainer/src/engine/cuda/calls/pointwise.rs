//! What happens to every element by itself (`pointwise.cu`).

use super::{
    super::{
        super::ir::Activation,
        call::{Address, Call, Element},
    },
    Launch, vector, vector_of,
};

/// `y = x` in another type. One of the two is F32.
pub fn cast(from: Element, to: Element, x: Address, y: Address, len: usize) -> Vec<Call> {
    let name = format!("cast_{}_{}", from.suffix(), to.suffix());
    vec![Launch::flat(name, len.div_ceil(4)).at([x, y]).longs([len]).0]
}

/// `y = a + b`; `y` may be `a` or `b`.
pub fn add(element: Element, [a, b]: [Address; 2], y: Address, len: usize) -> Vec<Call> {
    let name = format!("add_{}", element.suffix());
    vec![
        Launch::flat(name, len.div_ceil(vector(element)))
            .at([a, b, y])
            .longs([len])
            .0,
    ]
}

/// `y += bias[channel] + residual`, in place: what follows a convolution. Either may be absent; `residual` may not be `y`.
pub fn bias_residual(
    element: Element,
    y: Address,
    bias: Address,
    residual: Address,
    pixels: usize,
    channels: usize,
) -> Vec<Call> {
    if bias == Address::NONE && residual == Address::NONE {
        return vec![];
    }
    let width = vector_of(element, channels);
    let name = format!("bias_residual_{width}_{}", element.suffix());
    let launch = Launch::flat(name, pixels * channels / width);
    vec![
        launch
            .at([y, bias, residual])
            .ints([channels])
            .longs([pixels * channels])
            .0,
    ]
}

fn name(kind: Activation) -> &'static str {
    match kind {
        Activation::Silu => "silu",
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
    }
}

pub fn activate(element: Element, kind: Activation, x: Address, y: Address, len: usize) -> Vec<Call> {
    let name = format!("{}_{}", name(kind), element.suffix());
    vec![
        Launch::flat(name, len.div_ceil(vector(element)))
            .at([x, y])
            .longs([len])
            .0,
    ]
}

/// `dx = dy * slope(x) + plus`; `plus` may be absent or `dx`.
pub fn activate_grad(
    element: Element,
    kind: Activation,
    [dy, x]: [Address; 2],
    plus: Address,
    dx: Address,
    len: usize,
) -> Vec<Call> {
    let name = format!("{}_grad_{}", name(kind), element.suffix());
    let launch = Launch::flat(name, len.div_ceil(vector(element)));
    vec![launch.at([dy, x, plus, dx]).longs([len]).0]
}

/// `y = a * gelu(b)`, `x` `[pixels, 2 * channels]`, `y` `[pixels, channels]`.
pub fn geglu(element: Element, x: Address, y: Address, pixels: usize, channels: usize) -> Vec<Call> {
    let width = vector_of(element, channels);
    let name = format!("geglu_{width}_{}", element.suffix());
    let launch = Launch::flat(name, pixels * channels / width);
    vec![launch.at([x, y]).ints([channels]).longs([pixels * channels]).0]
}

/// `dy` `[pixels, channels]`, `x` and `dx` `[pixels, 2 * channels]`; `dx` may be `x`.
pub fn geglu_grad(element: Element, [dy, x]: [Address; 2], dx: Address, pixels: usize, channels: usize) -> Vec<Call> {
    let width = vector_of(element, channels);
    let name = format!("geglu_grad_{width}_{}", element.suffix());
    let launch = Launch::flat(name, pixels * channels / width);
    vec![launch.at([dy, x, dx]).ints([channels]).longs([pixels * channels]).0]
}
