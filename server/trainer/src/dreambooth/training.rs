//! The steps of a run, from wherever it is to its end: micro-batches, updates, and what is due between them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use app::event::{EventKind, Phase};
use app::recipe::Precision;
use candle_core::Tensor;

use super::batch::{Batch, Losses, Objective};
use super::error::TrainError;
use super::latents::LatentCache;
use super::learner::Learner;
use super::meters::Meters;
use super::run::{Ended, Run};
use super::saves::Saves;
use super::scaler::ScaleError;
use super::state::{MeanLoss, TrainingState};
use super::{export, gradients, samples};
use crate::engine::ir::Group;
use crate::engine::nets::diffusion::{Chance, Diffusion};
use crate::engine::nets::networks::{Networks, Prompts, Step};
use crate::engine::nets::programs::Task;
use crate::engine::philox::Clock;
use crate::engine::session::{Update, Updated};
use crate::lr::LrSchedule;
use crate::pipeline::LATENT_PX;
use crate::schedulers::NoiseSchedule;

/// What stays the same from step to step.
pub(super) struct Training<'a> {
    run: &'a Run,
    learner: &'a mut Learner,
    cache: &'a LatentCache,
    diffusion: Diffusion,
    prior_loss_weight: f32,
    rates: LrSchedule,
    saves: Saves,
    contexts: Contexts,
    meters: Option<Meters>,
    side_px: u32,
    /// Every trained tensor was seen to learn.
    checked: bool,
    /// There are gradients that no update has used yet; only a strict run has any from one step to the next.
    pending: bool,
    /// Up to this step; the state's is up to the last update.
    mean_loss: MeanLoss,
}

impl<'a> Training<'a> {
    pub fn new(
        run: &'a Run,
        learner: &'a mut Learner,
        cache: &'a LatentCache,
        meters: Option<Meters>,
        side_px: u32,
    ) -> Result<Self, TrainError> {
        let recipe = &run.recipe;
        let config = &learner.base().scheduler_config;
        // The script rounds what it mixes noise with, whatever computes the rest.
        let rounding = match recipe.strict_tutorial {
            true => recipe.precision().unwrap_or(Precision::No),
            false => Precision::No,
        };
        let objective = Objective {
            schedule: NoiseSchedule::new(config)?.rounded_to(rounding),
            prediction: config.prediction_type,
            snr_gamma: recipe.snr_gamma,
            offset_noise: recipe.offset_noise,
        };
        let diffusion = objective.diffusion(learner.latents_scale)?;
        learner.networks.learn_by(diffusion.clone());
        let prior_loss_weight = recipe.prior.as_ref().map_or(0.0, |prior| prior.prior_loss_weight);
        let saves = saves_of(run, learner);
        Ok(Self {
            run,
            learner,
            cache,
            diffusion,
            prior_loss_weight: prior_loss_weight as f32,
            rates: LrSchedule::of(recipe),
            saves,
            contexts: Contexts::default(),
            meters,
            side_px,
            checked: false,
            pending: false,
            mean_loss: MeanLoss::default(),
        })
    }

    /// All steps that remain.
    pub fn steps(&mut self, state: &mut TrainingState) -> Result<Ended, TrainError> {
        let run = self.run;
        let steps = run.recipe.max_train_steps;
        if self.milestone(state, state.step, run.log.continues())?.is_break() {
            return Ok(Ended::Stopped { step: state.step });
        }
        run.phase(Phase::Training)?;
        self.mean_loss = state.mean_loss;
        for step in state.step + 1..=steps {
            self.step(state, step)?;
            if !self.pending {
                self.save_if_due(state)?;
            }
            // The state of the last update is what there is; what is pending is given up.
            if run.stop.asked() || self.milestone(state, step, false)?.is_break() {
                run.save_state(self.learner, state)?;
                return Ok(Ended::Stopped { step: state.step });
            }
        }
        state.step = state.step.max(steps);
        Ok(Ended::Done { step: state.step })
    }

