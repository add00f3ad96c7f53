//! The networks of a model on a device: what the rest of the trainer asks for, in candle's tensors with channels
//! first. Programs are written and compiled when a shape is first asked for.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, TensorId};

use super::diffusion::{Chance, Diffusion};
use super::error::{NetworkError, Result};
use super::programs::{Map, Part, Plan, Task};
use super::unet::sinusoids;
use super::vae::LatentDistribution;
use crate::engine::ir::{Param, ParamId, ParamTable};
use crate::engine::layout::{channels_first, channels_last};
use crate::engine::session::{Data, ProgramId, Session, Update, Updated};
use crate::models::config::VaeConfig;

/// What one step of training reads. Maps lie channels first.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Channels, height and width of a row.
    pub dims: [usize; 3],
    /// Of the latents' distribution, before scaling: `[rows, c, h, w]`.
    pub mean: &'a [f32],
    /// Of the same shape.
    pub deviation: &'a [f32],
    pub chance: Chance<'a>,
    pub prompts: Prompts<'a>,
    /// `[rows]`: of each row's mean squared error in the loss, besides its timestep's weight.
    pub shares: &'a [f32],
    pub loss_scale: f64,
    /// Gradients are added to those of the step before.
    pub accumulate: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Prompts<'a> {
    /// Token ids `[rows, tokens]`, for a text encoder that learns.
    Ids(&'a [u32]),
    /// The states of one that does not, `[rows, tokens, width]`.
    States(&'a Tensor),
}

/// What a step of training tells.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Mean squared error of each row.
    pub losses: Vec<f32>,
    /// Of each row.
    pub timesteps: Vec<f32>,
    pub updated: Option<Updated>,
}

pub struct Networks {
    pub(super) session: Box<dyn Session>,
    pub(super) plan: Plan,
    programs: BTreeMap<Task, ProgramId>,
    /// Maps that are decoded in tiles, and the side of those.
    pub(super) tiles: BTreeMap<Map, usize>,
    /// What training steps learn by.
    diffusion: Option<Diffusion>,
    /// Programs that were told so.
    told: BTreeSet<ProgramId>,
    /// What programs were last given to attend to: the same for all steps of a drawing.
    contexts: BTreeMap<ProgramId, TensorId>,
}

impl Networks {
    /// `session` holds the weights of `plan.params()`.
    pub fn new(plan: Plan, session: Box<dyn Session>) -> Self {
        Self {
            session,
            plan,
            programs: BTreeMap::new(),
            tiles: BTreeMap::new(),
            diffusion: None,
            told: BTreeSet::new(),
            contexts: BTreeMap::new(),
        }
    }

    /// What all steps of training go by from now on.
    pub fn learn_by(&mut self, diffusion: Diffusion) {
        self.diffusion = Some(diffusion);
        self.told.clear();
    }

