//! A run as the world sees it: its folder, its log, whether it may go on.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use app::background::AlphaBackground;
use app::event::{EventKind, Phase};
use app::recipe::{Precision, Recipe};
use sha2::{Digest, Sha256};

use super::error::TrainError;
use super::export::TutorialFolders;
use super::latents::{Noticed, Pictures};
use super::learner::Learner;
use super::state::{self, TrainingState};
use super::stop::Stop;
use crate::dataset::{self, DatasetError, Reading, Stray};
use crate::device::{self, Device};
use crate::engine::session::Algorithms;
use crate::events::EventLog;
use crate::tokenizer::Tokenizer;

/// How low_memory learns otherwise than a usual run.
pub(super) const LOW_MEMORY: &str = "low_memory: weights are kept in bf16 alone and rounded by chance, the optimizer's memory in 8 bits, and each tensor's \
     gradient is clipped by its own norm, not by that of all together; losses follow those of a usual run, the numbers are not the same";

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
    /// Where class images of earlier jobs are, and this one's are kept.
    pub class_image_cache: Option<PathBuf>,
    /// As if the device had only so many bytes.
    pub memory_limit: Option<u64>,
    /// Settings that need less memory are turned on where it would not fit without.
    pub fits_itself: bool,
    /// The training state is saved whenever it is due, however long that takes.
    pub saves_when_due: bool,
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

/// The photos of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Photos {
    pub count: usize,
    /// Some are cut out or mirrored in several ways.
    pub vary: bool,
}

/// A saved state to go on from.
pub(super) struct Resume {
    pub path: PathBuf,
    pub step: u32,
    pub algorithms: Option<Algorithms>,
    /// It is this run's own, cut off earlier; otherwise the recipe asked for it.
    pub own: bool,
    /// What the run that saved it turned on so that it fits.
    pub turned_on: Vec<String>,
}

impl Run {
    /// Says that the run starts, and where it goes on: the saved state, if there is one to use.
    pub(super) fn start(&self) -> Result<Option<Resume>, TrainError> {
        let path = state::state_path(&self.folder);
        let saved = state::peek(&path)?;
        let own = saved
            .as_ref()
            .filter(|header| header.recipe_sha256 == self.recipe_sha256());
        let resume = match (own, &self.recipe.resume_from_checkpoint) {
            (Some(header), _) => Some(Resume {
                path,
                step: header.step,
                algorithms: header.algorithms.clone(),
                own: true,
                turned_on: header.turned_on.clone(),
            }),
            (None, Some(reference)) => self.checkpoint(reference)?,
            (None, None) => None,
        };
        // A run that is taken up before its first save begins again at 0, and viewers fold away what they saw of it.
        let rewound_to = resume.as_ref().map(|resume| resume.step);
        self.emit(EventKind::Started {
            trainer: device::build().into(),
            device: self.device.describe().name,
            rewound_to: rewound_to.or_else(|| self.log.continues().then_some(0)),
        })?;
        match (&resume, &self.recipe.resume_from_checkpoint) {
            (None, Some(_)) => self.warn(
                "no_checkpoint",
                "there is no saved state to go on from; training starts from the base model".into(),
            )?,
            (None, None) if saved.is_some() => self.warn(
                "other_recipe",
                "the saved state belongs to another recipe; training starts over".into(),
            )?,
            (Some(Resume { step, own: false, .. }), _) if *step >= self.recipe.max_train_steps => self.warn(
                "nothing_to_train",
                format!(
                    "the saved state has {step} steps already; max_train_steps {} leaves none to train",
                    self.recipe.max_train_steps
                ),
            )?,
            _ => {}
        }
        self.tell_unused()?;
        Ok(resume)
    }

    /// The saved state that `resume_from_checkpoint` names. A run without any may still ask for its `latest`.
    fn checkpoint(&self, reference: &str) -> Result<Option<Resume>, TrainError> {
        let none = |why: &str| TrainError::NoCheckpoint {
            reference: reference.into(),
            why: why.into(),
        };
        let given = self.data_folder.join(reference);
        let path = match reference {
            "latest" => state::newest(&self.folder)?,
            _ if given.is_dir() => Some(state::newest(&given)?.ok_or_else(|| none("no run has left a state there"))?),
            _ => Some(given),
        };
        let Some(path) = path else { return Ok(None) };
        let header = state::peek(&path)?.ok_or_else(|| none("there is no such file"))?;
        Ok(Some(Resume {
            path,
            step: header.step,
            algorithms: header.algorithms,
            own: false,
            turned_on: header.turned_on,
        }))
    }

    /// What the recipe asks for and will not get.
    fn tell_unused(&self) -> Result<(), TrainError> {
        let recipe = &self.recipe;
        for sentence in recipe.unused() {
            self.warn("no_effect", sentence)?;
        }
        if recipe.low_memory {
            self.warn("low_memory", LOW_MEMORY.into())?;
        }
        let message = match (self.precision(), recipe.precision()) {
            (precision, Some(wanted)) if precision == wanted => return Ok(()),
            (Precision::No, None) => return Ok(()),
            (Precision::No, _) => "the CPU trains in full precision whatever mixed_precision says",
            (Precision::Bf16, _) if recipe.low_memory => return Ok(()),
            (Precision::Bf16, _) => {
                "the GPU computes in bf16 over exact f32 weights; mixed_precision no computes in f32"
            }
            (Precision::Fp16, Some(_)) => "this GPU has no bf16; it computes in fp16 over exact f32 weights",
            (Precision::Fp16, _) => {
                "the GPU computes in fp16 over exact f32 weights; mixed_precision no computes in f32"
            }
        };
        self.warn("mixed_precision", message.into())?;
        Ok(())
    }

