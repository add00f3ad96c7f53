//! Which networks a run needs, and what it does with them as programs.

use std::collections::BTreeSet;

use candle_core::Tensor;

use super::diffusion::Form;
use super::error::{NetworkError, Result};
use super::text_encoder::text_encoder;
use super::unet::{UNetInputs, unet, unet_middle};
use super::vae;
use crate::engine::adapter::Adapter;
use crate::engine::autodiff::{Backward, LARGE_NORM, backward};
use crate::engine::builder::diffusion::{Chance, Clean, Levels, Noisy};
use crate::engine::builder::{Builder, Scope};
use crate::engine::ir::{Group, Kind, Param, ParamId, ParamTable, Program, ValueId};
use crate::engine::operands::operands;
use crate::engine::philox::Clock;
use crate::models::config::{TextEncoderConfig, UNetConfig, VaeConfig};

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
    pub text_encoder: Option<TextEncoderConfig>,
    pub vae: Option<VaeConfig>,
    pub other_vae: Option<VaeConfig>,
    pub eye: bool,
    pub trains: BTreeSet<Group>,
    /// U-Net and text encoder learn through adapters on their attention, and stay as they are themselves.
    pub adapter: Option<Adapter>,
    /// Inner values of blocks are computed again in the backward (gradient checkpointing).
    pub recompute: bool,
}

/// What a program does, and the shape that it does it in. All inputs but `ids` are F32; maps lie channels last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// `ids` `[rows, tokens]` to `output` `[rows, tokens, width]`. `clip_skip` 1 takes the last layer.
    Text {
        rows: usize,
        tokens: usize,
        clip_skip: usize,
    },
    /// `latents`, `time` (the [`sinusoids`](super::unet::sinusoids) of a timestep a row) and `context`
    /// `[rows, tokens, width]` to `output`. `map` is of the latents. With guidance it has twice the rows.
    Predict { map: Map, tokens: usize },
    /// The same inputs, to what the eye makes of them at its deepest level.
    Middle { map: Map, tokens: usize },
    /// `images` to `output`: means and log-variances of the latents. `map` is of the images.
    Encode { map: Map },
    /// `z` to `output`, images. `map` is of `z`.
    Decode { part: Part, map: Map },
    /// `z` to `output` of the decoder's deepest level, as it lies there.
    DecodeDeep { part: Part, map: Map },
    /// From `states`, a part of what `DecodeDeep` gives, to `output`, that part of the images. `map` is of the states.
    DecodeUp { part: Part, map: Map },
    /// `mean`, `deviation` and `shares` (see [`Op::Diffuse`](crate::engine::ir::Op::Diffuse)), `scale` (see
    /// [`Op::Mse`](crate::engine::ir::Op::Mse)) and `context` to `losses` `[rows]` and the gradients of the weights. `ids` stand for
    /// `context` where the text encoder learns. Noise and timesteps are drawn by `clock`, and `timesteps` then told; or they
    /// are the inputs `latents`, `noise`, `offsets` and `timesteps`. The inputs `schedule`, `times` and `strengths` last.
    Train {
        map: Map,
        tokens: usize,
        form: Form,
        learns_text: bool,
        /// Gradients are added to those that are there.
        accumulate: bool,
    },
    /// `Encode`'s inputs and `d output` to the gradients of the encoder's weights.
    EncodeGrad { map: Map },
    /// `Decode`'s inputs and `d output` to the gradients of the decoder's weights and `d z`.
    DecodeGrad { map: Map },
}

/// The size of feature maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Map {
    pub rows: usize,
    pub height: usize,
    pub width: usize,
}

