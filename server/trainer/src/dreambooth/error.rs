//! Why a run fails, and what a person can do about it.

use std::path::PathBuf;

use app::job::Failure;

use super::scaler::ScaleError;
use crate::dataset::DatasetError;
use crate::events::EventError;
use crate::formats::ModelError;
use crate::models::params::ParamError;
use crate::optim::grads::GradError;
use crate::pipeline::PipelineError;
use crate::schedulers::SchedulerError;
use crate::store::StoreError;
use crate::tokenizer::TokenizerError;

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Model(Box<ModelError>),
    #[error("the base model does not fit its configuration")]
    Param(#[from] ParamError),
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
        source: GradError,
    },
    #[error("training diverged at step {step}")]
    Diverged {
        step: u32,
        #[source]
        source: ScaleError,
    },
    #[error("--resume_from_checkpoint: {reference}: {why}")]
    NoCheckpoint { reference: String, why: String },
    #[error("the base model draws only black images for `{prompt}`")]
    BlackClassImages { prompt: String },
    #[error("resolution is {got}; it must be a multiple of {multiple} for this model")]
    Resolution { got: u32, multiple: u32 },
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
            Self::Model(_) | Self::Param(_) | Self::Tokenizer(_) => "bad_model",
            Self::Dataset(DatasetError::Empty { .. }) => "no_photos",
            Self::Dataset(_) => "bad_photo",
            Self::Gradient { source, .. } => match source {
                GradError::Missing(_) | GradError::Zero(_) => "no_gradient",
                GradError::NotFinite(_) => "diverged",
                GradError::Tensor(_) => "engine",
            },
            Self::Diverged { .. } => "diverged",
            Self::NoCheckpoint { .. } => "no_checkpoint",
            Self::BlackClassImages { .. } => "black_class_images",
            Self::Resolution { .. } => "bad_recipe",
            Self::State { .. } => "bad_state",
            Self::Store(error) | Self::Pipeline(PipelineError::Store(error)) if error.is_full() => "disk_full",
            Self::Events(_) | Self::Store(_) => "cannot_write",
            Self::Scheduler(_) | Self::Pipeline(_) | Self::Tensor(_) => "engine",
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self.code() {
            "diverged" => Some("Try a learning rate ten times lower."),
            "disk_full" => Some("Free some space; the run then continues from its last saved state."),
            "no_photos" => Some("Add JPEG, PNG or WebP files."),
            "bad_photo" => Some("Remove that photo or save it again as PNG or JPEG."),
            "no_checkpoint" => Some("Give `latest`, a saved state or the folder of a run that has one."),
            "bad_state" => Some("Delete the folder `state` beside it to start over."),
            "black_class_images" => Some("The base model seems damaged; try another one."),
            _ => None,
        }
    }
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