    pub fn session(&mut self) -> &mut dyn Session {
        &mut *self.session
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn params(&self) -> &ParamTable {
        self.session.params()
    }

    /// The weights that training changes.
    pub fn trained(&self) -> Vec<(ParamId, Param)> {
        let all = self.params().params.iter().zip(0..);
        let trained = all.filter(|(param, _)| param.trained);
        trained.map(|(param, id)| (ParamId(id), param.clone())).collect()
    }

    pub(super) fn program(&mut self, task: Task) -> Result<ProgramId> {
        if let Some(&id) = self.programs.get(&task) {
            return Ok(id);
        }
        let mut table = self.session.params().clone();
        let program = self.plan.program(task, &mut table)?;
        let id = self.session.compile(program)?;
        self.programs.insert(task, id);
        Ok(id)
    }

    /// `ids` `[rows, tokens]` to `[rows, tokens, width]`; `clip_skip` counts from 1, which takes the last layer.
    ///
    /// # Errors
    /// What the device answers.
    pub fn text(&mut self, ids: &[u32], rows: usize, clip_skip: usize) -> Result<Tensor> {
        let (tokens, clip_skip) = (ids.len() / rows.max(1), clip_skip.max(1));
        let width = self.plan.text_encoder()?.hidden_size;
        let program = self.program(Task::Text {
            rows,
            tokens,
            clip_skip,
        })?;
        self.session.write(program, "ids", Data::Ids(ids))?;
        self.session.run(program)?;
        let states = self.session.read(program, "output")?;
        Ok(Tensor::from_vec(states, (rows, tokens, width), &Device::Cpu)?)
    }

    /// The U-Net's prediction for `latents` `[rows, 4, h, w]` at a timestep a row (fractional ones too), given
    /// `context` `[rows, tokens, width]`.
    ///
    /// # Errors
    /// What the device answers.
    pub fn predict(&mut self, latents: &Tensor, timesteps: &[f32], context: &Tensor) -> Result<Tensor> {
        let (map, tokens) = (Map::of(latents)?, context.dim(1)?);
        let program = self.program(Task::Predict { map, tokens })?;
        self.run_unet(program, latents, timesteps, context)?;
        self.read_map(program, "output", map)
    }

    /// What the eye makes of `latents` at its deepest level, averaged over pixels: `[rows, width]`.
    ///
    /// # Errors
    /// What the device answers.
    pub fn look(&mut self, latents: &Tensor, timesteps: &[f32], context: &Tensor) -> Result<Tensor> {
        let (map, tokens) = (Map::of(latents)?, context.dim(1)?);
        let program = self.program(Task::Middle { map, tokens })?;
        self.run_unet(program, latents, timesteps, context)?;
        let features = self.session.read(program, "output")?;
        let width = self.plan.unet()?.block_out_channels.last().copied().unwrap_or(1);
        let pixels = features.len() / map.rows / width;
        Ok(Tensor::from_vec(features, (map.rows, pixels, width), &Device::Cpu)?.mean(1)?)
    }

    fn run_unet(&mut self, program: ProgramId, latents: &Tensor, timesteps: &[f32], context: &Tensor) -> Result<()> {
        let [channels, height, width] = row_dims(latents)?;
        self.write_map(program, "latents", &values(latents)?, [channels, height, width])?;
        self.write_time(program, timesteps)?;
        // A tensor's content never changes, and no two have one id.
        if self.contexts.get(&program) != Some(&context.id()) {
            self.session.write(program, "context", Data::F32(&values(context)?))?;
            self.contexts.insert(program, context.id());
        }
        Ok(self.session.run(program)?)
    }

    /// `images` `[rows, 3, h, w]` in -1 to 1.
    ///
    /// # Errors
    /// What the device answers.
    pub fn encode(&mut self, images: &Tensor) -> Result<LatentDistribution> {
        let map = Map::of(images)?;
        let program = self.program(Task::Encode { map })?;
        self.write_map(program, "images", &values(images)?, row_dims(images)?)?;
        self.session.run(program)?;
        let latents = map.smaller(scale(self.plan.vae(Part::Vae)?));
        Ok(LatentDistribution::new(&self.read_map(program, "output", latents)?)?)
    }

    /// Gives back the memory of all that was done but the tasks that `go_on`. Nothing that they know is lost.
    ///
    /// # Errors
    /// What the device answers.
    pub fn release(&mut self, go_on: impl Fn(&Task) -> bool) -> Result<()> {
        self.tiles.clear();
        let going_on = self.programs.iter().filter(|(task, _)| go_on(task)).map(|(_, &id)| id);
        let going_on: Vec<ProgramId> = going_on.collect();
        self.give_back(&going_on)
    }

    /// [`Self::release`], by programs.
    pub(super) fn give_back(&mut self, going_on: &[ProgramId]) -> Result<()> {
        // The others' tables go with their inputs.
        self.told.retain(|id| going_on.contains(id));
        self.contexts.retain(|id, _| going_on.contains(id));
        Ok(self.session.release(going_on)?)
    }

    /// [`Self::decode`], at once.
    pub(super) fn decode_whole(&mut self, z: &Tensor) -> Result<Tensor> {
        let (part, map) = (self.plan.decoder(), Map::of(z)?);
        let program = self.program(Task::Decode { part, map })?;
        self.write_map(program, "z", &values(z)?, row_dims(z)?)?;
        self.session.run(program)?;
        let images = map.larger(scale(self.plan.vae(part)?));
        self.read_map(program, "output", images)
    }

    /// Gradients of the decoder's weights, and of `z`, from that of [`Self::decode`]'s answer.
    ///
    /// # Errors
    /// What the device answers.
    pub fn decode_backward(&mut self, z: &Tensor, doutput: &Tensor) -> Result<Tensor> {
        let map = Map::of(z)?;
        let program = self.program(Task::DecodeGrad { map })?;
        self.write_map(program, "z", &values(z)?, row_dims(z)?)?;
        self.write_map(program, "d output", &values(doutput)?, row_dims(doutput)?)?;
        self.session.run(program)?;
        self.read_map(program, "d z", map)
    }

    /// Gradients of the encoder's weights, from those of its means and log-variances `[rows, 8, h / 8, w / 8]`, and an
    /// update of all weights that got gradients since the last one.
    ///
    /// # Errors
    /// What the device answers.
    pub fn encode_backward(&mut self, images: &Tensor, dmoments: &Tensor, update: &Update) -> Result<Updated> {
        let program = self.program(Task::EncodeGrad { map: Map::of(images)? })?;
        self.write_map(program, "images", &values(images)?, row_dims(images)?)?;
        self.write_map(program, "d output", &values(dmoments)?, row_dims(dmoments)?)?;
        Ok(self.session.run_and_update(program, update)?)
    }

    /// Loss and gradients of one micro-batch, and with `update` the change of the weights. The mean squared error of
    /// each row comes back.
    ///
    /// # Errors
    /// Before [`Self::learn_by`], for a timestep that there is not, and what the device answers.
    pub fn train(&mut self, step: &Step, update: Option<&Update>) -> Result<Trained> {
        let diffusion = self.diffusion.as_ref().ok_or(NetworkError::NotHeld("noise schedule"))?;
        let (rows, [channels, height, width]) = (step.shares.len(), step.dims);
        let tokens = match step.prompts {
            Prompts::Ids(ids) => ids.len() / rows.max(1),
            Prompts::States(states) => states.dim(1)?,
        };
        let task = Task::Train {
            map: Map { rows, height, width },
            tokens,
            form: diffusion.form(&step.chance),
            learns_text: matches!(step.prompts, Prompts::Ids(_)),
            accumulate: step.accumulate && !self.session.sums_apart(),
        };
        let program = self.program(task)?;
        self.tell(program)?;
        match step.prompts {
            Prompts::Ids(ids) => self.session.write(program, "ids", Data::Ids(ids))?,
            Prompts::States(states) => self.session.write(program, "context", Data::F32(&values(states)?))?,
        }
        self.write_map(program, "mean", step.mean, step.dims)?;
        self.write_map(program, "deviation", step.deviation, step.dims)?;
        self.session.write(program, "shares", Data::F32(step.shares))?;
        self.write_chance(program, step, channels)?;
        let scale = step.loss_scale as f32;
        self.session.write(program, "scale", Data::F32(&[scale]))?;
        let updated = match update {
            Some(update) => Some(self.session.run_and_update(program, update)?),
            None => {
                self.session.run(program)?;
                self.session.add_gradients(!step.accumulate)?;
                None
            }
        };
        Ok(Trained {
            losses: self.session.read(program, "losses")?,
            timesteps: match step.chance {
                Chance::Drawn(_) => self.session.read(program, "timesteps")?,
                Chance::Given { timesteps, .. } => timesteps.to_vec(),
            },
            updated,
        })
    }

    /// Gives a program the tables of the diffusion, once.
    fn tell(&mut self, program: ProgramId) -> Result<()> {
        let Some(diffusion) = self.diffusion.as_ref().filter(|_| !self.told.contains(&program)) else {
            return Ok(());
        };
        for (name, table) in diffusion.tables(self.plan.unet()?) {
            self.session.write(program, name, Data::F32(&table))?;
        }
        self.told.insert(program);
        Ok(())
    }

    fn write_chance(&mut self, program: ProgramId, step: &Step, channels: usize) -> Result<()> {
        let diffusion = self.diffusion.as_ref().ok_or(NetworkError::NotHeld("noise schedule"))?;
        let (count, with_offsets) = (diffusion.levels.len(), diffusion.offset_noise > 0.);
        match step.chance {
            Chance::Drawn(clock) => self.session.write(program, "clock", Data::Ids(&clock.words()))?,
            Chance::Given {
                latents,
                noise,
                offsets,
                timesteps,
            } => {
                if let Some(&timestep) = timesteps.iter().find(|t| !(0. ..count as f32).contains(*t)) {
                    return Err(NetworkError::Timestep { timestep, count });
                }
                self.write_map(program, "latents", latents, step.dims)?;
                self.write_map(program, "noise", noise, step.dims)?;
                if with_offsets {
                    self.write_map(program, "offsets", offsets, [channels, 1, 1])?;
                }
                self.session.write(program, "timesteps", Data::F32(timesteps))?;
            }
        }
        Ok(())
    }

    fn write_time(&mut self, program: ProgramId, timesteps: &[f32]) -> Result<()> {
        let time = sinusoids(self.plan.unet()?, timesteps);
        Ok(self.session.write(program, "time", Data::F32(&time))?)
    }

    pub(super) fn write_map(
        &mut self,
        program: ProgramId,
        input: &str,
        values: &[f32],
        [channels, height, width]: [usize; 3],
    ) -> Result<()> {
        let values = channels_last(values, channels, height * width);
        Ok(self.session.write(program, input, Data::F32(&values))?)
    }

    pub(super) fn read_map(&mut self, program: ProgramId, output: &str, map: Map) -> Result<Tensor> {
        let values = self.session.read(program, output)?;
        let pixels = map.height * map.width;
        let channels = values.len() / (map.rows * pixels);
        let values = channels_first(&values, channels, pixels);
        let dims = (map.rows, channels, map.height, map.width);
        Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
    }
}

/// How much smaller latents are than images, each way.
pub(super) fn scale(vae: &VaeConfig) -> usize {
    1 << vae.block_out_channels.len().saturating_sub(1)
}

pub(super) fn row_dims(map: &Tensor) -> Result<[usize; 3]> {
    let (_, channels, height, width) = map.dims4()?;
    Ok([channels, height, width])
}

/// In f32, row-major.
///
/// # Errors
/// When the tensor cannot be read.
pub fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()
}