impl Map {
    /// Of `[rows, channels, height, width]`.
    ///
    /// # Errors
    /// When it has other dimensions.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let (rows, _, height, width) = tensor.dims4()?;
        Ok(Self { rows, height, width })
    }

    /// Times `factor` each way.
    pub fn larger(self, factor: usize) -> Self {
        Self {
            height: self.height * factor,
            width: self.width * factor,
            ..self
        }
    }

    /// A `factor`th each way.
    pub fn smaller(self, factor: usize) -> Self {
        Self {
            height: self.height / factor,
            width: self.width / factor,
            ..self
        }
    }

    fn dims(self, channels: usize) -> [usize; 4] {
        [self.rows, self.height, self.width, channels]
    }
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
            self.program(task, &mut table)?;
        }
        Ok(table)
    }

    fn scope(&self, part: Part) -> Scope {
        let (group, learns) = match part {
            Part::UNet => (Group::UNet, true),
            Part::Eye => (Group::UNet, false),
            Part::TextEncoder => (Group::TextEncoder, true),
            Part::Vae => (Group::Vae, true),
            Part::OtherVae => (Group::Vae, false),
        };
        let learns = learns && self.trains.contains(&group);
        let adapter = self.adapter.filter(|_| learns && group != Group::Vae);
        Scope::new(part.prefix(), group, learns && adapter.is_none()).with_adapter(adapter)
    }

    pub fn unet(&self) -> Result<&UNetConfig> {
        self.unet.as_ref().ok_or(NetworkError::NotHeld("U-Net"))
    }

    pub fn text_encoder(&self) -> Result<&TextEncoderConfig> {
        self.text_encoder.as_ref().ok_or(NetworkError::NotHeld("text encoder"))
    }

    /// The VAE that encodes, or the other one.
    pub fn vae(&self, part: Part) -> Result<&VaeConfig> {
        let vae = match part {
            Part::OtherVae => &self.other_vae,
            _ => &self.vae,
        };
        vae.as_ref().ok_or(NetworkError::NotHeld("VAE"))
    }

    /// The VAE that decodes.
    pub fn decoder(&self) -> Part {
        match self.other_vae {
            Some(_) => Part::OtherVae,
            None => Part::Vae,
        }
    }

    /// Writes a program. Weights that `table` does not have yet are registered there.
    ///
    /// # Errors
    /// When the plan has not the networks for it, or a trained weight would get no gradient.
    pub fn program(&self, task: Task, table: &mut ParamTable) -> Result<Program> {
        match task {
            Task::Train { .. } => return self.training(task, table),
            Task::EncodeGrad { .. } | Task::DecodeGrad { .. } => return self.gradients_of(task, table),
            _ => {}
        }
        let mut b = Builder::new(table);
        let output = self.write(&mut b, task)?;
        let output = b.cast(output, Kind::F32);
        b.output("output", output);
        Ok(b.finish()?.program)
    }

    /// The forward of all but training, to its output as the device computes it.
    fn write(&self, b: &mut Builder, task: Task) -> Result<ValueId> {
        Ok(match task {
            Task::Text {
                rows,
                tokens,
                clip_skip,
            } => {
                let ids = b.input("ids", &[rows, tokens], Kind::Ids);
                text_encoder(b, self.text_encoder()?, ids, clip_skip, &self.scope(Part::TextEncoder))?
            }
            Task::Predict { map, tokens } => {
                let inputs = self.unet_inputs(b, map, tokens)?;
                unet(b, self.unet()?, inputs, &self.scope(Part::UNet))?
            }
            Task::Middle { map, tokens } => {
                let inputs = self.unet_inputs(b, map, tokens)?;
                unet_middle(b, self.unet()?, inputs, &self.scope(Part::Eye))?
            }
            Task::Encode { map } | Task::EncodeGrad { map } => {
                let config = self.vae(Part::Vae)?;
                let images = activation_input(b, "images", &map.dims(config.in_channels));
                vae::encode(b, config, images, &self.scope(Part::Vae))?
            }
            Task::Decode { part, map } => self.decoded(b, part, map)?,
            Task::DecodeDeep { part, map } => {
                let config = self.vae(part)?;
                let z = activation_input(b, "z", &map.dims(config.latent_channels));
                vae::decode_deep(b, config, z, &self.scope(part))?
            }
            Task::DecodeUp { part, map } => {
                let config = self.vae(part)?;
                let (_, deepest) = vae::ends(config)?;
                let states = activation_input(b, "states", &map.dims(deepest));
                vae::decode_up(b, config, states, &self.scope(part))?
            }
            Task::DecodeGrad { map } => self.decoded(b, Part::Vae, map)?,
            Task::Train { .. } => return Err(NetworkError::NotHeld("forward of a training step alone")),
        })
    }

    fn decoded(&self, b: &mut Builder, part: Part, map: Map) -> Result<ValueId> {
        let config = self.vae(part)?;
        let z = activation_input(b, "z", &map.dims(config.latent_channels));
        Ok(vae::decode(b, config, z, &self.scope(part))?)
    }

    fn unet_inputs(&self, b: &mut Builder, map: Map, tokens: usize) -> Result<UNetInputs> {
        let config = self.unet()?;
        let first = config.block_out_channels.first().copied().unwrap_or(0);
        let context = activation_input(b, "context", &[map.rows, tokens, config.cross_attention_dim]);
        Ok(UNetInputs {
            latents: activation_input(b, "latents", &map.dims(config.in_channels)),
            time: activation_input(b, "time", &[map.rows, first]),
            context,
        })
    }

    fn training(&self, task: Task, table: &mut ParamTable) -> Result<Program> {
        let Task::Train {
            map,
            tokens,
            form,
            learns_text,
            accumulate,
        } = task
        else {
            return Err(NetworkError::NotHeld("a training step of that kind"));
        };
        let mut b = Builder::new(table);
        let context = match learns_text {
            true => {
                let ids = b.input("ids", &[map.rows, tokens], Kind::Ids);
                text_encoder(&mut b, self.text_encoder()?, ids, 1, &self.scope(Part::TextEncoder))?
            }
            false => activation_input(&mut b, "context", &[map.rows, tokens, self.unet()?.cross_attention_dim]),
        };
        let noisy = self.noisy(&mut b, map, form)?;
        let inputs = UNetInputs {
            latents: noisy.latents,
            time: noisy.time,
            context,
        };
        let predicted = unet(&mut b, self.unet()?, inputs, &self.scope(Part::UNet))?;
        let scale = b.input("scale", &[1], Kind::F32);
        let (losses, dpredicted) = b.mse(predicted, noisy.target, noisy.weights, scale);
        b.output("losses", losses);
        let forward = b.finish()?;
        let options = Backward {
            accumulate,
            recompute: self.recompute,
            light_norms: LARGE_NORM,
            wanted: &[],
        };
        let learning = only(table, |param| learns_text || param.group != Group::TextEncoder);
        Ok(backward(forward, &learning, &[(predicted, dpredicted)], options)?)
    }

    /// The rows that a step learns from.
    fn noisy(&self, b: &mut Builder, map: Map, form: Form) -> Result<Noisy> {
        let config = self.unet()?;
        let first = config.block_out_channels.first().copied().unwrap_or(0);
        let (dims, rows) = (map.dims(config.in_channels), map.rows);
        let chance = match form.drawn {
            true => {
                let clock = b.input("clock", &[Clock::WORDS], Kind::Ids);
                let chance = b.draw(clock, dims, form.timesteps, form.with_offsets);
                b.output("timesteps", chance.timesteps);
                chance
            }
            false => Chance {
                latents: b.input("latents", &dims, Kind::F32),
                noise: b.input("noise", &dims, Kind::F32),
                offsets: (form.with_offsets).then(|| b.input("offsets", &[rows, config.in_channels], Kind::F32)),
                timesteps: b.input("timesteps", &[rows], Kind::F32),
            },
        };
        let clean = Clean {
            mean: b.input("mean", &dims, Kind::F32),
            deviation: b.input("deviation", &dims, Kind::F32),
            shares: b.input("shares", &[rows], Kind::F32),
        };
        let levels = Levels {
            schedule: b.input("schedule", &[form.timesteps, 3], Kind::F32),
            times: b.input("times", &[form.timesteps, first], Kind::F32),
            strengths: b.input("strengths", &[2], Kind::F32),
            velocity: form.velocity,
        };
        Ok(b.diffuse(clean, chance, levels))
    }

    /// Half of a VAE, backwards from the gradient of its output.
    fn gradients_of(&self, task: Task, table: &mut ParamTable) -> Result<Program> {
        let mut b = Builder::new(table);
        let output = self.write(&mut b, task)?;
        let dims = b.dims(output).to_vec();
        let doutput = activation_input(&mut b, "d output", &dims);
        let forward = b.finish()?;
        let z = forward.program.inputs.get("z").copied();
        let wanted: Vec<(&str, ValueId)> = z.map(|z| ("d z", z)).into_iter().collect();
        let options = Backward {
            accumulate: false,
            recompute: self.recompute,
            light_norms: LARGE_NORM,
            wanted: &wanted,
        };
        // Each half of the VAE has its own weights.
        let used: BTreeSet<ParamId> = (forward.program.code.iter())
            .flat_map(|op| operands(op).weights)
            .collect();
        let mut index = 0;
        let learning = only(table, |_| {
            index += 1;
            used.contains(&ParamId(index - 1))
        });
        Ok(backward(forward, &learning, &[(output, doutput)], options)?)
    }
}

/// Trained are those that `learns` picks of the trained ones.
fn only(table: &ParamTable, mut learns: impl FnMut(&Param) -> bool) -> ParamTable {
    let params = table.params.iter().map(|param| Param {
        trained: learns(param) && param.trained,
        ..param.clone()
    });
    ParamTable {
        params: params.collect(),
    }
}

/// An F32 input, in the kind that the device computes in.
fn activation_input(b: &mut Builder, name: &str, dims: &[usize]) -> ValueId {
    let input = b.input(name, dims, Kind::F32);
    b.cast(input, Kind::Activation)
}