    /// Forward and backward of the step's micro-batches, an update where it is due, and word of it.
    fn step(&mut self, state: &mut TrainingState, step: u32) -> Result<(), TrainError> {
        let since = Instant::now();
        let recipe = &self.run.recipe;
        let learning_rate = self.rates.at(state.updates);
        let loss_scale = state.scaler.is_on().then(|| state.scaler.scale());
        let (losses, updated) = self.learn(state, step)?;
        let grad_norm = match updated {
            Some(updated) => self.updated(state, step, updated)?,
            None => None,
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

    /// The step's micro-batches: their mean loss, and what the update came to, where the last of them makes one. Each
    /// adds its share to the mean gradient.
    fn learn(&mut self, state: &TrainingState, step: u32) -> Result<(Losses, Option<Updated>), TrainError> {
        let recipe = &self.run.recipe;
        let learns_text = self.learns_text(step);
        let share = 1.0 / recipe.gradient_accumulation_steps as f32;
        let update = step
            .is_multiple_of(recipe.steps_per_update())
            .then(|| self.next_update(state, step));
        let per_step = u64::from(recipe.micro_batches_per_step());
        let first = u64::from(step - 1) * per_step;
        let (mut all, mut updated) = (Vec::new(), None);
        for number in first..first + per_step {
            let batch = self.cache.batch(number, self.learner)?;
            let context = match learns_text {
                true => None,
                false => Some(self.contexts.of(&mut self.learner.networks, &batch)?),
            };
            let shares = batch.weighted_shares(self.prior_loss_weight);
            let shares: Vec<f32> = shares.iter().map(|of_row| share * of_row).collect();
            let seed = recipe.seed;
            let micro_batch = Step {
                dims: batch.dims,
                mean: &batch.mean,
                deviation: &batch.deviation,
                chance: Chance::Drawn(Clock { seed, number }),
                prompts: match &context {
                    None => Prompts::Ids(&batch.ids),
                    Some(states) => Prompts::States(states),
                },
                shares: &shares,
                loss_scale: state.scaler.scale(),
                accumulate: self.pending,
            };
            let is_last = number + 1 == first + per_step;
            let told = self
                .learner
                .networks
                .train(&micro_batch, update.as_ref().filter(|_| is_last))?;
            self.pending = told.updated.is_none();
            updated = told.updated;
            let weights = self.diffusion.weights_at(&told.timesteps);
            let losses = batch.losses(&told.losses, &weights, self.prior_loss_weight);
            if !losses.total.is_finite() && !state.scaler.is_on() {
                let source = ScaleError::NotANumber;
                return Err(TrainError::Diverged { step, source });
            }
            self.mean_loss.add(losses.total, batch.rows());
            all.push(losses);
        }
        Ok((Losses::mean(&all), updated))
    }

    fn next_update(&self, state: &TrainingState, step: u32) -> Update {
        let factor = self.rates.factor(state.updates);
        let rates = self.base_rates(step).into_iter();
        Update {
            learning_rates: rates.map(|(group, rate)| (group, rate * factor)).collect(),
            max_grad_norm: self.run.recipe.clip_norm(),
            loss_scale: state.scaler.scale(),
            number: state.updates + 1,
        }
    }

    /// Of what learns in the update that `step` is part of, before the schedule's factor.
    fn base_rates(&self, step: u32) -> BTreeMap<Group, f64> {
        let recipe = &self.run.recipe;
        let mut rates = BTreeMap::from([(Group::UNet, recipe.learning_rate)]);
        if self.learns_text(step) {
            let of_text = recipe.text_encoder_learning_rate.unwrap_or(recipe.learning_rate);
            rates.insert(Group::TextEncoder, of_text);
        }
        rates
    }

    /// Takes note of an update. The norm before clipping, or nothing when a gradient overflowed and it was left out.
    fn updated(&mut self, state: &mut TrainingState, step: u32, updated: Updated) -> Result<Option<f64>, TrainError> {
        let diverged = |source| TrainError::Diverged { step, source };
        state.scaler.updated(updated.skipped).map_err(diverged)?;
        state.step = step;
        state.mean_loss = self.mean_loss;
        if updated.skipped {
            self.run.tell_skipped(state.scaler.skipped())?;
            return Ok(None);
        }
        if !self.checked {
            self.check_gradients(step, state.updates)?;
        }
        state.updates += 1;
        if let Some(ema) = &state.ema {
            ema.follow(&mut self.learner.networks, state.updates)?;
        }
        Ok(Some(updated.grad_norm))
    }

    /// Every trained tensor must be seen to learn: in the first update, and half of each adapter in the first after the
    /// other half has moved, since it has no gradient before.
    fn check_gradients(&mut self, step: u32, updates: u64) -> Result<(), TrainError> {
        let adapted = self.run.recipe.lora_rank.is_some();
        let rates = self.base_rates(step);
        // Not in the first updates of a warm-up, whose rate is zero.
        let has_moved = (0..updates).any(|update| self.rates.factor(update) > 0.0);
        let (levels, side_px) = (self.levels(), self.side_px);
        gradients::check(
            &mut self.learner.networks,
            |param| rates.contains_key(&param.group),
            |param| may_be_zero(&param.name, levels, side_px) || gradients::waits(param, &rates, has_moved),
        )
        .map_err(|source| TrainError::Gradient { step, source })?;
        self.checked = has_moved || !adapted;
        Ok(())
    }

    fn levels(&self) -> u32 {
        self.learner.base().unet_config.block_out_channels.len() as u32
    }

    /// Whether the text encoder learns in the update that `step` is part of.
    fn learns_text(&self, step: u32) -> bool {
        let recipe = &self.run.recipe;
        let first = (step - 1) / recipe.steps_per_update() * recipe.steps_per_update();
        self.learner.trains_text_encoder() && recipe.stop_text_encoder_at.is_none_or(|stop| first < stop)
    }

    fn save_if_due(&mut self, state: &TrainingState) -> Result<(), TrainError> {
        let last = state.step == self.run.recipe.max_train_steps;
        if !self.saves.due(state.step, last) {
            return Ok(());
        }
        let (run, learner) = (self.run, &mut *self.learner);
        self.saves.timed(|| run.save_state(learner, state))
    }

    /// Samples, and in the tutorial's way a folder, where `step` is due for them.
    fn milestone(&mut self, state: &mut TrainingState, step: u32, keep: bool) -> Result<ControlFlow<()>, TrainError> {
        let run = self.run;
        let last = step == run.recipe.max_train_steps;
        let draws = run.sample_steps().contains(&step);
        let folders = export::folders_due(run, step);
        if draws || !folders.is_empty() {
            let (meters, side_px) = (&self.meters, self.side_px);
            let drawn = state.with_averages(self.learner, |learner, _| {
                if draws && sample(run, learner, meters.as_ref(), step, side_px, keep)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                for folder in &folders {
                    export::save_folder(run, folder, learner)?;
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
}

fn saves_of(run: &Run, learner: &Learner) -> Saves {
    let recipe = &run.recipe;
    let trained: usize = learner.networks.trained().iter().map(|(_, param)| param.len()).sum();
    // Weights in f32, two moments, averages in f32.
    let took = |name| learner.turned_on.contains(&name);
    let eight_bit = recipe.use_8bit_adam || recipe.low_memory || took("use_8bit_adam") || took("low_memory");
    let moments = if eight_bit { 2 } else { 8 };
    let averages = if recipe.use_ema { 4 } else { 0 };
    let bytes = trained as u64 * (4 + moments + averages);
    let counted_on = run.saves_when_due || recipe.checkpoints_total_limit.is_some();
    Saves::new(recipe.checkpointing_steps, recipe.steps_per_update(), counted_on, bytes)
}

/// A round of samples, and what the meters say of it.
fn sample(
    run: &Run,
    learner: &mut Learner,
    meters: Option<&Meters>,
    step: u32,
    side_px: u32,
    keep: bool,
) -> Result<ControlFlow<()>, TrainError> {
    run.phase(Phase::Sampling)?;
    if samples::round(run, learner, step, side_px, keep)?.is_break() {
        return Ok(ControlFlow::Break(()));
    }
    if let Some(meters) = meters
        && meters.read(run, learner, step)?.is_break()
    {
        return Ok(ControlFlow::Break(()));
    }
    learner.networks.release(|task| matches!(task, Task::Train { .. }))?;
    Ok(ControlFlow::Continue(()))
}

/// Parameters that rightly get no gradient: a key projection's bias shifts all scores of a query alike, and where
/// the deepest level is a single place, self-attention there has nothing to choose from. Softmax hides both.
fn may_be_zero(name: &str, levels: u32, side_px: u32) -> bool {
    let single = side_px / LATENT_PX as u32 <= 1 << levels.saturating_sub(1);
    let chooses = name.contains(".attn1.to_q.") || name.contains(".attn1.to_k.");
    name.ends_with("k_proj.bias") || (single && name.starts_with("unet.mid_block.") && chooses)
}

/// The states of prompts from a text encoder that learns no more: each is computed once.
#[derive(Default)]
struct Contexts {
    known: BTreeMap<Vec<u32>, Tensor>,
}

impl Contexts {
    /// `[rows, tokens, width]`
    fn of(&mut self, networks: &mut Networks, batch: &Batch) -> Result<Tensor, TrainError> {
        let mut states = Vec::new();
        for row in batch.ids.chunks_exact(batch.tokens()) {
            let state = match self.known.get(row) {
                Some(state) => state.clone(),
                None => {
                    let state = networks.text(row, 1, 1)?;
                    self.known.insert(row.to_vec(), state.clone());
                    state
                }
            };
            states.push(state);
        }
        Ok(Tensor::cat(&states, 0)?)
    }
}
