//! What all sessions on a GPU share: the GPU, NVIDIA's libraries, and the algorithms chosen so far.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    super::session::{Algorithms, Result},
    blas::{self, Blas},
    call::Element,
    choices::Choices,
    dnn::{self, Dnn},
    gpu::{Card, Gpu},
};

pub struct Device {
    pub(super) gpu: Arc<Gpu>,
    libraries: Mutex<Libraries>,
    /// The files that cuBLASLt and cuDNN came from.
    pub files: [String; 2],
}

pub(super) struct Libraries {
    pub linear: blas::Plans,
    pub conv: dnn::Plans,
    pub choices: Choices,
}

impl Libraries {
    /// Plans that were made of other algorithms are made again.
    pub fn prefer(&mut self, algorithms: &Algorithms) {
        if self.choices.prefer(algorithms) {
            self.linear.forget();
            self.conv.forget();
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("card", self.card())
            .field("files", &self.files)
            .finish()
    }
}

impl Device {
    /// The first GPU that the driver shows (`CUDA_VISIBLE_DEVICES` chooses), with its libraries.
    ///
    /// # Errors
    /// When there is no driver, no GPU that computes, a library is missing, or this build has no kernels.
    pub fn open() -> Result<Arc<Self>> {
        Self::with(true)
    }

    /// The same, but takes whatever algorithm the libraries propose first where none was timed before: for tests, which
    /// meet hundreds of shapes once.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_without_timing() -> Result<Arc<Self>> {
        Self::with(false)
    }

    fn with(timed: bool) -> Result<Arc<Self>> {
        let gpu = Gpu::open()?;
        gpu.enter()?;
        let (blas, dnn) = (Blas::open(&gpu)?, Dnn::open(&gpu)?);
        let files = [blas.file.clone(), dnn.file.clone()];
        let Card { name, driver, .. } = &gpu.card;
        let card = format!("{name} driver {driver} cublaslt {} cudnn {}", blas.version, dnn.version);
        let choices = Choices::of(&card, timed);
        Ok(Arc::new(Self {
            gpu,
            libraries: Mutex::new(Libraries {
                linear: blas::Plans::new(blas),
                conv: dnn::Plans::new(dnn),
                choices,
            }),
            files,
        }))
    }

    pub fn card(&self) -> &Card {
        &self.gpu.card
    }

    /// What networks compute in where nobody says: the 16-bit type that needs no loss scale, if the card has it.
    pub fn usual_element(&self) -> Element {
        if self.card().has_bf16() {
            Element::Bf16
        } else {
            Element::F16
        }
    }

    /// Bytes of the GPU's memory that are in use, by all programs together, as the driver counts them.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn used_bytes(&self) -> Result<u64> {
        let (free, total) = self.memory()?;
        Ok(total - free)
    }

    /// Free and total bytes of the GPU's memory, as the driver counts them for all programs together.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.gpu.enter()?;
        self.gpu.memory()
    }

    pub(super) fn libraries(&self) -> MutexGuard<'_, Libraries> {
        self.libraries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
