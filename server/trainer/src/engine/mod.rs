//! Networks as lists of instructions, and the devices that run them.

pub mod cpu;
pub mod ir;
pub mod operands;
pub mod optim;
pub mod plan;
pub mod reference;
pub mod session;
pub mod verify;
