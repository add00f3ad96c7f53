//! DreamBooth: a few photos and a word become a model that knows the subject.
//!
//! `train` is the story, top to bottom. Everything drawn at random is a function of seed and step, and everything else
//! that changes is in `TrainingState`, so a run that was killed ends with the same bits as one that was not.

mod base;
mod class_images;
pub mod error;
mod export;
mod latents;
pub mod learner;
pub mod loss;
mod meters;
mod run;
mod samples;
pub mod state;
mod stop;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use app::event::{EventKind, Phase};
use app::recipe::Recipe;
use candle_core::{Tensor, Var};

use crate::lr::LrSchedule;
use crate::optim::grads::GradError;
use crate::optim::{AdamW, AdamWSettings, Grads};
use crate::pipeline::LATENT_PX;
use crate::schedulers::NoiseSchedule;

pub use error::TrainError;
pub use export::{TutorialFolders, hash_file};
pub use run::{Ended, Results, Run};
pub use stop::{STOPPED_STATUS, Stop};

use latents::{LatentCache, Pictures};
use learner::Learner;
use loss::Objective;
use meters::Meters;
use state::TrainingState;

/// Runs a recipe to its end, or to where it is asked to stop.
///
/// # Errors
/// Why it cannot go on; what was saved before stays.
pub fn train(run: &Run) -> Result<Ended, TrainError> {
    let recipe = &run.recipe;
    let resumed_at = run.start()?;
    run.check_photos()?;

    let (base, other_vae) = match base::load(run)? {
        ControlFlow::Continue(models) => models,
        ControlFlow::Break(()) => return run.stopped_before_training(resumed_at),
    };
    let side_px = side_px(recipe, base.unet_config.sample_size)?;
    // Whoever watches the page sees meters; the command line keeps the script's memory and time.
    let untrained = matches!(run.results, Results::SingleFiles).then(|| base.clone());
    let (learner, vars) = Learner::new(base, other_vae, recipe.train_text_encoder, &run.device)?;

    if recipe.prior.is_some() {
        run.phase(Phase::ClassImages)?;
        if class_images::fill(run, &learner, side_px)?.is_break() {
            return run.stopped_before_training(resumed_at);
        }
    }

    run.phase(Phase::CachingLatents)?;
    let pictures = Pictures::find(recipe, &run.data_folder)?;
    let (cache, noticed) = LatentCache::encode(&pictures, recipe, &learner, side_px)?;
    run.tell_noticed(&noticed)?;

    let meters = match untrained.filter(|_| !run.sample_steps().is_empty()) {
        None => None,
        Some(untrained) => match Meters::new(run, &learner, &cache, &untrained, side_px)? {
            ControlFlow::Break(()) => return run.stopped_before_training(resumed_at),
            ControlFlow::Continue(meters) => Some(meters),
        },
    };

    let adam = AdamW::new(AdamWSettings::from(&recipe.adam), &vars);
    let mut state = TrainingState { step: 0, vars, adam };
    if resumed_at.is_some() {
        state.restore(&run.folder)?;
    } else {
        run.tell_plan(&state, &pictures)?;
    }

    let mut training = Training::new(run, &learner, &cache, meters, side_px)?;
    let ended = training.steps(&mut state)?;

    if state.step > 0 {
        run.phase(Phase::Exporting)?;
        export::export(run, &learner, &state)?;
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

/// What stays the same from step to step.
struct Training<'a> {
    run: &'a Run,
    learner: &'a Learner,
    cache: &'a LatentCache,
    schedule: NoiseSchedule,
    rates: LrSchedule,
    contexts: Contexts<'a>,
    meters: Option<Meters>,
    side_px: u32,
}

impl<'a> Training<'a> {
    fn new(
        run: &'a Run,
        learner: &'a Learner,
        cache: &'a LatentCache,
        meters: Option<Meters>,
        side_px: u32,
    ) -> Result<Self, TrainError> {
        let recipe = &run.recipe;
        let updates = recipe.max_train_steps.div_ceil(recipe.gradient_accumulation_steps);
        Ok(Self {
            run,
            learner,
            cache,
            schedule: NoiseSchedule::new(&learner.base().scheduler_config)?,
            rates: LrSchedule::new(
                recipe.lr_scheduler,
                recipe.learning_rate,
                u64::from(recipe.lr_warmup_steps),
                u64::from(updates),
            ),
            contexts: Contexts {
                learner,
                known: BTreeMap::new(),
            },
            meters,
            side_px,
        })
    }

    /// All steps that remain.
    fn steps(&mut self, state: &mut TrainingState) -> Result<Ended, TrainError> {
        let run = self.run;
        let steps = run.recipe.max_train_steps;
        if self.milestone(state, run.log.continues())?.is_break() {
            return Ok(Ended::Stopped { step: state.step });
        }
        run.phase(Phase::Training)?;
        let mut sum: Option<Grads> = None;
        let mut checked = false;
        for step in state.step + 1..=steps {
            let since = Instant::now();
            let (losses, grads) = self.gradients(&state.vars, step)?;
            if !checked {
                grads
                    .check(|name| self.may_be_zero(name))
                    .map_err(|source| TrainError::Gradient { step, source })?;
                checked = true;
            }
            let grads = match sum.take() {
                Some(earlier) => earlier
                    .plus(grads)
                    .map_err(|source| TrainError::Gradient { step, source })?,
                None => grads,
            };
            let learning_rate = self.rates.at(state.adam.updates);
            let updates_now = step % run.recipe.gradient_accumulation_steps == 0 || step == steps;
            let grad_norm = if updates_now {
                Some(self.update(state, step, &grads, learning_rate)?)
            } else {
                sum = Some(grads);
                None
            };
            run.emit(EventKind::Step {
                step,
                loss: losses.total,
                instance_loss: losses.instance,
                prior_loss: losses.prior,
                learning_rate,
                grad_norm: grad_norm.map(|norm| norm as f32),
                ms: since.elapsed().as_secs_f32() * 1e3,
            })?;
            if updates_now {
                self.save_if_due(state)?;
                if run.stop.asked() {
                    run.save_state(state)?;
                    return Ok(Ended::Stopped { step });
                }
                if self.milestone(state, false)?.is_break() {
                    run.save_state(state)?;
                    return Ok(Ended::Stopped { step });
                }
            } else if run.stop.asked() {
                // The state of the last update is what there is; micro-batches after it are given up.
                run.save_state(state)?;
                return Ok(Ended::Stopped { step: state.step });
            }
        }
        Ok(Ended::Done { step: state.step })
    }

    /// Forward and backward of one micro-batch. Gradients are already divided by the number of micro-batches.
    fn gradients(&mut self, vars: &BTreeMap<String, Var>, step: u32) -> Result<(StepLosses, Grads), TrainError> {
        let recipe = &self.run.recipe;
        let batch = self.cache.batch(u64::from(step - 1))?;
        let context = self.contexts.of(&batch.ids)?;
        let objective = Objective {
            schedule: &self.schedule,
            prediction: self.learner.base().scheduler_config.prediction_type,
            prior_loss_weight: recipe.prior.as_ref().map_or(0.0, |prior| prior.prior_loss_weight),
        };
        let losses = objective.loss(&self.learner.unet, &context, &batch)?;
        let told = StepLosses {
            total: losses.total.to_scalar()?,
            instance: losses.instance.to_scalar()?,
            prior: losses.prior.as_ref().map(Tensor::to_scalar).transpose()?,
        };
        if !told.total.is_finite() {
            return Err(TrainError::Diverged { step });
        }
        let gradients = losses.total.backward()?;
        let scale = 1.0 / f64::from(recipe.gradient_accumulation_steps);
        let grads = Grads::take(vars, gradients, scale);
        Ok((told, grads.map_err(|source| TrainError::Gradient { step, source })?))
    }

    /// Clips and updates; the norm before clipping.
    fn update(
        &self,
        state: &mut TrainingState,
        step: u32,
        grads: &Grads,
        learning_rate: f64,
    ) -> Result<f64, TrainError> {
        let failed = |source: GradError| TrainError::Gradient { step, source };
        let norm = grads.norm().map_err(failed)?;
        if !norm.is_finite() {
            return Err(TrainError::Diverged { step });
        }
        let factor = clip_factor(norm, self.run.recipe.adam.max_grad_norm);
        state
            .adam
            .update(&state.vars, grads, learning_rate, factor)
            .map_err(failed)?;
        state.step = step;
        Ok(norm)
    }

    /// Parameters that rightly get no gradient: a key projection's bias shifts all scores of a query alike, and where
    /// the deepest level is a single place, self-attention there has nothing to choose from. Softmax hides both.
    fn may_be_zero(&self, name: &str) -> bool {
        let levels = self.learner.unet.config().block_out_channels.len() as u32;
        let single = self.side_px / LATENT_PX as u32 <= 1 << levels.saturating_sub(1);
        let chooses = name.contains(".attn1.to_q.") || name.contains(".attn1.to_k.");
        name.ends_with("k_proj.bias") || (single && name.starts_with("unet.mid_block.") && chooses)
    }

    fn save_if_due(&self, state: &TrainingState) -> Result<(), TrainError> {
        let recipe = &self.run.recipe;
        let every = recipe.checkpointing_steps;
        // Updates may come less often than saves are asked for: the first one after is taken.
        let window = recipe.gradient_accumulation_steps;
        let due = every > 0 && state.step % every < window && state.step >= every;
        if due || state.step == recipe.max_train_steps {
            self.run.save_state(state)?;
        }
        Ok(())
    }

    /// Samples, and in the tutorial's way a folder, where this step is due for them.
    fn milestone(&self, state: &TrainingState, keep: bool) -> Result<ControlFlow<()>, TrainError> {
        let run = self.run;
        let (step, last) = (state.step, state.step == run.recipe.max_train_steps);
        if run.sample_steps().contains(&step) {
            run.phase(Phase::Sampling)?;
            if samples::round(run, self.learner, step, self.side_px, keep)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if let Some(meters) = &self.meters
                && meters.read(run, self.learner, step)?.is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            if !last && step > 0 {
                run.phase(Phase::Training)?;
            }
        }
        if !last {
            export::folder_if_due(run, self.learner, state)?;
        }
        Ok(run.go_on())
    }
}

/// A step's losses as they are told.
struct StepLosses {
    total: f32,
    instance: f32,
    prior: Option<f32>,
}

/// `torch.nn.utils.clip_grad_norm_`'s factor. A limit of 0 clips nothing.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 {
        (max_norm / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    }
}

/// The text encoder's states of prompts: computed each step while it learns, once while it does not.
struct Contexts<'a> {
    learner: &'a Learner,
    known: BTreeMap<Vec<u32>, Tensor>,
}

impl Contexts<'_> {
    /// Of token ids [rows, tokens]: [rows, tokens, width].
    fn of(&mut self, ids: &Tensor) -> Result<Tensor, TrainError> {
        if self.learner.trains_text_encoder {
            return Ok(self.learner.text_encoder.forward(ids)?);
        }
        let mut states = Vec::new();
        for row in ids.to_vec2::<u32>()? {
            let state = match self.known.get(&row) {
                Some(state) => state.clone(),
                None => {
                    let one = Tensor::from_slice(&row, (1, row.len()), ids.device())?;
                    let state = self.learner.text_encoder.forward(&one)?.detach();
                    self.known.insert(row, state.clone());
                    state
                }
            };
            states.push(state);
        }
        Ok(Tensor::cat(&states, 0)?)
    }
}
