//! Memory for trying algorithms out.

use std::sync::Arc;

use super::{
    super::{plan::ALIGNMENT, session::Result},
    call::Address,
    gpu::{Gpu, Memory},
};

/// Grows as it is asked for more.
pub(super) struct Scratch {
    gpu: Arc<Gpu>,
    memory: Option<Memory>,
}

impl Scratch {
    pub fn new(gpu: &Arc<Gpu>) -> Self {
        Self {
            gpu: gpu.clone(),
            memory: None,
        }
    }

    /// Places of those sizes, filled with small numbers.
    ///
    /// # Errors
    /// When the GPU has no memory left.
    pub fn places<const N: usize>(&mut self, bytes: [usize; N]) -> Result<[Address; N]> {
        let padded = bytes.map(|bytes| bytes.next_multiple_of(ALIGNMENT));
        let wanted = padded.iter().sum();
        if self.memory.as_ref().is_none_or(|memory| memory.bytes < wanted) {
            self.memory = None;
            let memory = Memory::new(&self.gpu, wanted, "trying algorithms")?;
            // 0x3c3c is about 1 in fp16, 0.01 in bf16 and f32.
            memory.fill(0x3c)?;
            self.memory = Some(memory);
        }
        let mut at = self.memory.as_ref().map_or(Address::NONE, |memory| memory.address);
        Ok(padded.map(|bytes| {
            let place = at;
            at = at.offset(bytes);
            place
        }))
    }
}