    /// What training computes in.
    pub(super) fn precision(&self) -> Precision {
        self.device.precision(self.recipe.precision())
    }

    /// Reads every photo once before anything slow starts, so that a damaged one is named at once. Tells how many there
    /// are, and whether any can be cut in several ways.
    pub(super) fn check_photos(&self) -> Result<Photos, TrainError> {
        let reading = Reading::of(&self.recipe);
        let mut photos = Photos {
            count: 0,
            vary: self.recipe.hflip,
        };
        for concept in &self.recipe.concepts {
            let folder = self.data_folder.join(&concept.instance_data_dir);
            let listing = dataset::list(&folder)?;
            for Stray { path, why } in &listing.strays {
                let message = format!("{} {why}; it is left out", path.display());
                self.warn("not_a_photo", message)?;
            }
            for path in &listing.photos {
                let photo = dataset::read_photo(path, reading)?;
                let (width, height) = photo.rgb.dimensions();
                photos.count += 1;
                photos.vary |= width != height && !self.recipe.center_crop;
                if photo.had_alpha {
                    self.tell_alpha(path, reading.background)?;
                }
                if self.recipe.read_prompts_from_txts {
                    dataset::read_caption(path, self.recipe.strict_tutorial)?;
                }
            }
            if listing.photos.is_empty() {
                return Err(DatasetError::Empty { folder }.into());
            }
        }
        Ok(photos)
    }

    fn tell_alpha(&self, path: &Path, background: AlphaBackground) -> Result<(), TrainError> {
        let what = match background {
            AlphaBackground::Drop => "what lies below them is trained on".to_owned(),
            color => format!("they are laid on {color}"),
        };
        self.warn(
            "transparent",
            format!("{} has transparent parts; {what}", path.display()),
        )
    }

    pub(super) fn tell_noticed(&self, noticed: &Noticed) -> Result<(), TrainError> {
        noticed.cut_prompts.iter().try_for_each(|cut| self.tell_cut(cut))
    }

    /// Words of the samples' prompts that find no room.
    pub(super) fn tell_cut_sample_prompts(&self, tokenizer: &Tokenizer) -> Result<(), TrainError> {
        let samples = &self.recipe.samples;
        if self.sample_steps().is_empty() {
            return Ok(());
        }
        for prompt in [&samples.save_sample_prompt, &samples.save_sample_negative_prompt] {
            if let Some(cut) = tokenizer.encode(prompt, false)?.cut {
                self.tell_cut(&cut)?;
            }
        }
        Ok(())
    }

    fn tell_cut(&self, words: &str) -> Result<(), TrainError> {
        self.warn(
            "prompt_cut",
            format!("a prompt is too long; these words were left out: {words}"),
        )
    }

    /// The first, second, fourth, ... update that was left out.
    pub(super) fn tell_skipped(&self, skipped: u64) -> Result<(), TrainError> {
        if !skipped.is_power_of_two() {
            return Ok(());
        }
        let updates = if skipped == 1 { "update was" } else { "updates were" };
        self.warn(
            "skipped_updates",
            format!("{skipped} {updates} left out because a gradient overflowed fp16; a few in a run are usual"),
        )
    }

    pub(super) fn tell_plan(&self, learner: &Learner, pictures: &Pictures) -> Result<(), TrainError> {
        let trained = learner.networks.trained();
        self.emit(EventKind::Plan {
            steps: self.recipe.max_train_steps,
            trained_parameters: trained.iter().map(|(_, param)| param.len() as u64).sum(),
            trained_tensors: trained.len() as u32,
            photos: pictures.photos() as u32,
            class_images: pictures.class_images() as u32,
            micro_batches_per_step: self.recipe.micro_batches_per_step(),
            sample_steps: self.sample_steps(),
            held_out: pictures
                .held_out
                .as_ref()
                .map(|held_out| self.named(&held_out.photo.path)),
        })
    }

    /// A file as events name it: from the data folder on.
    fn named(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.data_folder).unwrap_or(path);
        below.to_string_lossy().into_owned()
    }

    /// After which steps samples are drawn, ascending.
    pub fn sample_steps(&self) -> Vec<u32> {
        match &self.results {
            Results::SingleFiles => self.recipe.sample_steps(),
            _ if self.recipe.samples.save_sample_prompt.trim().is_empty() => Vec::new(),
            Results::Tutorial(folders) => {
                let mut steps = match self.recipe.samples.sample_interval {
                    0 => Vec::new(),
                    _ => self.recipe.sample_steps(),
                };
                let saves = folders.saves(self.recipe.max_train_steps);
                steps.extend(saves.into_iter().map(|save| save.after));
                steps.sort_unstable();
                steps.dedup();
                steps
            }
        }
    }

    /// Puts the state on disk, then says so.
    pub(super) fn save_state(&self, learner: &mut Learner, state: &TrainingState) -> Result<(), TrainError> {
        state.save(&mut learner.networks, &self.folder, &self.recipe_sha256())?;
        if let Some(limit) = self.recipe.checkpoints_total_limit {
            state::keep(&self.folder, state.step, limit as usize)?;
        }
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
