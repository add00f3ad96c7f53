//! The networks of a model on a device: what the rest of the trainer asks for, in candle's tensors with channels
//! first. Programs are written and compiled when a shape is first asked for.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::text_encoder::text_encoder;
use super::unet::{UNetInputs, sinusoids, unet, unet_middle};
use super::vae::{self, LatentDistribution};
use crate::engine::autodiff::{AutodiffError, Backward, backward};
use crate::engine::builder::{BuildError, Builder, Scope};
use crate::engine::ir::{Group, Kind, Param, ParamId, ParamTable, Program, ValueId};
use crate::engine::layout::{channels_first, channels_last, checkpoint_dims};
use crate::engine::session::{Data, EngineError, ProgramId, Session, Update, Updated};
use crate::models::config::{TextEncoderConfig, UNetConfig, VaeConfig};
use crate::models::params::{ParamError, Weights, is_not_a_weight};

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Param(#[from] ParamError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Autodiff(#[from] AutodiffError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("this session holds no {0}")]
    NotHeld(&'static str),
}

pub type Result<T> = std::result::Result<T, NetworkError>;

/// A network of a session, with its own weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    UNet,
    TextEncoder,
    /// Encodes photos and, where there is no other, decodes.
    Vae,
    /// Decodes.
    OtherVae,
    /// A second U-Net, down to the deepest level, that stays as it was.
    Eye,
}

impl Part {
    /// What its weights' names start with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::Vae => "vae",
            Self::OtherVae => "other_vae",
            Self::Eye => "eye",
        }
    }
}

/// Which networks a session is to hold, and which of them learn.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub unet: Option<UNetConfig>,
    pub trains_unet: bool,
    pub text_encoder: Option<TextEncoderConfig>,
    pub trains_text_encoder: bool,
    pub vae: Option<VaeConfig>,
    pub other_vae: Option<VaeConfig>,
    pub eye: bool,
    /// Inner values of blocks are computed again in the backward (gradient checkpointing).
    pub recompute: bool,
}

/// A program and the shape that it was written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Text {
        rows: usize,
        tokens: usize,
        clip_skip: usize,
    },
    Predict {
        map: Map,
        tokens: usize,
    },
    Middle {
        map: Map,
        tokens: usize,
    },
    Encode {
        map: Map,
    },
    Decode {
        part: Part,
        map: Map,
    },
    Train {
        map: Map,
        tokens: usize,
        accumulate: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Map {
    rows: usize,
    height: usize,
    width: usize,
}

impl Map {
    /// Of `[rows, channels, height, width]`.
    fn of(tensor: &Tensor) -> Result<Self> {
        let (rows, _, height, width) = tensor.dims4()?;
        Ok(Self { rows, height, width })
    }

    fn dims(self, channels: usize) -> [usize; 4] {
        [self.rows, self.height, self.width, channels]
    }
}

/// What one step of training reads.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// `[rows, 4, h, w]`, and so `target`.
    pub noisy: &'a Tensor,
    pub timesteps: &'a [f32],
    pub prompts: Prompts<'a>,
    pub target: &'a Tensor,
    /// Of each row's mean squared error in the loss.
    pub weights: &'a [f32],
    pub loss_scale: f32,
}

