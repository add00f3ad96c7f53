//! A run as the world sees it: its folder, its log, whether it may go on.

use std::ops::ControlFlow;
use std::path::PathBuf;

use app::event::{EventKind, Phase};
use app::recipe::{Precision, Recipe};
use candle_core::Device;
use sha2::{Digest, Sha256};

use super::error::TrainError;
use super::export::TutorialFolders;
use super::latents::{Noticed, Pictures};
use super::state::{self, TrainingState};
use super::stop::Stop;
use crate::dataset::{self, DatasetError};
use crate::device;
use crate::events::EventLog;

/// One recipe, where it works, and how it reports.
pub struct Run {
    pub recipe: Recipe,
    /// Relative folders of the recipe start here.
    pub data_folder: PathBuf,
    /// Holds log, samples, state and exported files.
    pub folder: PathBuf,
    pub log: EventLog,
    pub stop: Stop,
    pub device: Device,
    pub results: Results,
}

/// In what form a run leaves its model.
pub enum Results {
    /// `export/NAME.safetensors` and `.ckpt`.
    SingleFiles,
    /// `OUTPUT_DIR/STEP/` as the tutorial's script leaves them.
    Tutorial(TutorialFolders),
}

/// How a run ended, and after which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Done { step: u32 },
    Stopped { step: u32 },
}

impl Run {
    /// Says that the run starts, and where it goes on: the step of the saved state, if there is one to use.
    pub(super) fn start(&self) -> Result<Option<u32>, TrainError> {
        let saved = state::peek(&self.folder)?;
        let fits = |header: &state::StateHeader| header.recipe_sha256 == self.recipe_sha256();
        let resumed_at = saved.as_ref().filter(|header| fits(header)).map(|header| header.step);
        // A run that is taken up before its first save begins again at 0, and viewers fold away what they saw of it.
        let rewound_to = resumed_at.or_else(|| self.log.continues().then_some(0));
        self.emit(EventKind::Started {
            trainer: device::build().into(),
            device: device::describe(&self.device).name,
            rewound_to,
        })?;
        if saved.is_some() && resumed_at.is_none() {
            self.warn(
                "other_recipe",
                "the saved state belongs to another recipe; training starts over".into(),
            )?;
        }
        if self.recipe.mixed_precision != Precision::No && matches!(self.device, Device::Cpu) {
            self.warn(
                "mixed_precision",
                "the CPU trains in full precision whatever mixed_precision says".into(),
            )?;
        }
        Ok(resumed_at)
    }

    /// Reads every photo once before anything slow starts, so that a damaged one is named at once.
    pub(super) fn check_photos(&self) -> Result<(), TrainError> {
        for concept in &self.recipe.concepts {
            let folder = self.data_folder.join(&concept.instance_data_dir);
            let listing = dataset::list(&folder)?;
            for stray in &listing.strays {
                self.warn(
                    "not_a_photo",
                    format!("{} is not a photo and is left out", stray.display()),
                )?;
            }
            for path in &listing.photos {
                dataset::read_photo(path)?;
                if self.recipe.read_prompts_from_txts {
                    dataset::read_caption(path)?;
                }
            }
            if listing.photos.is_empty() {
                return Err(DatasetError::Empty { folder }.into());
            }
        }
        Ok(())
    }

    pub(super) fn tell_noticed(&self, noticed: &Noticed) -> Result<(), TrainError> {
        for path in &noticed.dropped_alpha {
            let message = format!(
                "{} has transparent parts; what lies below them was trained on",
                path.display()
            );
            self.warn("transparent", message)?;
        }
        for cut in &noticed.cut_prompts {
            self.warn(
                "prompt_cut",
                format!("a prompt is too long; these words were left out: {cut}"),
            )?;
        }
        Ok(())
    }

    pub(super) fn tell_plan(&self, state: &TrainingState, pictures: &Pictures) -> Result<(), TrainError> {
        self.emit(EventKind::Plan {
            steps: self.recipe.max_train_steps,
            trained_parameters: state.vars.values().map(|v| v.elem_count() as u64).sum(),
            trained_tensors: state.vars.len() as u32,
            photos: pictures.photos() as u32,
            class_images: pictures.class_images() as u32,
            sample_steps: self.sample_steps(),
        })
    }

    /// After which steps samples are drawn, ascending.
    pub fn sample_steps(&self) -> Vec<u32> {
        match &self.results {
            Results::SingleFiles => self.recipe.sample_steps(),
            _ if self.recipe.samples.save_sample_prompt.trim().is_empty() => Vec::new(),
            Results::Tutorial(folders) => folders.save_steps(self.recipe.max_train_steps),
        }
    }

    /// Puts the state on disk, then says so.
    pub(super) fn save_state(&self, state: &TrainingState) -> Result<(), TrainError> {
        state.save(&self.folder, &self.recipe_sha256())?;
        self.emit(EventKind::StateSaved { step: state.step })
    }

    pub(super) fn stopped_before_training(&self, resumed_at: Option<u32>) -> Result<Ended, TrainError> {
        let ended = Ended::Stopped {
            step: resumed_at.unwrap_or(0),
        };
        self.end(ended)?;
        Ok(ended)
    }

    /// The last event. A run that is done needs its state no more.
    pub(super) fn end(&self, ended: Ended) -> Result<(), TrainError> {
        match ended {
            Ended::Stopped { step } => {
                self.emit(EventKind::Stopped { step })?;
                self.log.flush()?;
            }
            Ended::Done { step } => {
                self.emit(EventKind::Done { step })?;
                self.log.flush()?;
                state::discard(&self.folder)?;
            }
        }
        Ok(())
    }

    pub(super) fn go_on(&self) -> ControlFlow<()> {
        if self.stop.asked() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    pub(super) fn phase(&self, phase: Phase) -> Result<(), TrainError> {
        self.emit(EventKind::Phase { phase })
    }

    pub(super) fn warn(&self, code: &str, message: String) -> Result<(), TrainError> {
        let code = code.to_owned();
        self.emit(EventKind::Warning { code, message })
    }

    pub(super) fn emit(&self, kind: EventKind) -> Result<(), TrainError> {
        Ok(self.log.emit(kind)?)
    }

    fn recipe_sha256(&self) -> String {
        let json = serde_json::to_vec(&self.recipe).unwrap_or_default();
        hex::encode(Sha256::digest(json))
    }
}
