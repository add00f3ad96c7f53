//! Times the pieces of a training step of a small model on the CPU, on random weights:
//! `cargo run --release -p trainer --example step_time [rows] [steps]`. One line a piece, ms: median, fastest, and the processor time
//! of all threads, which says more on a busy machine.

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use trainer::{
    models::{
        ModelConfig,
        config::{TextEncoderConfig, UNetConfig, VaeConfig},
        params::Params,
        random_weights,
        text_encoder::ClipTextModel,
        unet::UNet2DConditionModel,
        vae::AutoencoderKl,
    },
    ops,
};

const UNET: &str = r#"{"sample_size": 16, "block_out_channels": [64, 128, 128, 192], "cross_attention_dim": 128,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 4, 4, 6]}"#;
const TEXT_ENCODER: &str = r#"{"vocab_size": 49408, "hidden_size": 128, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 4}"#;
const VAE: &str = r#"{"block_out_channels": [32, 64, 64, 64]}"#;

fn main() -> Result<()> {
    // SAFETY: nothing has started a thread yet.
    unsafe { ops::keep_candle_on_one_thread() };
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let rows = arguments.next().transpose()?.unwrap_or(4);
    let steps = arguments.next().transpose()?.unwrap_or(10);
    let device = Device::Cpu;
    let unet_config: UNetConfig = serde_json::from_str(UNET)?;
    let text_config: TextEncoderConfig = serde_json::from_str(TEXT_ENCODER)?;
    let vae_config: VaeConfig = serde_json::from_str(VAE)?;
    let trainable =
        |config| -> Result<Params> { Ok(Params::trainable(&random_weights(config, 1)?, DType::F32, &device)?) };
    let unet_params = trainable(ModelConfig::UNet(&unet_config))?;
    let text_params = trainable(ModelConfig::TextEncoder(&text_config))?;
    let unet = UNet2DConditionModel::new(&unet_config, &unet_params)?;
    let text_encoder = ClipTextModel::new(&text_config, &text_params)?;
    let vae_params = trainable(ModelConfig::Vae(&vae_config))?;
    let vae = AutoencoderKl::new(&vae_config, &vae_params)?;
    let count = |params: &Params| params.vars().values().map(|var| var.elem_count()).sum::<usize>();
    println!(
        "{rows} rows, {steps} times, {} threads; U-Net {}, text encoder {}, VAE {} weights",
        std::thread::available_parallelism()?,
        count(&unet_params),
        count(&text_params),
        count(&vae_params)
    );

    let latents = Tensor::randn(0f32, 1., (rows, 4, 16, 16), &device)?;
    let timesteps = Tensor::new(vec![500f32; rows], &device)?;
    let ids = Tensor::new((0..rows as u32 * 77).collect::<Vec<_>>(), &device)?.reshape((rows, 77))?;
    let images = Tensor::randn(0f32, 1., (rows, 3, 128, 128), &device)?;

    let context = text_encoder.forward(&ids)?.detach();
    time("unet forward", steps, || {
        Ok(unet.forward(&latents, &timesteps, &context)?)
    })?;
    time("unet forward and backward", steps, || {
        let prediction = unet.forward(&latents, &timesteps, &context)?;
        Ok(ops::mse(&prediction, &latents)?.backward()?)
    })?;
    time("step: text encoder and unet, forward and backward", steps, || {
        let prediction = unet.forward(&latents, &timesteps, &text_encoder.forward(&ids)?)?;
        Ok(ops::mse(&prediction, &latents)?.backward()?)
    })?;
    let image = images.narrow(0, 0, 1)?;
    let latent = latents.narrow(0, 0, 1)?;
    time("vae encode, one image of 128", steps, || Ok(vae.encode(&image)?))?;
    time("vae decode, one image of 128", steps, || Ok(vae.decode(&latent)?))?;
    time("vae, forward and backward, all rows", steps.min(3), || {
        let decoded = vae.decode(&vae.encode(&images)?.mean)?;
        Ok(ops::mse(&decoded, &images)?.backward()?)
    })
}

fn time<T>(what: &str, times: usize, mut run: impl FnMut() -> Result<T>) -> Result<()> {
    run()?;
    let mut millis = Vec::with_capacity(times);
    let before = processor_millis();
    for _ in 0..times {
        let start = Instant::now();
        run()?;
        millis.push(start.elapsed().as_secs_f64() * 1e3);
    }
    millis.sort_by(f64::total_cmp);
    let processor = (processor_millis() - before) / times as f64;
    println!(
        "{what:<52} {:>8.1} {:>8.1} {processor:>8.1}",
        millis[millis.len() / 2],
        millis[0]
    );
    Ok(())
}

/// Of this process so far, from Linux's count of hundredths of a second; 0 elsewhere.
fn processor_millis() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, the name in brackets, may hold blanks; user and system time are fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        * 10.
}
