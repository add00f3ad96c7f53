//! Launches of layer norm and its gradient (`layer_norm.cu`).

use super::super::call::{Address, Argument, Call, Element};
use super::{addresses, vector_of};

const THREADS: u32 = 256;
/// Tokens of a warp's eight at a time.
const TOKENS: usize = 8;
/// Blocks that keep a large GPU busy: 132 multiprocessors, two each.
const ENOUGH_BLOCKS: usize = 264;

/// `[tokens, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub tokens: usize,
    pub channels: usize,
}

impl Shape {
    /// Tokens of a block of the backward.
    fn band(&self) -> usize {
        self.tokens.div_ceil(ENOUGH_BLOCKS).next_multiple_of(TOKENS)
    }

    fn sizes(&self) -> [Argument; 2] {
        [Argument::I32(self.tokens as i32), Argument::I32(self.channels as i32)]
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub x: Address,
    pub w: Address,
    pub b: Address,
    pub y: Address,
    /// F32 `[tokens, 2]`
    pub stats: Address,
}

/// `dw` and `db` are both wanted, or both [`Address::NONE`].
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
    /// Of [`backward_workspace`] bytes.
    pub workspace: Address,
}

fn call(name: String, grid: [usize; 2], arguments: Vec<Argument>) -> Call {
    Call {
        name,
        grid: [grid[0] as u32, grid[1] as u32, 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        arguments,
    }
}

pub fn forward(element: Element, shape: &Shape, eps: f64, at: &Forward) -> Vec<Call> {
    let vector = vector_of(element, shape.channels);
    let mut arguments = addresses(&[at.x, at.w, at.b, at.y, at.stats]);
    arguments.push(Argument::F32(eps as f32));
    arguments.extend(shape.sizes());
    let name = format!("layer_norm_{vector}_{}", element.suffix());
    vec![call(name, [shape.tokens.div_ceil(TOKENS), 1], arguments)]
}

/// Bytes that [`backward`] needs where the weights are trained.
pub fn backward_workspace(shape: &Shape) -> usize {
    4 * 2 * shape.tokens.div_ceil(shape.band()) * shape.channels
}

pub fn backward(element: Element, shape: &Shape, add: bool, at: &Backward) -> Vec<Call> {
    let (vector, suffix) = (vector_of(element, shape.channels), element.suffix());
    let bands = shape.tokens.div_ceil(shape.band());
    let trained = at.dw != Address::NONE || at.db != Address::NONE;
    let parts = if trained { at.workspace } else { Address::NONE };
    let mut arguments = addresses(&[at.dy, at.x, at.w, at.stats, at.plus, at.dx, parts]);
    arguments.push(Argument::I32(shape.band() as i32));
    arguments.extend(shape.sizes());
    let mut calls = vec![call(
        format!("layer_norm_grad_{vector}_{suffix}"),
        [bands, 1],
        arguments,
    )];
    if trained {
        let mut arguments = addresses(&[parts, at.dw, at.db]);
        arguments.extend([bands, shape.channels].map(|size| Argument::I32(size as i32)));
        arguments.push(Argument::I32(add.into()));
        calls.push(call(
            format!("layer_norm_grad_finish_{suffix}"),
            [shape.channels.div_ceil(32), 2],
            arguments,
        ));
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_are_not_trained_cost_no_second_kernel() {
        let shape = Shape {
            tokens: 8192,
            channels: 320,
        };
        assert_eq!(shape.band(), 32);
        let at = Backward {
            dy: Address(1 << 32),
            x: Address(2 << 32),
            w: Address(3 << 32),
            stats: Address(4 << 32),
            plus: Address::NONE,
            dx: Address(5 << 32),
            dw: Address::NONE,
            db: Address::NONE,
            workspace: Address::NONE,
        };
        assert_eq!(backward(Element::Bf16, &shape, false, &at).len(), 1);
        let dw = Address(6 << 32);
        assert_eq!(backward(Element::Bf16, &shape, false, &Backward { dw, ..at }).len(), 2);
        assert_eq!(backward_workspace(&shape), 4 * 2 * 256 * 320);
    }
}
