//! `sample`: draws images with a model.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use trainer::base_model::{self, LogWatch};
use trainer::device;
use trainer::dreambooth::learner::Learner;
use trainer::dreambooth::{STOPPED_STATUS, Stop};
use trainer::pipeline::{self, LATENT_PX, SampleRequest};
use trainer::schedulers::{SamplerKind, SchedulerError};

use super::{WrongUse, with_lora};

/// Images drawn in one batch.
const BATCH: usize = 4;

#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct SampleArgs {
    /// `starter`, a diffusers folder, a .safetensors or .ckpt file, or a Hub id
    #[arg(long)]
    model: String,
    /// Branch, tag or commit of a Hub id
    #[arg(long)]
    revision: Option<String>,
    /// A LoRA to add to the model first
    #[arg(long)]
    lora: Option<PathBuf>,
    #[arg(long)]
    prompt: String,
    #[arg(long, default_value = "")]
    negative_prompt: String,
    /// ddim, pndm, lms, euler, euler_a, dpmpp_2m, unipc or ddpm
    #[arg(long, default_value = "ddim")]
    scheduler: String,
    /// Noise levels by Karras et al., where the sampler has them
    #[arg(long)]
    karras: bool,
    /// Sampling steps
    #[arg(long, default_value_t = 24, value_parser = at_least_one)]
    steps: usize,
    #[arg(long, default_value_t = 7.5)]
    guidance_scale: f64,
    /// Of the first image; each further one has the next seed
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    num_samples: usize,
    /// In pixels; by default the model's own
    #[arg(long, value_parser = side)]
    width: Option<usize>,
    /// In pixels; by default the model's own
    #[arg(long, value_parser = side)]
    height: Option<usize>,
    /// 2 leaves the text encoder's last layer out
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    clip_skip: usize,
    /// Folder for the images, 0.png and on
    #[arg(long, default_value = "samples")]
    out: PathBuf,
    /// cpu or cuda; by default what this build is for
    #[arg(long)]
    device: Option<String>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

/// A multiple of `LATENT_PX`.
fn side(text: &str) -> Result<usize, String> {
    let got = at_least_one(text)?;
    if got.is_multiple_of(LATENT_PX) {
        return Ok(got);
    }
    let nearest = ((got + LATENT_PX / 2) / LATENT_PX).max(1) * LATENT_PX;
    Err(format!("it must be a multiple of {LATENT_PX}, such as {nearest}"))
}

pub fn run(args: &SampleArgs) -> anyhow::Result<ExitCode> {
    let sampler: SamplerKind = args
        .scheduler
        .parse()
        .map_err(|e| WrongUse(format!("--scheduler: {e}")))?;
    if args.karras && !sampler.has_karras() {
        return Err(WrongUse(format!("--karras: {}", SchedulerError::Karras(sampler))).into());
    }
    if !args.negative_prompt.is_empty() && args.guidance_scale <= 1.0 {
        tracing::warn!("--negative_prompt has no effect with a guidance scale of 1 or less");
    }
    let device = device::open(args.device.as_deref()).map_err(|e| WrongUse(format!("--device: {e}")))?;
    let base = base_model::load(&args.model, args.revision.as_deref(), &mut LogWatch::default())?;
    let weights = with_lora(base, args.lora.as_deref())?;
    let layers = weights.text_encoder_config.num_hidden_layers;
    if args.clip_skip > layers {
        let words = format!(
            "--clip_skip: it is {} and must be at most {layers}, the text encoder's layers",
            args.clip_skip
        );
        return Err(WrongUse(words).into());
    }
    let own_side = weights.unet_config.sample_size * LATENT_PX;
    let mut learner = Learner::for_drawing(weights, &device)?;
    let request = SampleRequest {
        prompt: args.prompt.clone(),
        negative_prompt: args.negative_prompt.clone(),
        guidance_scale: args.guidance_scale,
        num_inference_steps: args.steps,
        sampler,
        karras: args.karras,
        width_px: args.width.unwrap_or(own_side),
        height_px: args.height.unwrap_or(own_side),
        clip_skip: args.clip_skip,
    };
    for prompt in [&request.prompt, &request.negative_prompt] {
        if let Some(cut) = learner.tokenizer.encode(prompt, false)?.cut {
            tracing::warn!("a prompt is too long; these words were left out: {cut}");
        }
    }
    let stop = Stop::signals()?;
    let indices: Vec<usize> = (0..args.num_samples).collect();
    for group in indices.chunks(BATCH) {
        let seeds: Vec<u64> = group.iter().map(|i| args.seed.wrapping_add(*i as u64)).collect();
        let mut progress = |done: usize, of: usize| {
            tracing::debug!("sampling step {done} of {of}");
            if stop.asked() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let Some(pictures) = learner.pipeline().draw(&request, &seeds, &mut progress)? else {
            return Ok(ExitCode::from(STOPPED_STATUS as u8));
        };
        for (index, picture) in group.iter().zip(pictures) {
            anyhow::ensure!(picture.finite, "image {index} is black: the model gave no numbers");
            let path = args.out.join(format!("{index}.png"));
            pipeline::save_png(&picture.rgb, &path)?;
            // For whoever takes them further: one path a line.
            writeln!(std::io::stdout(), "{}", path.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
