//! The loss (`loss.cu`).

use super::{
    super::call::{Address, Call, Element},
    Launch,
};

/// Operands of [`mse`], as `Op::Mse` names them.
#[derive(Clone, Copy, Debug)]
pub struct Mse {
    pub predicted: Address,
    pub target: Address,
    pub weights: Address,
    pub scale: Address,
    pub losses: Address,
    pub dpredicted: Address,
}

/// `element`: of `predicted` and `dpredicted`; the others are F32. `count`: values of a row.
pub fn mse(element: Element, at: &Mse, rows: usize, count: usize) -> Vec<Call> {
    let launch = Launch::new(format!("mse_{}", element.suffix()), [rows, 1, 1], 1024);
    let addresses = [at.predicted, at.target, at.weights, at.scale, at.losses, at.dpredicted];
    vec![launch.at(addresses).longs([count]).0]
}
