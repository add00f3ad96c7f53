//! DreamBooth: a few photos and a word become a model that knows the subject.
//!
//! `train` is the story, top to bottom. Everything drawn at random is a function of seed and step, and everything else
//! that changes is in `TrainingState`, so a run that was killed ends with the same bits as one that was not.

mod base;
pub mod batch;
mod class_images;
pub mod ema;
pub mod error;
mod export;
pub mod gradients;
mod latents;
pub mod learner;
pub mod memory;
mod meters;
mod order;
mod overfit;
mod run;
mod samples;
mod saves;
pub mod scaler;
mod space;
pub mod state;
mod stop;
#[cfg(test)]
mod testing;
mod training;

use std::ops::ControlFlow;

use app::event::Phase;
use app::recipe::Recipe;

use crate::pipeline::LATENT_PX;

pub use error::TrainError;
pub use export::TutorialFolders;
pub use run::{Ended, Results, Run};
pub use stop::{STOPPED_STATUS, Stop};

use ema::Ema;
use latents::{LatentCache, Pictures};
use learner::{Learner, Learning};
use memory::Demand;
use meters::Meters;
use scaler::LossScaler;
use space::Parameters;
use state::{MeanLoss, TrainingState};
use training::Training;

/// Runs a recipe to its end, or to where it is asked to stop.
///
/// # Errors
/// Why it cannot go on; what was saved before stays.
pub fn train(run: &Run) -> Result<Ended, TrainError> {
    let recipe = &run.recipe;
    let resume = run.start()?;
    let resumed_at = resume.as_ref().map(|resume| resume.step);
    let photos = run.check_photos()?;

    let (base, other_vae) = match base::load(run)? {
        ControlFlow::Continue(models) => models,
        ControlFlow::Break(()) => return run.stopped_before_training(resumed_at),
    };
    let side_px = side_px(recipe, base.unet_config.sample_size)?;
    // Whoever watches the page sees meters; the command line keeps the script's memory and time, unless it is asked to.
    let watched = matches!(run.results, Results::SingleFiles) || recipe.holds_out(photos.count);
    let metered = watched && !run.sample_steps().is_empty();
    space::check(run, Parameters::of(&base, recipe))?;
    let drawing_vae = other_vae.as_ref().map_or(&base, |other| &other.weights);
    let model = class_images::model_identity(&base, drawing_vae)?;
    let demand = Demand::of(
        recipe,
        Learning::of(recipe, run.precision(), metered),
        learner::networks_of(&base, other_vae.as_ref()),
        side_px,
        photos,
        !run.sample_steps().is_empty(),
    );
    let fitted = run.fit(demand, resume.as_ref())?;
    let mut learner = Learner::new(base, other_vae, &fitted.demand.learning, &run.device)?;
    learner.turned_on = fitted.switches.iter().filter_map(|switch| switch.name()).collect();

    // Before any program is made: class images and latents are computed as they were, too.
    if let Some(algorithms) = resume.as_ref().and_then(|resume| resume.algorithms.as_ref()) {
        learner.networks.session().prefer(algorithms);
    }

    run.tell_cut_sample_prompts(&learner.tokenizer)?;
    if recipe.prior.is_some() {
        run.phase(Phase::ClassImages)?;
        if class_images::fill(run, &mut learner, &model, side_px)?.is_break() {
            return run.stopped_before_training(resumed_at);
        }
        // Here and below: what comes next has the memory to itself.
        learner.networks.release(|_| false)?;
    }

    run.phase(Phase::CachingLatents)?;
    let pictures = Pictures::find(recipe, &run.data_folder)?;
    let (cache, noticed) = LatentCache::encode(&pictures, recipe, &mut learner, side_px)?;
    run.tell_noticed(&noticed)?;
    learner.networks.release(|_| false)?;

    let meters = match metered {
        false => None,
        true => match Meters::new(run, &mut learner, &pictures, &cache, side_px)? {
            ControlFlow::Break(()) => return run.stopped_before_training(resumed_at),
            ControlFlow::Continue(meters) => Some(meters),
        },
    };
    learner.networks.release(|_| false)?;

    let mut state = TrainingState {
        step: 0,
        updates: 0,
        scaler: LossScaler::new(run.precision()),
        ema: match recipe.use_ema {
            true => Some(Ema::new(recipe.ema_decay, &mut learner.networks)?),
            false => None,
        },
        mean_loss: MeanLoss::default(),
        turned_on: learner.turned_on.iter().map(|name| (*name).to_owned()).collect(),
    };
    if let Some(resume) = &resume {
        state.restore(&mut learner.networks, &resume.path)?;
    }
    if resume.is_none_or(|resume| !resume.own) {
        run.tell_plan(&learner, &pictures)?;
    }

    let mut training = Training::new(run, &mut learner, &cache, meters, side_px)?;
    let ended = training.steps(&mut state)?;

    if state.step > 0 {
        run.phase(Phase::Exporting)?;
        state.with_averages(&mut learner, |learner, state| export::export(run, learner, state))?;
    }
    run.end(ended)?;
    Ok(ended)
}

/// Side of training images and samples.
fn side_px(recipe: &Recipe, sample_size: usize) -> Result<u32, TrainError> {
    let multiple = LATENT_PX as u32;
    let got = recipe.resolution.unwrap_or((sample_size * LATENT_PX) as u32);
    if got == 0 || !got.is_multiple_of(multiple) {
        return Err(TrainError::Resolution { got, multiple });
    }
    Ok(got)
}
