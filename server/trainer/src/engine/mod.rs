//! Networks as lists of instructions, and the devices that run them.

pub mod ir;
pub mod session;
