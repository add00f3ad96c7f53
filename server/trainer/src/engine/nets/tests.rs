//! Whole networks of few channels: every gradient against central differences, odd sizes among them.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::error::NetworkError;
use super::networks::{Networks, values};
use super::programs::{Map, Part, Plan, Task};
use super::unet::{UNetInputs, sinusoids, unet};
use super::{text_encoder::text_encoder, vae};
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::cpu::CpuSession;
use crate::engine::ir::{Group, Kind, Op, ParamId, ParamTable, Program};
use crate::engine::plan::{lives, plan};
use crate::engine::session::{
    Data, EngineError, Moments, OptimizerSettings, ProgramId, Result, Session, Update, Updated,
};
use crate::engine::testing::{Case, noise};
use crate::models::config::{TextEncoderConfig, UNetConfig, VaeConfig};
use crate::models::{ModelConfig, random_weights};

fn unet_config() -> UNetConfig {
    serde_json::from_str(
        r#"{"sample_size": 8, "block_out_channels": [4, 8], "cross_attention_dim": 4, "norm_num_groups": 2,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 2}"#,
    )
    .unwrap()
}

fn text_config() -> TextEncoderConfig {
    serde_json::from_str(
        r#"{"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 6}"#,
    )
    .unwrap()
}

fn vae_config() -> VaeConfig {
    serde_json::from_str(r#"{"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2}"#).unwrap()
}

/// Prompt to prediction, both networks trained.
fn dreambooth(b: &mut Builder) -> crate::engine::ir::ValueId {
    let ids = b.input("ids", &[2, 5], Kind::Ids);
    let text_scope = Scope::new("text_encoder", Group::TextEncoder, true);
    let context = text_encoder(b, &text_config(), ids, 1, &text_scope).unwrap();
    let [latents, time] = [("latents", &[2, 5, 6, 4][..]), ("time", &[2, 4])].map(|(name, dims)| {
        let input = b.input(name, dims, Kind::F32);
        b.cast(input, Kind::Activation)
    });
    let inputs = UNetInputs { latents, time, context };
    unet(b, &unet_config(), inputs, &Scope::new("unet", Group::UNet, true)).unwrap()
}

#[test]
fn a_unet_and_its_text_encoder_learn_right() {
    let case = Case::new(|b, _| dreambooth(b));
    case.check(1);
    let (kept, again) = (case.program(false, false), case.program(false, true));
    assert_eq!(case.gradients(&kept), case.gradients(&again));
}

#[test]
fn both_halves_of_a_vae_learn_right() {
    let scope = Scope::new("vae", Group::Vae, true);
    Case::new(|b, wanted| {
        let images = b.input("images", &[1, 6, 4, 3], Kind::Activation);
        wanted.push(("d images", images));
        let moments = vae::encode(b, &vae_config(), images, &scope).unwrap();
        // All eight channels of moments enter the loss.
        let z = b.linear(moments, &scope.at("between"), 4, Bias::None, None);
        vae::decode(b, &vae_config(), z, &scope).unwrap()
    })
    .check(1);
}

/// What fusing is for: the bias of the first convolution and the timestep cost nothing of their own.
#[test]
fn sums_are_left_to_the_instructions_around_them() {
    let case = Case::new(|b, _| dreambooth(b));
    let adds = |code: &[Op]| code.iter().filter(|op| matches!(op, Op::Add { .. })).count();
    assert_eq!(adds(&case.forward.program.code), 0);
    let backward = case.program(false, false);
    // Two skips go into a resnet that hands them on as they are, too: there the sum of two finished gradients is due.
    assert_eq!(adds(&backward.code), 2);
}

#[test]
fn sinusoids_are_cosines_first() {
    let config = unet_config();
    let row = sinusoids(&config, &[3.5]);
    let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-6;
    assert!(close(row[0], 3.5f64.cos()) && close(row[2], 3.5f64.sin()), "{row:?}");
    assert!(
        close(row[1], 0.035f64.cos()) && close(row[3], 0.035f64.sin()),
        "{row:?}"
    );
}

fn sd15() -> (UNetConfig, TextEncoderConfig) {
    let unet = r#"{"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 8}"#;
    let text = r#"{"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12}"#;
    (serde_json::from_str(unet).unwrap(), serde_json::from_str(text).unwrap())
}

/// An optimizer step of two rows at 512 x 512 in 16 bits has to leave room for 8 GB of weights, moments and gradients.
#[test]
fn the_plan_of_an_sd15_step_is_close_to_what_lives_at_once() {
    let (unet_config, text_config) = sd15();
    let case = Case::shapes_only(|b| {
        let ids = b.input("ids", &[2, 77], Kind::Ids);
        let text_scope = Scope::new("text_encoder", Group::TextEncoder, true);
        let context = text_encoder(b, &text_config, ids, 1, &text_scope).unwrap();
        let latents = b.input("latents", &[2, 64, 64, 4], Kind::Activation);
        let time = b.input("time", &[2, 320], Kind::Activation);
        let inputs = UNetInputs { latents, time, context };
        unet(b, &unet_config, inputs, &Scope::new("unet", Group::UNet, true)).unwrap()
    });
    let weights: usize = case.table.params.iter().map(|param| param.len()).sum();
    assert_eq!(weights, 859_520_964 + 123_060_480);
    let size_of = |kind| if kind == Kind::Activation { 2 } else { 4 };
    for (recompute, most_mib) in [(false, 1700), (true, 400)] {
        let program = case.program(false, recompute);
        let (planned, live) = (plan(&program, size_of).arena_bytes, live_bytes(&program, size_of));
        println!(
            "recompute {recompute}: {} instructions, {} of {} MiB",
            program.code.len(),
            live >> 20,
            planned >> 20
        );
        assert!(planned as f64 <= 1.05 * live as f64, "{planned} for {live}");
        assert!(planned >> 20 <= most_mib, "{} MiB", planned >> 20);
    }
}

/// The most bytes that live at one instruction: no plan takes less.
fn live_bytes(program: &Program, size_of: impl Fn(Kind) -> usize) -> usize {
    let mut at = vec![0; program.code.len()];
    for (value, life) in program.values.iter().zip(lives(program)) {
        let Some(life) = life else { continue };
        at[life.first..=life.last]
            .iter_mut()
            .for_each(|bytes| *bytes += value.len() * size_of(value.kind));
    }
    at.into_iter().max().unwrap_or(0)
}

/// A session that has so much room for programs.
struct Narrow {
    inner: CpuSession,
    most_bytes: u64,
}

impl Session for Narrow {
    fn compile(&mut self, program: Program) -> Result<ProgramId> {
        let id = self.inner.compile(program)?;
        let (wanted_bytes, free_bytes) = (self.inner.program_bytes(id), self.most_bytes);
        if wanted_bytes <= free_bytes {
            return Ok(id);
        }
        let what = "the activations".to_owned();
        Err(EngineError::OutOfMemory {
            what,
            wanted_bytes,
            free_bytes,
        })
    }

    fn params(&self) -> &ParamTable {
        self.inner.params()
    }
    fn program_bytes(&self, program: ProgramId) -> u64 {
        self.inner.program_bytes(program)
    }
    fn held_by_programs(&self) -> u64 {
        self.inner.held_by_programs()
    }
    fn release(&mut self, going_on: &[ProgramId]) -> Result<()> {
        self.inner.release(going_on)
    }
    fn write(&mut self, program: ProgramId, input: &str, data: Data) -> Result<()> {
        self.inner.write(program, input, data)
    }
    fn run(&mut self, program: ProgramId) -> Result<()> {
        self.inner.run(program)
    }
    fn run_and_update(&mut self, program: ProgramId, update: &Update) -> Result<Updated> {
        self.inner.run_and_update(program, update)
    }
    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        self.inner.read(program, output)
    }
    fn weight(&mut self, id: ParamId) -> Result<Vec<f32>> {
        self.inner.weight(id)
    }
    fn set_weight(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        self.inner.set_weight(id, values)
    }
    fn gradient(&mut self, id: ParamId) -> Result<Vec<f32>> {
        self.inner.gradient(id)
    }
    fn keep_averages(&mut self) -> Result<()> {
        self.inner.keep_averages()
    }
    fn follow_weights(&mut self, fresh: f32) -> Result<()> {
        self.inner.follow_weights(fresh)
    }
    fn exchange_averages(&mut self) -> Result<()> {
        self.inner.exchange_averages()
    }
    fn average(&mut self, id: ParamId) -> Result<Vec<f32>> {
        self.inner.average(id)
    }
    fn set_average(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        self.inner.set_average(id, values)
    }
    fn moments(&mut self) -> Result<BTreeMap<String, Vec<u8>>> {
        self.inner.moments()
    }
    fn restore_moments(&mut self, moments: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        self.inner.restore_moments(moments)
    }
}

