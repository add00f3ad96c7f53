//! Networks as lists of instructions, and the devices that run them.

pub mod adapter;
pub mod autodiff;
pub mod builder;
pub mod cpu;
pub mod cuda;
pub mod footprint;
pub mod gradients;
pub mod ir;
pub mod layout;
pub mod nets;
pub mod operands;
pub mod optim;
pub mod philox;
pub mod plan;
pub mod reference;
pub mod session;
pub mod verify;

#[cfg(test)]
mod testing;
