//! Gradients of several programs added up in f32. In 16 bits a sum of many equal parts would round each time: of 64 parts a
//! percent is lost, of a thousand three quarters.

use std::sync::Arc;

use super::{
    super::session::Result,
    calls::optimizer::{self, Adding},
    gpu::{Gpu, Memory},
    store::{Layout, Store},
};

pub(super) struct GradientSums {
    gpu: Arc<Gpu>,
    /// In the store's order, gaps included; made when it is first needed.
    memory: Memory,
    /// There are some that no update has used.
    pub pending: bool,
}

/// Bytes that the sums of weights that lie so take.
pub(super) fn bytes(layout: &Layout) -> usize {
    4 * layout.trained
}

impl GradientSums {
    /// # Errors
    /// What the driver answers.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        Ok(Self {
            gpu: gpu.clone(),
            memory: Memory::new(gpu, 0, "")?,
            pending: false,
        })
    }

    /// Adds the gradients that a program left; `begins` forgets what was added before.
    ///
    /// # Errors
    /// When the sums do not fit.
    pub fn add(&mut self, store: &Store, begins: bool) -> Result<()> {
        let wanted = bytes(&store.layout);
        if self.memory.bytes < wanted {
            self.memory = Memory::new(&self.gpu, wanted, "the sums of gradients")?;
        }
        self.pending = true;
        self.launch(store, if begins { Adding::First } else { Adding::More })
    }

    /// Adds the last program's gradients, and puts the sums in their place, rounded once.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn close(&mut self, store: &Store) -> Result<()> {
        self.pending = false;
        self.launch(store, Adding::Last)
    }

    fn launch(&self, store: &Store, adding: Adding) -> Result<()> {
        let Some(gradients) = &store.gradients else {
            return Ok(());
        };
        let call = optimizer::add(
            store.element,
            gradients.address,
            self.memory.address,
            adding,
            store.layout.trained,
        );
        self.gpu.launch(&call)
    }

    pub fn bytes(&self) -> u64 {
        self.memory.bytes as u64
    }
}
