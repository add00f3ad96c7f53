//! The programs that are timed, with weights and inputs for them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::dreambooth::batch::Objective;
use crate::engine::layout::checkpoint_dims;
use crate::engine::{
    builder::{Builder, Scope},
    ir::{Group, Kind, ParamId, ParamTable, Program},
    nets::{
        diffusion::{Chance, Diffusion},
        programs::{Map, Plan, Task},
        text_encoder::text_encoder,
        unet::{UNetInputs, sinusoids, unet},
        vae,
    },
    philox::Clock,
    session::{Data, ProgramId, Session},
};
use crate::formats::{Configs, ModelWeights, Tensors};
use crate::models::config::{PredictionType, SchedulerConfig, TextEncoderConfig, UNetConfig, VaeConfig};
use crate::pretrain::starter;
use crate::schedulers::NoiseSchedule;
use crate::tokenizer::TokenizerFiles;

/// Tokens of a prompt.
const TOKENS: usize = 77;
const CLOCK: Clock = Clock { seed: 1, number: 0 };
/// Pixels a latent stands for, each way.
const LATENT_PX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// Stable Diffusion 1.5 at 512x512
    Sd15,
    /// The model that comes with Likeness
    Starter,
}

pub struct Model {
    pub unet: UNetConfig,
    pub text_encoder: TextEncoderConfig,
    pub vae: VaeConfig,
    pub table: ParamTable,
}

impl Model {
    pub fn new(arch: Arch) -> Self {
        let table = ParamTable::default();
        match arch {
            Arch::Sd15 => {
                let Configs {
                    unet,
                    text_encoder,
                    vae,
                    ..
                } = Configs::sd1();
                Self {
                    unet,
                    text_encoder,
                    vae,
                    table,
                }
            }
            Arch::Starter => Self {
                unet: starter::unet_config(),
                text_encoder: starter::text_encoder_config(),
                vae: starter::vae_config(),
                table,
            },
        }
    }

    fn latents(&self, rows: usize) -> [usize; 4] {
        [
            rows,
            self.unet.sample_size,
            self.unet.sample_size,
            self.unet.in_channels,
        ]
    }

    pub fn side_px(&self) -> usize {
        self.unet.sample_size * LATENT_PX
    }

    /// One step on `rows` images: the very program of a run.
    pub fn training(&mut self, rows: usize, text_encoder_too: bool, recompute: bool) -> anyhow::Result<Program> {
        let mut trains = BTreeSet::from([Group::UNet]);
        trains.extend(text_encoder_too.then_some(Group::TextEncoder));
        let plan = Plan {
            unet: Some(self.unet.clone()),
            text_encoder: text_encoder_too.then(|| self.text_encoder.clone()),
            trains,
            recompute,
            ..Plan::default()
        };
        let side = self.unet.sample_size;
        let task = Task::Train {
            map: Map {
                rows,
                height: side,
                width: side,
            },
            tokens: TOKENS,
            form: self.diffusion()?.form(&Chance::Drawn(CLOCK)),
            learns_text: text_encoder_too,
            accumulate: false,
        };
        Ok(plan.program(task, &mut self.table)?)
    }

    fn diffusion(&self) -> anyhow::Result<Diffusion> {
        let objective = Objective {
            schedule: NoiseSchedule::new(&SchedulerConfig::default())?,
            prediction: PredictionType::Epsilon,
            snr_gamma: None,
            offset_noise: 0.,
        };
        Ok(objective.diffusion(self.vae.scaling_factor)?)
    }

    /// The VAE's encoder, which a training run holds besides.
    pub fn encoding(&mut self) -> anyhow::Result<Program> {
        let mut b = Builder::new(&mut self.table);
        let side = self.unet.sample_size * LATENT_PX;
        let images = b.input("images", &[1, side, side, 3], Kind::F32);
        let images = b.cast(images, Kind::Activation);
        let moments = vae::encode(&mut b, &self.vae, images, &Scope::new("vae", Group::Vae, false))?;
        let moments = b.cast(moments, Kind::F32);
        b.output("output", moments);
        Ok(b.finish()?.program)
    }

    /// Prompts to the states that the U-Net reads.
    pub fn prompts(&mut self, rows: usize) -> anyhow::Result<Program> {
        let mut b = Builder::new(&mut self.table);
        let ids = b.input("ids", &[rows, TOKENS], Kind::Ids);
        let scope = Scope::new("text_encoder", Group::TextEncoder, false);
        let states = text_encoder(&mut b, &self.text_encoder, ids, 1, &scope)?;
        let states = b.cast(states, Kind::F32);
        b.output("output", states);
        Ok(b.finish()?.program)
    }

    /// One call of the U-Net.
    pub fn prediction(&mut self, rows: usize) -> anyhow::Result<Program> {
        let (latents, width) = (self.latents(rows), self.unet.cross_attention_dim);
        let mut b = Builder::new(&mut self.table);
        let context = b.input("context", &[rows, TOKENS, width], Kind::F32);
        let context = b.cast(context, Kind::Activation);
        let noisy = b.input("latents", &latents, Kind::F32);
        let noisy = b.cast(noisy, Kind::Activation);
        let time = b.input("time", &[rows, self.unet.block_out_channels[0]], Kind::F32);
        let time = b.cast(time, Kind::Activation);
        let inputs = UNetInputs {
            latents: noisy,
            time,
            context,
        };
        let predicted = unet(&mut b, &self.unet, inputs, &Scope::new("unet", Group::UNet, false))?;
        let predicted = b.cast(predicted, Kind::F32);
        b.output("output", predicted);
        Ok(b.finish()?.program)
    }

