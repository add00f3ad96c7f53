//! One launch of one of our kernels, as data: what to run, over what grid, with what arguments.
//!
//! `calls/` turns instructions into such lists without touching a GPU, so that grids, workspaces and argument lists are
//! plain values; the session launches them, eagerly or into a graph.

/// What a network computes in on the device. Every kernel that reads activations is built for each, and named with the
/// suffix of [`Element::suffix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    pub fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// A device address, in bytes; 0 is no buffer, which kernels take as "absent".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address(pub u64);

impl Address {
    pub const NONE: Self = Self(0);

    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    Address(Address),
    I32(i32),
    I64(i64),
    F32(f32),
}

/// A kernel's launch. `name` is its `extern "C"` name, suffix included.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub name: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory; above 48 KiB the session raises the kernel's limit once.
    pub shared_bytes: u32,
    pub arguments: Vec<Argument>,
}
