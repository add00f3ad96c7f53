//! What a person may name as the base model or its VAE, and the way from the name to the weights.
//!
//! In this order: `starter`; a folder or file on this disk; an id of the Hub, which is downloaded first.

use std::ops::ControlFlow;
use std::path::Path;

use app::recipe::STARTER;

use crate::formats::{self, Configs, ModelError, ModelWeights, Vae};
use crate::hub::{self, Part, Watch};
use crate::tokenizer::TokenizerFiles;

/// Whether the reference is looked for on the Hub.
pub fn is_on_hub(reference: &str) -> bool {
    reference != STARTER && !Path::new(reference).exists() && hub::is_id(reference)
}

/// The base model. `revision` is of Hub ids.
///
/// # Errors
/// A reference that leads to no model, one that cannot be had, and one that is broken or of a kind that we don't train.
pub fn load(reference: &str, revision: Option<&str>, watch: &mut dyn Watch) -> Result<ModelWeights, ModelError> {
    if is_on_hub(reference) {
        let folder = hub::fetch(reference, revision, Part::Model, watch)?;
        return formats::load(&folder.to_string_lossy());
    }
    let weights = formats::load(reference)?;
    tell_guess(weights.guess.as_ref(), watch);
    Ok(weights)
}

/// What a base model on this disk is.
///
/// # Errors
/// As `load`.
pub fn configs_of(reference: &str, watch: &mut dyn Watch) -> Result<Configs, ModelError> {
    let outline = formats::outline(reference)?;
    tell_guess(outline.guess.as_ref(), watch);
    Ok(outline.configs)
}

fn tell_guess(guess: Option<&String>, watch: &mut dyn Watch) {
    if let Some(guess) = guess {
        watch.warn("model_guess", guess.clone());
    }
}

/// A VAE in the place of the base model's own.
///
/// # Errors
/// As `load`.
pub fn load_vae(reference: &str, watch: &mut dyn Watch) -> Result<Vae, ModelError> {
    if is_on_hub(reference) {
        let folder = hub::fetch(reference, None, Part::Vae, watch)?;
        return formats::load_vae(&folder.to_string_lossy());
    }
    formats::load_vae(reference)
}

/// A tokenizer in the place of the base model's own.
///
/// # Errors
/// As `load`.
pub fn load_tokenizer(reference: &str, watch: &mut dyn Watch) -> Result<TokenizerFiles, ModelError> {
    if is_on_hub(reference) {
        let folder = hub::fetch(reference, None, Part::Tokenizer, watch)?;
        return formats::load_tokenizer(&folder);
    }
    formats::load_tokenizer(Path::new(reference))
}

/// For commands without a log of events: warnings are logged, progress is a line now and then.
#[derive(Default)]
pub struct LogWatch {
    told_percent: u64,
}

impl Watch for LogWatch {
    fn warn(&mut self, _code: &'static str, message: String) {
        tracing::warn!("{message}");
    }

    fn progress(&mut self, file: &str, done_bytes: u64, total_bytes: u64) -> ControlFlow<()> {
        let percent = done_bytes.saturating_mul(100) / total_bytes.max(1);
        if percent >= self.told_percent + 5 {
            self.told_percent = percent;
            let (done, total) = (app::words::bytes(done_bytes), app::words::bytes(total_bytes));
            tracing::info!("downloading {file}: {done} of {total}");
        }
        ControlFlow::Continue(())
    }
}
