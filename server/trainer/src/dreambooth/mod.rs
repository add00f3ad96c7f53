//! DreamBooth: a few photos and a word become a model that knows the subject.
//!
//! `train` is the story, top to bottom. Everything drawn at random is a function of seed and step, and everything else
//! that changes is in `TrainingState`, so a run that was killed ends with the same bits as one that was not.

pub mod batch;
mod class_images;
pub mod error;
mod export;
mod latents;
pub mod learner;
pub mod loss;
mod meters;
mod run;
mod samples;
pub mod scaler;
pub mod state;
mod stop;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use app::event::{EventKind, Phase};
use app::recipe::{Precision, Recipe};
use candle_core::{Tensor, Var};

use crate::formats;
use crate::lr::LrSchedule;
use crate::optim::grads::GradError;
use crate::optim::{AdamW, AdamWSettings, Ema, Grads};
use crate::pipeline::LATENT_PX;
use crate::schedulers::NoiseSchedule;

pub use error::TrainError;
pub use export::{TutorialFolders, hash_file};
pub use run::{Ended, Results, Run};
pub use stop::{STOPPED_STATUS, Stop};

use batch::{Batch, Losses, Objective};
use latents::{LatentCache, Pictures};
use learner::{Learner, OtherVae, TEXT_ENCODER};
use meters::Meters;
use scaler::{LossScaler, ScaleError};
use state::{MeanLoss, TrainingState};