/// A VAE of random weights, with so much room for programs.
fn autoencoder(most_bytes: u64) -> Networks {
    let config = vae_config();
    let plan = Plan {
        vae: Some(config.clone()),
        ..Plan::default()
    };
    let settings = OptimizerSettings {
        moments: Moments::F32,
        beta1: 0.9,
        beta2: 0.999,
        weight_decay: 0.,
        epsilon: 1e-8,
        low_memory: None,
    };
    let inner = CpuSession::new(plan.params().unwrap(), settings).unwrap();
    let mut networks = Networks::new(plan, Box::new(Narrow { inner, most_bytes }));
    let weights = random_weights(ModelConfig::Vae(&config), 1).unwrap();
    networks.load(Part::Vae, &weights).unwrap();
    networks
}

fn latents(height: usize, width: usize) -> Tensor {
    let values: Vec<f32> = noise(4 * height * width, 7)
        .into_iter()
        .map(|value| value as f32)
        .collect();
    Tensor::from_vec(values, (1, 4, height, width), &Device::Cpu).unwrap()
}

#[test]
fn what_was_done_leaves_no_memory_behind_and_can_be_done_again() {
    let (mut networks, z) = (autoencoder(u64::MAX), latents(9, 12));
    let images = networks.decode(&z).unwrap();
    let of_decoding = networks.session().held_by_programs();
    networks.encode(&images).unwrap();
    assert!(of_decoding > 0 && networks.session().held_by_programs() > of_decoding);
    networks.release(|task| matches!(task, Task::Decode { .. })).unwrap();
    assert!((1..=of_decoding).contains(&networks.session().held_by_programs()));
    networks.release(|_| false).unwrap();
    assert_eq!(networks.session().held_by_programs(), 0);
    let program = networks
        .program(Task::Decode {
            part: Part::Vae,
            map: Map::of(&z).unwrap(),
        })
        .unwrap();
    assert!(networks.session().read(program, "output").is_err());
    assert_eq!(values(&networks.decode(&z).unwrap()).unwrap(), values(&images).unwrap());
}

#[test]
fn what_has_no_room_is_decoded_in_tiles() {
    let (mut free, z) = (autoencoder(u64::MAX), latents(20, 40));
    let whole = free.decode(&z).unwrap();
    let needs = free.session().held_by_programs();
    let mut narrow = autoencoder(needs * 2 / 3);
    let tiled = narrow.decode(&z).unwrap();
    assert_eq!(narrow.tiles.values().collect::<Vec<_>>(), [&24]);
    assert_eq!(
        values(&tiled).unwrap(),
        values(&free.decode_in_tiles(&z, 24).unwrap()).unwrap()
    );
    assert_eq!(whole.dims(), tiled.dims());
    // One tile is the whole.
    let one = free.decode_in_tiles(&z, 48).unwrap();
    let off = (one - &whole)
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap();
    assert!(off.to_scalar::<f32>().unwrap() < 1e-5, "{off}");

    let hopeless = autoencoder(1000).decode(&z);
    assert!(
        matches!(hopeless, Err(NetworkError::Engine(EngineError::OutOfMemory { .. }))),
        "{hopeless:?}"
    );
}
