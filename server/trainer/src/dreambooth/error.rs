//! Why a run fails, and what a person can do about it.

use std::path::PathBuf;

use app::api::hub_codes;
use app::job::Failure;

use super::gradients::GradientError;
use super::memory::gib;
use super::scaler::ScaleError;
use crate::dataset::DatasetError;
use crate::engine::autodiff::AutodiffError;
use crate::engine::nets::error::NetworkError;
use crate::engine::session::EngineError;
use crate::events::EventError;
use crate::formats::ModelError;
use crate::pipeline::PipelineError;
use crate::schedulers::SchedulerError;
use crate::store::StoreError;
use crate::tokenizer::TokenizerError;

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Model(Box<ModelError>),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error("step {step}: the gradients are not as they must be")]
    Gradient {
        step: u32,
        #[source]
        source: GradientError,
    },
    #[error("training diverged at step {step}")]
    Diverged {
        step: u32,
        #[source]
        source: ScaleError,
    },
    #[error("--resume_from_checkpoint: {reference}: {why}")]
    NoCheckpoint { reference: String, why: String },
    #[error("the base model draws only black or single-coloured images for `{prompt}`")]
    BlackClassImages { prompt: String },
    #[error("resolution is {got}; it must be a multiple of {multiple} for this model")]
    Resolution { got: u32, multiple: u32 },
    #[error(
        "what this run leaves in {} needs {:.1} GB, and {:.1} GB are free",
        .folder.display(), gigabytes(*.needed), gigabytes(*.free)
    )]
    NoSpace { folder: PathBuf, needed: u64, free: u64 },
    #[error(
        "this run needs {:.2} GiB of memory, and there are {:.2}: {}",
        gib(*.needed), gib(*.there), in_words(.proposals, *.there)
    )]
    DoesNotFit {
        needed: u64,
        there: u64,
        /// Flags, and what the run needs with them.
        proposals: Vec<(String, u64)>,
    },
    #[error("the saved training state {} cannot be used: {why}", .path.display())]
    State { path: PathBuf, why: String },
    #[error(transparent)]
    Events(#[from] EventError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

// Boxed, so that every result of a run does not carry the room for the largest error there is.
impl From<ModelError> for TrainError {
    fn from(error: ModelError) -> Self {
        Self::Model(Box::new(error))
    }
}

impl From<EngineError> for TrainError {
    fn from(error: EngineError) -> Self {
        Self::Network(error.into())
    }
}

fn network_code(error: &NetworkError) -> &'static str {
    match error {
        NetworkError::Param(_) | NetworkError::Build(_) => "bad_model",
        NetworkError::Autodiff(AutodiffError::NoGradient { .. }) => "no_gradient",
        NetworkError::Engine(EngineError::OutOfMemory { .. }) => "out_of_memory",
        _ => "engine",
    }
}

impl TrainError {
    /// As the job's last event tells it.
    pub fn failure(&self) -> Failure {
        Failure {
            code: self.code().into(),
            message: chain(self),
            hint: self.hint().map(Into::into),
        }
    }

    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Model(error) => match &**error {
                ModelError::Hub(error) => error.code(),
                ModelError::NotFinite { .. } => "diverged",
                _ => "bad_model",
            },
            Self::Tokenizer(_) => "bad_model",
            Self::Network(error) | Self::Pipeline(PipelineError::Network(error)) => network_code(error),
            Self::Dataset(DatasetError::Empty { .. }) => "no_photos",
            Self::Dataset(_) => "bad_photo",
            Self::Gradient { source, .. } => match source {
                GradientError::Zero(_) => "no_gradient",
                GradientError::NotFinite(_) => "diverged",
                GradientError::Engine(_) => "engine",
            },
            Self::Diverged { .. } => "diverged",
            Self::NoCheckpoint { .. } => "no_checkpoint",
            Self::BlackClassImages { .. } => "black_class_images",
            Self::Resolution { .. } => "bad_recipe",
            Self::State { .. } => "bad_state",
            Self::NoSpace { .. } => "no_space",
            Self::DoesNotFit { .. } => "does_not_fit",
            Self::Store(error) | Self::Pipeline(PipelineError::Store(error)) if error.is_full() => "disk_full",
            Self::Events(_) | Self::Store(_) => "cannot_write",
            Self::Scheduler(_) | Self::Pipeline(_) | Self::Tensor(_) => "engine",
        }
    }

    /// The command that was given cannot be meant, whatever is on the disk.
    pub fn is_wrong_use(&self) -> bool {
        matches!(self, Self::Resolution { .. } | Self::NoCheckpoint { .. })
    }

    fn hint(&self) -> Option<&'static str> {
        match self.code() {
            "diverged" => Some("Try a learning rate ten times lower."),
            "out_of_memory" => Some(
                "Ask for fewer images a step, a lower resolution, gradient_checkpointing, use_8bit_adam or low_memory.",
            ),
            "does_not_fit" => {
                Some("Give those flags, or a smaller model; under All settings they have the same names.")
            }
            "no_space" => {
                Some("Free some space, keep fewer models (--keep_last), save them less often or with --save_fp16.")
            }
            "disk_full" => Some("Free some space; the run then continues from its last saved state."),
            "no_photos" => Some("Add JPEG, PNG or WebP files."),
            "bad_photo" => Some("Remove that photo or save it again as PNG or JPEG."),
            "no_checkpoint" => Some("Give `latest`, a saved state or the folder of a run that has one."),
            "bad_state" => Some("Delete the folder `state` beside it to start over."),
            code if hub_codes::asks_for_token(code) => {
                Some("Check the name under Base model, enter a token there if the model wants one, and start again.")
            }
            hub_codes::OFFLINE | hub_codes::DOWNLOAD => {
                Some("What has come is kept: start again, and the download goes on where it was.")
            }
            "black_class_images" => Some("The base model seems damaged; try another one."),
            _ => None,
        }
    }
}

/// What fits; where nothing does, the least there is.
fn in_words(proposals: &[(String, u64)], there: u64) -> String {
    let told = |(flags, bytes): &(String, u64)| format!("{flags} ({:.2} GiB)", gib(*bytes));
    let fitting: Vec<String> = proposals
        .iter()
        .filter(|(_, bytes)| *bytes <= there)
        .map(told)
        .collect();
    match (fitting.is_empty(), proposals.iter().min_by_key(|(_, bytes)| *bytes)) {
        (false, _) => format!("it fits with {}", fitting.join(", or ")),
        (true, Some(least)) => format!("not even {} fits", told(least)),
        (true, None) => "no setting needs less".into(),
    }
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// What failed and all that it came from, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