#[derive(Clone, Copy, Debug)]
pub enum Prompts<'a> {
    /// Token ids `[rows, tokens]`, for a text encoder that learns.
    Ids(&'a Tensor),
    /// The states of one that does not, `[rows, tokens, width]`.
    States(&'a Tensor),
}

pub struct Networks {
    session: Box<dyn Session>,
    plan: Plan,
    programs: BTreeMap<Task, ProgramId>,
}

impl Plan {
    /// Every weight of the networks, in an order that does not change.
    ///
    /// # Errors
    /// When a configuration asks for what there is none of.
    pub fn params(&self) -> Result<ParamTable> {
        let mut table = ParamTable::default();
        // Any shape will do: weights do not depend on it. Sides of 8 latents have room for four levels.
        let map = Map {
            rows: 1,
            height: 8,
            width: 8,
        };
        let mut tasks = Vec::new();
        if self.unet.is_some() {
            tasks.push(Task::Predict { map, tokens: 1 });
        }
        if self.text_encoder.is_some() {
            let (rows, tokens, clip_skip) = (1, 1, 1);
            tasks.push(Task::Text {
                rows,
                tokens,
                clip_skip,
            });
        }
        if self.vae.is_some() {
            tasks.extend([Task::Encode { map }, Task::Decode { part: Part::Vae, map }]);
        }
        if self.other_vae.is_some() {
            let part = Part::OtherVae;
            tasks.push(Task::Decode { part, map });
        }
        if self.eye {
            tasks.push(Task::Middle { map, tokens: 1 });
        }
        for task in tasks {
            self.write(task, &mut table)?;
        }
        Ok(table)
    }

    fn scope(&self, part: Part) -> Scope {
        let (group, trained) = match part {
            Part::UNet => (Group::UNet, self.trains_unet),
            Part::Eye => (Group::UNet, false),
            Part::TextEncoder => (Group::TextEncoder, self.trains_text_encoder),
            Part::Vae | Part::OtherVae => (Group::Vae, false),
        };
        Scope::new(part.prefix(), group, trained)
    }

    fn held<T>(of: &Option<T>, name: &'static str) -> Result<T>
    where
        T: Clone,
    {
        of.clone().ok_or(NetworkError::NotHeld(name))
    }

    /// Registers weights that `table` does not have yet.
    fn write(&self, task: Task, table: &mut ParamTable) -> Result<Program> {
        if let Task::Train {
            map,
            tokens,
            accumulate,
        } = task
        {
            return self.write_training(map, tokens, accumulate, table);
        }
        let mut b = Builder::new(table);
        let output = match task {
            Task::Text {
                rows,
                tokens,
                clip_skip,
            } => {
                let ids = b.input("ids", &[rows, tokens], Kind::Ids);
                let config = Self::held(&self.text_encoder, "text encoder")?;
                text_encoder(&mut b, &config, ids, clip_skip, &self.scope(Part::TextEncoder))?
            }
            Task::Predict { map, tokens } => {
                let config = Self::held(&self.unet, "U-Net")?;
                let context = activation_input(&mut b, "context", &[map.rows, tokens, config.cross_attention_dim]);
                let inputs = unet_inputs(&mut b, &config, map, context);
                unet(&mut b, &config, None, inputs, &self.scope(Part::UNet))?
            }
            Task::Middle { map, tokens } => {
                let config = Self::held(&self.unet, "U-Net")?;
                let context = activation_input(&mut b, "context", &[map.rows, tokens, config.cross_attention_dim]);
                let inputs = unet_inputs(&mut b, &config, map, context);
                unet_middle(&mut b, &config, inputs, &self.scope(Part::Eye))?
            }
            Task::Encode { map } => {
                let config = Self::held(&self.vae, "VAE")?;
                let images = activation_input(&mut b, "images", &map.dims(config.in_channels));
                vae::encode(&mut b, &config, images, &self.scope(Part::Vae))?
            }
            Task::Decode { part, map } => {
                let of = if part == Part::OtherVae {
                    &self.other_vae
                } else {
                    &self.vae
                };
                let config = Self::held(of, "VAE")?;
                let z = activation_input(&mut b, "z", &map.dims(config.latent_channels));
                vae::decode(&mut b, &config, z, &self.scope(part))?
            }
            Task::Train { .. } => return Err(NetworkError::NotHeld("loss in a drawing")),
        };
        let output = b.cast(output, Kind::F32);
        b.output("output", output);
        Ok(b.finish()?.program)
    }

    fn write_training(&self, map: Map, tokens: usize, accumulate: bool, table: &mut ParamTable) -> Result<Program> {
        let mut b = Builder::new(table);
        let config = Self::held(&self.unet, "U-Net")?;
        let context = if self.trains_text_encoder {
            let ids = b.input("ids", &[map.rows, tokens], Kind::Ids);
            let config = Self::held(&self.text_encoder, "text encoder")?;
            text_encoder(&mut b, &config, ids, 1, &self.scope(Part::TextEncoder))?
        } else {
            activation_input(&mut b, "context", &[map.rows, tokens, config.cross_attention_dim])
        };
        let inputs = unet_inputs(&mut b, &config, map, context);
        let predicted = unet(&mut b, &config, None, inputs, &self.scope(Part::UNet))?;
        let target = b.input("target", &map.dims(config.out_channels), Kind::F32);
        let weights = b.input("weights", &[map.rows], Kind::F32);
        let scale = b.input("scale", &[1], Kind::F32);
        let (losses, dpredicted) = b.mse(predicted, target, weights, scale);
        b.output("losses", losses);
        let forward = b.finish()?;
        let options = Backward {
            accumulate,
            recompute: self.recompute,
            wanted: &[],
        };
        Ok(backward(forward, table, &[(predicted, dpredicted)], options)?)
    }
}

/// An F32 input, in the kind that the device computes in.
fn activation_input(b: &mut Builder, name: &str, dims: &[usize]) -> ValueId {
    let input = b.input(name, dims, Kind::F32);
    b.cast(input, Kind::Activation)
}

fn unet_inputs(b: &mut Builder, config: &UNetConfig, map: Map, context: ValueId) -> UNetInputs {
    let first = config.block_out_channels.first().copied().unwrap_or(0);
    UNetInputs {
        latents: activation_input(b, "latents", &map.dims(config.in_channels)),
        time: activation_input(b, "time", &[map.rows, first]),
        context,
    }
}

impl Networks {
    /// `session` holds the weights of `plan.params()`.
    pub fn new(plan: Plan, session: Box<dyn Session>) -> Self {
        Self {
            session,
            plan,
            programs: BTreeMap::new(),
        }
    }

    pub fn session(&mut self) -> &mut dyn Session {
        &mut *self.session
    }

    pub fn params(&self) -> &ParamTable {
        self.session.params()
    }

    pub fn trains_text_encoder(&self) -> bool {
        self.plan.trains_text_encoder
    }

    /// The weights that training changes.
    pub fn trained(&self) -> Vec<(ParamId, Param)> {
        let all = self.params().params.iter().zip(0..);
        let trained = all.filter(|(param, _)| param.trained);
        trained.map(|(param, id)| (ParamId(id), param.clone())).collect()
    }

    /// Takes over a network's weights, by diffusers' paths. Strict: a name that is passed over would leave a layer as
    /// it was and say nothing.
    ///
    /// # Errors
    /// When one is missing, has another shape, or belongs to no layer.
    pub fn load(&mut self, part: Part, weights: &Weights) -> Result<()> {
        let prefix = format!("{}.", part.prefix());
        let mut unread: BTreeMap<&String, &Tensor> =
            (weights.iter()).filter(|(path, _)| !is_not_a_weight(path)).collect();
        for index in 0..self.params().params.len() {
            let id = ParamId(index as u32);
            let param = self.params().get(id).clone();
            let Some(path) = param.name.strip_prefix(&prefix) else {
                continue;
            };
            let path = path.to_string();
            let Some(tensor) = unread.remove(&path) else {
                return Err(ParamError::Missing { path }.into());
            };
            let expected = checkpoint_dims(&param.dims);
            if tensor.dims() != expected {
                let got = tensor.dims().to_vec();
                return Err(ParamError::Shape { path, expected, got }.into());
            }
            let values = values(tensor).map_err(|source| ParamError::Tensor { path, source })?;
            self.session.set_weight(id, &weight_to_engine(&values, &expected))?;
        }
        // The eye has no way up, and a VAE that only decodes has no encoder.
        let in_part = matches!(part, Part::Eye | Part::OtherVae);
        if unread.is_empty() || in_part {
            return Ok(());
        }
        let paths = unread.into_keys().cloned().collect();
        Err(ParamError::Unused { paths }.into())
    }

    /// A weight as it is now, as checkpoints have it.
    ///
    /// # Errors
    /// What the device answers.
    pub fn weight(&mut self, id: ParamId) -> Result<Tensor> {
        let dims = checkpoint_dims(&self.params().get(id).dims);
        let values = self.session.weight(id)?;
        Ok(weight_from_engine(values, &dims)?)
    }

    /// A weight's gradient as the last step left it, as checkpoints have the weight.
    ///
    /// # Errors
    /// What the device answers.
    pub fn gradient(&mut self, id: ParamId) -> Result<Tensor> {
        let dims = checkpoint_dims(&self.params().get(id).dims);
        let values = self.session.gradient(id)?;
        Ok(weight_from_engine(values, &dims)?)
    }

    fn program(&mut self, task: Task) -> Result<ProgramId> {
        if let Some(&id) = self.programs.get(&task) {
            return Ok(id);
        }
        let mut table = self.session.params().clone();
        let program = self.plan.write(task, &mut table)?;
        let id = self.session.compile(program)?;
        self.programs.insert(task, id);
        Ok(id)
    }

    /// `ids` u32 `[rows, tokens]` to `[rows, tokens, width]`; `clip_skip` counts from 1, which takes the last layer.
    ///
    /// # Errors
    /// What the device answers.
    pub fn text(&mut self, ids: &Tensor, clip_skip: usize) -> Result<Tensor> {
        let (rows, tokens) = ids.dims2()?;
        let clip_skip = clip_skip.max(1);
        let width = Plan::held(&self.plan.text_encoder, "text encoder")?.hidden_size;
        let program = self.program(Task::Text {
            rows,
            tokens,
            clip_skip,
        })?;
        self.write_ids(program, ids)?;
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
        let map = Map::of(latents)?;
        let program = self.program(Task::Predict {
            map,
            tokens: context.dim(1)?,
        })?;
        self.write_unet_inputs(program, latents, timesteps)?;
        self.session.write(program, "context", Data::F32(&values(context)?))?;
        self.session.run(program)?;
        self.read_map(program, map)
    }

    /// What the eye makes of `latents` at its deepest level, `[rows, width, h / 8, w / 8]`, averaged over pixels:
    /// `[rows, width]`.
    ///
    /// # Errors
    /// What the device answers.
    pub fn look(&mut self, latents: &Tensor, timesteps: &[f32], context: &Tensor) -> Result<Tensor> {
        let (map, tokens) = (Map::of(latents)?, context.dim(1)?);
        let program = self.program(Task::Middle { map, tokens })?;
        self.write_unet_inputs(program, latents, timesteps)?;
        self.session.write(program, "context", Data::F32(&values(context)?))?;
        self.session.run(program)?;
        let features = self.session.read(program, "output")?;
        let config = Plan::held(&self.plan.unet, "U-Net")?;
        let width = config.block_out_channels.last().copied().unwrap_or(1);
        let pixels = features.len() / map.rows / width;
        Ok(Tensor::from_vec(features, (map.rows, pixels, width), &Device::Cpu)?.mean(1)?)
    }

    /// `images` `[rows, 3, h, w]` in -1 to 1.
    ///
    /// # Errors
    /// What the device answers.
    pub fn encode(&mut self, images: &Tensor) -> Result<LatentDistribution> {
        let map = Map::of(images)?;
        let program = self.program(Task::Encode { map })?;
        self.write_map(program, "images", images)?;
        self.session.run(program)?;
        let config = Plan::held(&self.plan.vae, "VAE")?;
        let scale = 1 << (config.block_out_channels.len() - 1);
        let latents = Map {
            rows: map.rows,
            height: map.height / scale,
            width: map.width / scale,
        };
        let moments = self.read_map(program, latents)?;
        Ok(LatentDistribution::new(&moments)?)
    }

    /// `z` `[rows, 4, h, w]`, already divided by the scaling factor, to `[rows, 3, 8 h, 8 w]` around -1 to 1, with the
    /// other VAE where there is one.
    ///
    /// # Errors
    /// What the device answers.
    pub fn decode(&mut self, z: &Tensor) -> Result<Tensor> {
        let (part, config) = match &self.plan.other_vae {
            Some(other) => (Part::OtherVae, other.clone()),
            None => (Part::Vae, Plan::held(&self.plan.vae, "VAE")?),
        };
        let map = Map::of(z)?;
        let program = self.program(Task::Decode { part, map })?;
        self.write_map(program, "z", z)?;
        self.session.run(program)?;
        let scale = 1 << (config.block_out_channels.len() - 1);
        let images = Map {
            rows: map.rows,
            height: map.height * scale,
            width: map.width * scale,
        };
        self.read_map(program, images)
    }

    /// Loss and gradients of one micro-batch, and with `update` the change of the weights. `accumulate`: gradients are
    /// added to those of the step before. The mean squared error of each row comes back.
    ///
    /// # Errors
    /// What the device answers.
    pub fn train(&mut self, step: &Step, accumulate: bool, update: Option<&Update>) -> Result<Trained> {
        let map = Map::of(step.noisy)?;
        let tokens = match step.prompts {
            Prompts::Ids(tensor) | Prompts::States(tensor) => tensor.dim(1)?,
        };
        let program = self.program(Task::Train {
            map,
            tokens,
            accumulate,
        })?;
        match step.prompts {
            Prompts::Ids(ids) => self.write_ids(program, ids)?,
            Prompts::States(states) => self.session.write(program, "context", Data::F32(&values(states)?))?,
        }
        self.write_unet_inputs(program, step.noisy, step.timesteps)?;
        self.write_map(program, "target", step.target)?;
        self.session.write(program, "weights", Data::F32(step.weights))?;
        self.session.write(program, "scale", Data::F32(&[step.loss_scale]))?;
        let updated = match update {
            Some(update) => Some(self.session.run_and_update(program, update)?),
            None => {
                self.session.run(program)?;
                None
            }
        };
        let losses = self.session.read(program, "losses")?;
        Ok(Trained { losses, updated })
    }

    fn write_unet_inputs(&mut self, program: ProgramId, latents: &Tensor, timesteps: &[f32]) -> Result<()> {
        let time = sinusoids(&Plan::held(&self.plan.unet, "U-Net")?, timesteps);
        self.session.write(program, "time", Data::F32(&time))?;
        self.write_map(program, "latents", latents)
    }

    fn write_ids(&mut self, program: ProgramId, ids: &Tensor) -> Result<()> {
        let ids = ids.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<u32>()?;
        Ok(self.session.write(program, "ids", Data::Ids(&ids))?)
    }

    fn write_map(&mut self, program: ProgramId, input: &str, map: &Tensor) -> Result<()> {
        let (_, channels, height, width) = map.dims4()?;
        let values = channels_last(&values(map)?, channels, height * width);
        Ok(self.session.write(program, input, Data::F32(&values))?)
    }

    fn read_map(&mut self, program: ProgramId, map: Map) -> Result<Tensor> {
        let values = self.session.read(program, "output")?;
        let pixels = map.height * map.width;
        let channels = values.len() / (map.rows * pixels);
        let values = channels_first(&values, channels, pixels);
        Ok(Tensor::from_vec(
            values,
            (map.rows, channels, map.height, map.width),
            &Device::Cpu,
        )?)
    }
}

/// What a step of training tells.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Mean squared error of each row.
    pub losses: Vec<f32>,
    pub updated: Option<Updated>,
}

/// In f32, row-major.
pub fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()
}

fn weight_to_engine(values: &[f32], checkpoint: &[usize]) -> Vec<f32> {
    match *checkpoint {
        [_, inputs, height, width] => channels_last(values, inputs, height * width),
        _ => values.to_vec(),
    }
}

fn weight_from_engine(values: Vec<f32>, checkpoint: &[usize]) -> candle_core::Result<Tensor> {
    let values = match *checkpoint {
        [_, inputs, height, width] => channels_first(&values, inputs, height * width),
        _ => values,
    };
    Tensor::from_vec(values, checkpoint, &Device::Cpu)
}