/// Runs a recipe to its end, or to where it is asked to stop.
///
/// # Errors
/// Why it cannot go on; what was saved before stays.
pub fn train(run: &Run) -> Result<Ended, TrainError> {
    let recipe = &run.recipe;
    let resume = run.start()?;
    let resumed_at = resume.as_ref().map(|resume| resume.step);
    run.check_photos()?;

    run.phase(Phase::Loading)?;
    let base = formats::load(&recipe.pretrained_model_name_or_path)?;
    let other_vae = match &recipe.pretrained_vae_name_or_path {
        Some(reference) => Some(OtherVae {
            weights: formats::load(reference)?,
            encodes: !recipe.strict_tutorial,
        }),
        None => None,
    };
    let side_px = side_px(recipe, base.unet_config.sample_size)?;
    // Whoever watches the page sees meters; the command line keeps the script's memory and time.
    let untrained = matches!(run.results, Results::SingleFiles).then(|| base.clone());
    let (learner, vars) = Learner::new(base, other_vae, recipe.train_text_encoder, &run.device)?;

    run.tell_cut_sample_prompts(&learner.tokenizer)?;
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

    let mut state = TrainingState {
        step: 0,
        adam: AdamW::new(AdamWSettings::from(&recipe.adam), &vars),
        scaler: LossScaler::new(run.precision()),
        ema: match recipe.use_ema {
            true => Some(Ema::new(recipe.ema_decay, &vars)?),
            false => None,
        },
        mean_loss: MeanLoss::default(),
        vars,
    };
    if let Some(resume) = &resume {
        state.restore(&resume.path)?;
    }
    if resume.is_none_or(|resume| !resume.own) {
        run.tell_plan(&state, &pictures)?;
    }

    let mut training = Training::new(run, &learner, &cache, meters, side_px)?;
    let ended = training.steps(&mut state)?;

    if state.step > 0 {
        run.phase(Phase::Exporting)?;
        state.with_averages(|state| export::export(run, &learner, state))?;
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
    objective: Objective,
    rates: LrSchedule,
    contexts: Contexts<'a>,
    meters: Option<Meters>,
    side_px: u32,
    /// Every trained tensor was seen to learn.
    checked: bool,
    /// Up to this step; the state's is up to the last update.
    mean_loss: MeanLoss,
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
        let config = &learner.base().scheduler_config;
        // The script rounds what it mixes noise with, whatever computes the rest.
        let rounding = match recipe.strict_tutorial {
            true => recipe.mixed_precision,
            false => Precision::No,
        };
        Ok(Self {
            run,
            learner,
            cache,
            objective: Objective {
                schedule: NoiseSchedule::new(config)?.rounded_to(rounding),
                prediction: config.prediction_type,
                prior_loss_weight: recipe.prior.as_ref().map_or(0.0, |prior| prior.prior_loss_weight),
                snr_gamma: recipe.snr_gamma,
                offset_noise: recipe.offset_noise,
            },
            rates: LrSchedule::of(recipe),
            contexts: Contexts {
                learner,
                known: BTreeMap::new(),
            },
            meters,
            side_px,
            checked: false,
            mean_loss: MeanLoss::default(),
        })
    }

    /// All steps that remain.
    fn steps(&mut self, state: &mut TrainingState) -> Result<Ended, TrainError> {
        let run = self.run;
        let steps = run.recipe.max_train_steps;
        if self.milestone(state, state.step, run.log.continues())?.is_break() {
            return Ok(Ended::Stopped { step: state.step });
        }
        run.phase(Phase::Training)?;
        self.mean_loss = state.mean_loss;
        // Gradients that no update has used yet; only a strict run has any from one step to the next.
        let mut pending: Option<Grads> = None;
        for step in state.step + 1..=steps {
            self.step(state, step, &mut pending)?;
            if pending.is_none() {
                self.save_if_due(state)?;
            }
            // The state of the last update is what there is; what is pending is given up.
            if run.stop.asked() || self.milestone(state, step, false)?.is_break() {
                run.save_state(state)?;
                return Ok(Ended::Stopped { step: state.step });
            }
        }
        state.step = state.step.max(steps);
        Ok(Ended::Done { step: state.step })
    }

    /// Forward and backward, an update where it is due, and word of it.
    fn step(&mut self, state: &mut TrainingState, step: u32, pending: &mut Option<Grads>) -> Result<(), TrainError> {
        let since = Instant::now();
        let recipe = &self.run.recipe;
        let (losses, grads) = self.gradients(state, step)?;
        let grads = match pending.take() {
            Some(earlier) => earlier
                .plus(grads)
                .map_err(|source| TrainError::Gradient { step, source })?,
            None => grads,
        };
        let learning_rate = self.rates.at(state.adam.updates);
        let loss_scale = state.scaler.is_on().then(|| state.scaler.scale());
        let grad_norm = if step.is_multiple_of(recipe.steps_per_update()) {
            self.update(state, step, &grads)?
        } else {
            *pending = Some(grads);
            None
        };
        self.run.emit(EventKind::Step {
            step,
            loss: match recipe.strict_tutorial {
                true => self.mean_loss.value(),
                false => losses.total,
            },
            instance_loss: losses.instance,
            prior_loss: losses.prior,
            learning_rate,
            grad_norm: grad_norm.map(|norm| norm as f32),
            loss_scale,
            skipped_updates: state.scaler.skipped(),
            ms: since.elapsed().as_secs_f32() * 1e3,
        })
    }

    /// Forward and backward of the step's micro-batches: their mean loss and, of all that an update adds up, their share
    /// of the mean gradient.
    fn gradients(&mut self, state: &TrainingState, step: u32) -> Result<(Losses, Grads), TrainError> {
        let recipe = &self.run.recipe;
        let learns_text = self.learns_text(step);
        let vars = trained(&state.vars, learns_text);
        let scale = state.scaler.scale();
        let share = 1.0 / (f64::from(recipe.gradient_accumulation_steps) * scale);
        let failed = |source: GradError| TrainError::Gradient { step, source };
        let per_step = u64::from(recipe.micro_batches_per_step());
        let first = u64::from(step - 1) * per_step;
        let (mut all, mut sum): (Vec<Losses>, Option<Grads>) = (Vec::new(), None);
        for number in first..first + per_step {
            let batch = self.objective.batch(self.cache.draw(number))?;
            let context = self.contexts.of(&batch, learns_text)?;
            let (loss, losses) = loss::loss(&self.learner.unet, &context, &batch)?;
            if !losses.total.is_finite() && !state.scaler.is_on() {
                let source = ScaleError::NotANumber;
                return Err(TrainError::Diverged { step, source });
            }
            self.mean_loss.add(losses.total, batch.rows());
            all.push(losses);
            let loss = if scale == 1.0 { loss } else { (loss * scale)? };
            let grads = Grads::take(&vars, loss.backward()?, share).map_err(failed)?;
            sum = Some(match sum {
                Some(earlier) => earlier.plus(grads).map_err(failed)?,
                None => grads,
            });
        }
        let sum = sum.ok_or_else(|| candle_core::Error::Msg("a step has no micro-batches".into()))?;
        Ok((Losses::mean(&all), sum))
    }

    /// Clips and updates. The norm before clipping, or nothing when a gradient overflowed and the update was left out.
    fn update(&mut self, state: &mut TrainingState, step: u32, grads: &Grads) -> Result<Option<f64>, TrainError> {
        let failed = |source: GradError| TrainError::Gradient { step, source };
        let recipe = &self.run.recipe;
        let norm = grads.norm().map_err(failed)?;
        let overflowed = !norm.is_finite();
        state
            .scaler
            .updated(overflowed)
            .map_err(|source| TrainError::Diverged { step, source })?;
        state.step = step;
        state.mean_loss = self.mean_loss;
        if overflowed {
            self.run.tell_skipped(state.scaler.skipped())?;
            return Ok(None);
        }
        if !self.checked {
            grads.check(|name| self.may_be_zero(name)).map_err(failed)?;
            self.checked = true;
        }
        let factor = self.rates.factor(state.adam.updates);
        let rate = |name: &str| {
            let own = recipe
                .text_encoder_learning_rate
                .filter(|_| name.starts_with(TEXT_ENCODER));
            own.unwrap_or(recipe.learning_rate) * factor
        };
        let vars = trained(&state.vars, self.learns_text(step));
        let clip = clip_factor(norm, recipe.clip_norm());
        state.adam.update(&vars, grads, rate, clip).map_err(failed)?;
        if let Some(ema) = &mut state.ema {
            ema.follow(&state.vars, state.adam.updates)?;
        }
        Ok(Some(norm))
    }

    /// Whether the text encoder learns in the update that `step` is part of.
    fn learns_text(&self, step: u32) -> bool {
        let recipe = &self.run.recipe;
        let first = (step - 1) / recipe.steps_per_update() * recipe.steps_per_update();
        self.learner.trains_text_encoder && recipe.stop_text_encoder_at.is_none_or(|stop| first < stop)
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
        let window = recipe.steps_per_update();
        let due = every > 0 && state.step % every < window && state.step >= every;
        if due || state.step == recipe.max_train_steps {
            self.run.save_state(state)?;
        }
        Ok(())
    }

    /// Samples, and in the tutorial's way a folder, where `step` is due for them.
    fn milestone(&self, state: &mut TrainingState, step: u32, keep: bool) -> Result<ControlFlow<()>, TrainError> {
        let run = self.run;
        let last = step == run.recipe.max_train_steps;
        let draws = run.sample_steps().contains(&step);
        let folders = export::folders_due(run, step);
        if draws || !folders.is_empty() {
            let drawn = state.with_averages(|state| {
                if draws && self.samples(step, keep)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                for folder in &folders {
                    export::save_folder(run, folder, self.learner, state)?;
                }
                Ok(ControlFlow::Continue(()))
            })?;
            if drawn.is_break() {
                return Ok(drawn);
            }
            if draws && !last && step > 0 {
                run.phase(Phase::Training)?;
            }
        }
        Ok(run.go_on())
    }

    /// A round of samples, and what the meters say of it.
    fn samples(&self, step: u32, keep: bool) -> Result<ControlFlow<()>, TrainError> {
        let run = self.run;
        run.phase(Phase::Sampling)?;
        if samples::round(run, self.learner, step, self.side_px, keep)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        match &self.meters {
            Some(meters) => meters.read(run, self.learner, step),
            None => Ok(ControlFlow::Continue(())),
        }
    }
}

