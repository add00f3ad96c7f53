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

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(call: &Call, width: usize) -> usize {
        (call.grid[0] * call.block[0]) as usize * width
    }

    #[test]
    fn grids_reach_the_last_element_of_ragged_shapes() {
        let at = Address(256);
        for len in [1, 7, 256 * 8, 256 * 8 + 1, 1_000_003] {
            assert!(elements(&add(Element::Bf16, [at, at], at, len)[0], 8) >= len);
            assert!(elements(&cast(Element::F32, Element::Bf16, at, at, len)[0], 4) >= len);
        }
        let odd = &bias_residual(Element::Bf16, at, at, Address::NONE, 100, 13)[0];
        assert_eq!(odd.name, "bias_residual_1_bf16");
        assert!(elements(odd, 1) >= 1300);
        let even = &geglu(Element::F32, at, at, 100, 12)[0];
        assert_eq!(even.name, "geglu_4_f32");
        assert!(elements(even, 4) >= 1200);
    }

    #[test]
    fn nothing_to_add_is_no_launch() {
        let none = Address::NONE;
        assert_eq!(bias_residual(Element::F16, Address(256), none, none, 8, 8), []);
    }
}
