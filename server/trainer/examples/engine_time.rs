//! Times the engine on the CPU with a small model on random weights:
//! `cargo run --release -p trainer --example engine_time [rows] [times]`. One line a piece, ms: median, fastest.

use std::{collections::BTreeMap, time::Instant};

use anyhow::Result;
use trainer::{
    engine::{
        autodiff::{Backward, backward},
        builder::{Builder, Scope},
        cpu::CpuSession,
        ir::{Group, Kind, ParamId, ParamTable, Program},
        nets::{
            text_encoder::text_encoder,
            unet::{UNetInputs, sinusoids, unet},
            vae,
        },
        session::{Data, Moments, OptimizerSettings, Session, Update},
    },
    models::config::{TextEncoderConfig, UNetConfig, VaeConfig},
};

const UNET: &str = r#"{"sample_size": 16, "block_out_channels": [64, 128, 128, 192], "cross_attention_dim": 128,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 4, 4, 6]}"#;
const TEXT_ENCODER: &str = r#"{"vocab_size": 49408, "hidden_size": 128, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 4}"#;
const VAE: &str = r#"{"block_out_channels": [32, 64, 64, 64]}"#;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let rows = arguments.next().transpose()?.unwrap_or(4);
    let times = arguments.next().transpose()?.unwrap_or(10);
    let unet_config: UNetConfig = serde_json::from_str(UNET)?;
    let text_config: TextEncoderConfig = serde_json::from_str(TEXT_ENCODER)?;
    let vae_config: VaeConfig = serde_json::from_str(VAE)?;
    let mut table = ParamTable::default();

    let sample = |table: &mut ParamTable, rows: usize| -> Result<_> {
        let mut b = Builder::new(table);
        let latents = b.input("latents", &[rows, 16, 16, 4], Kind::Activation);
        let time = b.input("time", &[rows, 64], Kind::Activation);
        let ids = b.input("ids", &[rows, 77], Kind::Ids);
        let text_scope = Scope::new("text_encoder", Group::TextEncoder, true);
        let context = text_encoder(&mut b, &text_config, ids, 1, &text_scope)?;
        let inputs = UNetInputs { latents, time, context };
        let scope = Scope::new("unet", Group::UNet, true);
        let predicted = unet(&mut b, &unet_config, inputs, &scope)?;
        let target = b.input("target", &[rows, 16, 16, 4], Kind::F32);
        let weights = b.input("weights", &[rows], Kind::F32);
        let scale = b.input("scale", &[1], Kind::F32);
        let (losses, dpredicted) = b.mse(predicted, target, weights, scale);
        b.output("losses", losses);
        Ok((b.finish()?, predicted, dpredicted))
    };
    let (forward, predicted, dpredicted) = sample(&mut table, rows)?;
    let step = backward(forward.clone(), &table, &[(predicted, dpredicted)], Backward::default())?;
    let mut b = Builder::new(&mut table);
    let latent = b.input("latent", &[1, 16, 16, 4], Kind::Activation);
    let image = vae::decode(&mut b, &vae_config, latent, &Scope::new("vae", Group::Vae, false))?;
    b.output("image", image);
    let decode = b.finish()?.program;

    let settings = OptimizerSettings {
        moments: Moments::F32,
        beta1: 0.9,
        beta2: 0.999,
        weight_decay: 0.01,
        epsilon: 1e-8,
        low_memory: None,
    };
    let count: usize = table.params.iter().map(|param| param.len()).sum();
    let mut session = CpuSession::new(table, settings)?;
    for (index, param) in session.params().clone().params.iter().enumerate() {
        let spread = (param.len() as f32 / param.dims[0] as f32).sqrt().recip();
        let values = noise(param.len(), index as u32 + 1, spread);
        session.set_weight(ParamId(index as u32), &values)?;
    }
    println!(
        "{rows} rows, {times} times, {} threads, {count} weights, {} instructions",
        rayon::current_num_threads(),
        step.code.len()
    );
    let compile = |session: &mut CpuSession, program: Program| -> Result<_> {
        let lengths: BTreeMap<String, (usize, Kind)> = (program.inputs.iter())
            .map(|(name, &id)| (name.clone(), (program.value(id).len(), program.value(id).kind)))
            .collect();
        let id = session.compile(program)?;
        for (name, (len, kind)) in lengths {
            match (name.as_str(), kind) {
                (_, Kind::Ids) => {
                    session.write(id, &name, Data::Ids(&(0..len as u32).collect::<Vec<_>>()))?;
                }
                ("time", _) => session.write(id, &name, Data::F32(&sinusoids(&unet_config, &vec![500.; rows])))?,
                ("weights" | "scale", _) => session.write(id, &name, Data::F32(&vec![1.; len]))?,
                _ => session.write(id, &name, Data::F32(&noise(len, 7, 1.)))?,
            }
        }
        Ok(id)
    };
    let forward = compile(&mut session, forward.program)?;
    let step = compile(&mut session, step)?;
    let decode = compile(&mut session, decode)?;
    time("forward", times, || Ok(session.run(forward)?))?;
    time("forward and backward", times, || Ok(session.run(step)?))?;
    let mut number = 0;
    time("forward, backward and update", times, || {
        number += 1;
        let update = Update {
            learning_rates: BTreeMap::from([(Group::UNet, 1e-5), (Group::TextEncoder, 1e-5)]),
            max_grad_norm: 1.,
            loss_scale: 1.,
            number,
        };
        session.run_and_update(step, &update)?;
        Ok(())
    })?;
    time("vae decode, one image of 128", times, || Ok(session.run(decode)?))
}

/// Values within `spread` around 0.
fn noise(len: usize, seed: u32, spread: f32) -> Vec<f32> {
    let mut state = u64::from(seed) * 0x9e37_79b9_7f4a_7c15;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2. * spread
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn time(what: &str, times: usize, mut run: impl FnMut() -> Result<()>) -> Result<()> {
    run()?;
    let mut millis = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        run()?;
        millis.push(start.elapsed().as_secs_f64() * 1e3);
    }
    millis.sort_by(f64::total_cmp);
    println!("{what:<40} {:>8.1} {:>8.1}", millis[millis.len() / 2], millis[0]);
    Ok(())
}