/// Those of the variables that a step changes.
fn trained(vars: &BTreeMap<String, Var>, learns_text: bool) -> BTreeMap<String, Var> {
    let all = vars
        .iter()
        .filter(|(name, _)| learns_text || !name.starts_with(TEXT_ENCODER));
    all.map(|(name, var)| (name.clone(), var.clone())).collect()
}

/// `torch.nn.utils.clip_grad_norm_`'s factor. A limit of 0 clips nothing.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 {
        (max_norm / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    }
}

/// The text encoder's states of prompts: computed each step while it learns, once from when it does not.
struct Contexts<'a> {
    learner: &'a Learner,
    known: BTreeMap<Vec<u32>, Tensor>,
}

impl Contexts<'_> {
    /// `[rows, tokens, width]`
    fn of(&mut self, batch: &Batch, learns_text: bool) -> Result<Tensor, TrainError> {
        let device = self.learner.device();
        if learns_text {
            return Ok(self.learner.text_encoder.forward(&loss::ids(batch, device)?)?);
        }
        let mut states = Vec::new();
        for row in batch.ids.chunks_exact(batch.tokens()) {
            let state = match self.known.get(row) {
                Some(state) => state.clone(),
                None => {
                    let one = Tensor::from_slice(row, (1, row.len()), device)?;
                    let state = self.learner.text_encoder.forward(&one)?.detach();
                    self.known.insert(row.to_vec(), state.clone());
                    state
                }
            };
            states.push(state);
        }
        Ok(Tensor::cat(&states, 0)?)
    }
}