    /// Latents of one image to its pixels.
    pub fn decoding(&mut self) -> anyhow::Result<Program> {
        let mut b = Builder::new(&mut self.table);
        let side = self.unet.sample_size;
        let z = b.input("z", &[1, side, side, 4], Kind::F32);
        let z = b.cast(z, Kind::Activation);
        let image = vae::decode(&mut b, &self.vae, z, &Scope::new("vae", Group::Vae, false))?;
        let image = b.cast(image, Kind::F32);
        b.output("output", image);
        Ok(b.finish()?.program)
    }

    /// Gives every weight random values of a size that keeps activations around 1.
    pub fn fill(&self, session: &mut dyn Session) -> anyhow::Result<()> {
        for index in 0..self.table.params.len() {
            session.set_weight(ParamId(index as u32), &self.values(index))?;
        }
        Ok(())
    }

    fn values(&self, index: usize) -> Vec<f32> {
        let param = &self.table.params[index];
        let inputs = param.len() / param.dims[0].max(1);
        match param.dims.len() {
            1 if param.name.ends_with("weight") => vec![1.; param.len()],
            1 => vec![0.; param.len()],
            _ => noise(param.len(), index as u64 + 1, (3. / inputs as f32).sqrt()),
        }
    }

    /// The same values as a model that can be saved.
    pub fn weights(&mut self) -> anyhow::Result<ModelWeights> {
        self.training(1, true, false)?;
        self.encoding()?;
        self.decoding()?;
        let mut networks: BTreeMap<&str, Tensors> = BTreeMap::new();
        for (index, param) in self.table.params.iter().enumerate() {
            let (network, path) = param.name.split_once('.').context("a weight outside of the networks")?;
            let tensor = Tensor::from_vec(self.values(index), checkpoint_dims(&param.dims), &Device::Cpu)?;
            networks.entry(network).or_default().insert(path.to_owned(), tensor);
        }
        let mut network = |name| networks.remove(name).unwrap_or_default();
        let configs = Configs {
            unet: self.unet.clone(),
            text_encoder: self.text_encoder.clone(),
            vae: self.vae.clone(),
            scheduler: SchedulerConfig::default(),
        };
        Ok(ModelWeights {
            unet: network("unet"),
            text_encoder: network("text_encoder"),
            vae: network("vae"),
            config_files: configs.files()?,
            unet_config: configs.unet,
            text_encoder_config: configs.text_encoder,
            vae_config: configs.vae,
            scheduler_config: configs.scheduler,
            tokenizer_files: TokenizerFiles::clip(),
            ignored: 0,
            guess: None,
        })
    }

    /// Writes all inputs of `program`, other ones for another `step`.
    pub fn write(&self, session: &mut dyn Session, id: ProgramId, program: &Program, step: u64) -> anyhow::Result<()> {
        let tables = self.diffusion()?.tables(&self.unet);
        for (seed, (name, &input)) in program.inputs.iter().enumerate() {
            let (value, seed) = (program.value(input), step * 16 + seed as u64 + 1);
            if let Some((_, table)) = tables.iter().find(|(table, _)| table == name) {
                // Written once in a run.
                if step <= 1 {
                    session.write(id, name, Data::F32(table))?;
                }
                continue;
            }
            match (name.as_str(), value.kind) {
                ("clock", _) => {
                    let clock = Clock { number: step, ..CLOCK };
                    session.write(id, name, Data::Ids(&clock.words()))?;
                }
                (_, Kind::Ids) => {
                    let vocabulary = self.text_encoder.vocab_size as f32;
                    let ids: Vec<u32> = (noise(value.len(), seed, vocabulary / 2.).iter())
                        .map(|id| (id + vocabulary / 2.) as u32)
                        .collect();
                    session.write(id, name, Data::Ids(&ids))?;
                }
                ("time", _) => {
                    let timesteps: Vec<f32> = (0..value.dims[0])
                        .map(|row| ((step * 37 + row as u64 * 311) % 1000) as f32)
                        .collect();
                    session.write(id, name, Data::F32(&sinusoids(&self.unet, &timesteps)))?;
                }
                ("shares", _) => session.write(id, name, Data::F32(&vec![1. / value.len() as f32; value.len()]))?,
                ("scale", _) => session.write(id, name, Data::F32(&[1.]))?,
                // Sizes that an autoencoder gives.
                ("mean", _) => session.write(id, name, Data::F32(&noise(value.len(), seed, 9.)))?,
                ("deviation", _) => session.write(id, name, Data::F32(&vec![0.1; value.len()]))?,
                _ => session.write(id, name, Data::F32(&noise(value.len(), seed, 1.7)))?,
            }
        }
        Ok(())
    }
}

/// Values within `spread` around 0, the same for the same seed on any number of threads.
fn noise(len: usize, seed: u64, spread: f32) -> Vec<f32> {
    const RUN: usize = 1 << 16;
    let mut values = vec![0f32; len];
    values.par_chunks_mut(RUN).enumerate().for_each(|(part, values)| {
        let mut state = (seed << 32 | part as u64 | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for value in values {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *value = ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2. * spread;
        }
    });
    values
}
