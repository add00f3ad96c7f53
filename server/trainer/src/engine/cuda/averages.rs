//! Running averages of the trained weights, in f32 beside them.

use std::sync::Arc;

use super::{
    super::{
        ir::ParamId,
        session::{EngineError, Result},
    },
    call::{Address, Element},
    calls::master,
    convert,
    gpu::{Gpu, Memory, Pinned},
    library::failed,
    store::{Layout, Store},
};

/// Elements that go between host and GPU at a time.
const CHUNK: usize = 4 << 20;

pub(super) struct Averages {
    gpu: Arc<Gpu>,
    /// In the store's order, gaps included.
    memory: Memory,
}

/// Bytes that averages of weights that lie so take.
pub(super) fn bytes(layout: &Layout) -> usize {
    4 * layout.trained
}

impl Averages {
    /// Begins at the weights as they are.
    ///
    /// # Errors
    /// When the averages do not fit.
    pub fn new(gpu: &Arc<Gpu>, store: &Store) -> Result<Self> {
        let memory = Memory::new(gpu, bytes(&store.layout), "the averages of the weights")?;
        let averages = Self {
            gpu: gpu.clone(),
            memory,
        };
        averages.follow(store, 1.)?;
        Ok(averages)
    }

    /// `average -= fresh * (average - weight)`; 1 copies, whatever was there.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn follow(&self, store: &Store, fresh: f32) -> Result<()> {
        let [copy, rest] = [store.weights.address, store.rests.address];
        let calls = master::follow(
            store.element,
            [copy, rest, self.memory.address],
            fresh,
            store.layout.trained,
        );
        calls.iter().try_for_each(|call| self.gpu.launch(call))
    }

    /// Weights and averages change places.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn exchange(&self, store: &Store) -> Result<()> {
        let [copy, rest] = [store.weights.address, store.rests.address];
        let calls = master::exchange(store.element, [copy, rest, self.memory.address], store.layout.trained);
        calls.iter().try_for_each(|call| self.gpu.launch(call))
    }

    /// # Errors
    /// For a frozen weight, and what the driver answers.
    pub fn get(&self, store: &Store, id: ParamId) -> Result<Vec<f32>> {
        let (at, len) = self.place(store, id)?;
        let mut values = vec![0f32; len];
        let mut staging = Pinned::new(&self.gpu, 4 * len.min(CHUNK))?;
        for (index, values) in values.chunks_mut(CHUNK).enumerate() {
            let bytes = 4 * values.len();
            staging.fetch(at.offset(4 * CHUNK * index), bytes)?;
            self.gpu.wait()?;
            convert::read_bytes(&staging.slice()[..bytes], Element::F32, values);
        }
        Ok(values)
    }

    /// # Errors
    /// For a frozen weight, another length, and what the driver answers.
    pub fn set(&self, store: &Store, id: ParamId, values: &[f32]) -> Result<()> {
        let (at, len) = self.place(store, id)?;
        if values.len() != len {
            return Err(EngineError::Length {
                name: "an average".to_owned(),
                want: len,
                got: values.len(),
            });
        }
        let mut staging = Pinned::new(&self.gpu, 4 * len.min(CHUNK))?;
        for (index, values) in values.chunks(CHUNK).enumerate() {
            let bytes = 4 * values.len();
            convert::to_bytes(values, Element::F32, &mut staging.slice()[..bytes]);
            staging.send(at.offset(4 * CHUNK * index), bytes)?;
            self.gpu.wait()?;
        }
        Ok(())
    }

    fn place(&self, store: &Store, id: ParamId) -> Result<(Address, usize)> {
        let slot = store.layout.slot(id);
        if !slot.trained {
            return Err(failed("an average", "was asked for of a weight that does not learn"));
        }
        Ok((self.memory.address.offset(4 * slot.start), slot.len))
    }

    pub fn bytes(&self) -> u64 {
        self.memory.bytes as u64
    }
}
