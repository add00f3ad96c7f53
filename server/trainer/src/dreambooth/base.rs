//! The models that a run starts from, wherever they are.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use app::event::{EventKind, Phase};

use super::error::TrainError;
use super::learner::OtherVae;
use super::run::Run;
use crate::base_model;
use crate::formats::{ModelError, ModelWeights};
use crate::hub::{HubError, Watch};

/// Between two events of a download.
const PACE: Duration = Duration::from_millis(250);

/// The base model, and the VAE that the recipe wants in the place of its own.
type Models = (ModelWeights, Option<OtherVae>);

/// Loads what the recipe names, from this disk or the Hub. `Break`: stopped while it came.
///
/// # Errors
/// A model that cannot be had or read.
pub(super) fn load(run: &Run) -> Result<ControlFlow<(), Models>, TrainError> {
    run.phase(Phase::Loading)?;
    let recipe = &run.recipe;
    let reference = &recipe.pretrained_model_name_or_path;
    let mut watch = Telling::new(run, reference);
    let base = base_model::load(reference, recipe.revision.as_deref(), &mut watch);
    let Some(mut base) = watch.unless_stopped(base)? else {
        return Ok(ControlFlow::Break(()));
    };
    if let Some(reference) = &recipe.tokenizer_name {
        let mut watch = Telling::new(run, reference);
        let tokenizer = base_model::load_tokenizer(reference, &mut watch);
        let Some(tokenizer) = watch.unless_stopped(tokenizer)? else {
            return Ok(ControlFlow::Break(()));
        };
        base.tokenizer_files = tokenizer;
    }
    let Some(reference) = &recipe.pretrained_vae_name_or_path else {
        return Ok(ControlFlow::Continue((base, None)));
    };
    let mut watch = Telling::new(run, reference);
    let vae = base_model::load_vae(reference, &mut watch);
    let Some(vae) = watch.unless_stopped(vae)? else {
        return Ok(ControlFlow::Break(()));
    };
    let weights = base.with_vae(Path::new(reference), vae)?;
    // What is saved is the other VAE, under its own configuration.
    base.config_files.vae.clone_from(&weights.config_files.vae);
    let encodes = !recipe.strict_tutorial;
    Ok(ControlFlow::Continue((base, Some(OtherVae { weights, encodes }))))
}

/// Tells the run's viewers of a download, and asks whether it may go on.
struct Telling<'a> {
    run: &'a Run,
    model: &'a str,
    told: Option<Instant>,
    /// The log could not be written.
    failed: Option<TrainError>,
}

impl<'a> Telling<'a> {
    fn new(run: &'a Run, model: &'a str) -> Self {
        let (told, failed) = (None, None);
        Self {
            run,
            model,
            told,
            failed,
        }
    }

    fn unless_stopped<T>(self, loaded: Result<T, ModelError>) -> Result<Option<T>, TrainError> {
        match (self.failed, loaded) {
            (Some(error), _) => Err(error),
            (None, Err(ModelError::Hub(HubError::Stopped))) => Ok(None),
            (None, loaded) => Ok(Some(loaded?)),
        }
    }

    fn emit(&mut self, kind: EventKind) {
        if let Err(error) = self.run.emit(kind) {
            self.failed.get_or_insert(error);
        }
    }
}

impl Watch for Telling<'_> {
    fn warn(&mut self, code: &'static str, message: String) {
        let code = code.to_owned();
        self.emit(EventKind::Warning { code, message });
    }

    fn progress(&mut self, file: &str, done_bytes: u64, total_bytes: u64) -> ControlFlow<()> {
        if self.told.is_none_or(|told| told.elapsed() >= PACE) || done_bytes >= total_bytes {
            self.told = Some(Instant::now());
            self.emit(EventKind::Download {
                model: self.model.to_owned(),
                file: file.to_owned(),
                done_bytes,
                total_bytes,
            });
        }
        match &self.failed {
            Some(_) => ControlFlow::Break(()),
            None => self.run.go_on(),
        }
    }
}
