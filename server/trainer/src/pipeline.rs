//! Text to image: prompts are encoded, noise is walked to latents under classifier-free guidance, latents are decoded.

use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, IndexOp, Tensor};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{DynamicImage, ImageEncoder, RgbImage};

use crate::engine::nets::error::NetworkError;
use crate::engine::nets::networks::Networks;
use crate::models::config::SchedulerConfig;
use crate::noise::TorchGenerator;
use crate::schedulers::{self, SamplerKind, SchedulerError};
use crate::store::{self, StoreError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Longest side of a preview.
const PREVIEW_PX: u32 = 256;
const PREVIEW_QUALITY: u8 = 85;
/// Pixels a latent stands for, each way.
pub const LATENT_PX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("{what} is {got}; it must be a multiple of 8, such as {nearest}")]
    Side {
        what: &'static str,
        got: usize,
        nearest: usize,
    },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("cannot encode an image")]
    Encode(#[from] image::ImageError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What to draw. Seeds come with the call, one an image.
#[derive(Clone, Debug)]
pub struct SampleRequest {
    pub prompt: String,
    pub negative_prompt: String,
    /// At 1 or less the negative prompt is not asked.
    pub guidance_scale: f64,
    pub num_inference_steps: usize,
    pub sampler: SamplerKind,
    pub karras: bool,
    pub width_px: usize,
    pub height_px: usize,
    /// Layers of the text encoder left out at its end, counted from 1 as WebUIs do; 1 = none.
    pub clip_skip: usize,
}

/// One drawn image.
#[derive(Debug)]
pub struct Picture {
    pub rgb: RgbImage,
    /// The model gave numbers all the way; otherwise the pixels mean nothing.
    pub finite: bool,
}

/// Is told after each sampling step (`done`, `of`) and may end the drawing.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

/// The parts that draw. Borrowed, so that samples use the weights under training without a copy.
pub struct Pipeline<'a> {
    pub networks: &'a mut Networks,
    pub vae_scaling_factor: f64,
    pub latent_channels: usize,
    pub tokenizer: &'a Tokenizer,
    pub scheduler: &'a SchedulerConfig,
}

impl Pipeline<'_> {
    /// Draws one image a seed, in one batch; each equals the image that its seed gives alone in diffusers with a CPU
    /// generator. `None` when `progress` ended it.
    ///
    /// # Errors
    /// A wrong request, or what the models answer.
    pub fn draw(
        &mut self,
        request: &SampleRequest,
        seeds: &[u64],
        progress: Progress,
    ) -> Result<Option<Vec<Picture>>, PipelineError> {
        for (what, got) in [("width", request.width_px), ("height", request.height_px)] {
            if got % LATENT_PX != 0 || got == 0 {
                let nearest = ((got + LATENT_PX / 2) / LATENT_PX).max(1) * LATENT_PX;
                return Err(PipelineError::Side { what, got, nearest });
            }
        }
        let shape = (
            1,
            self.latent_channels,
            request.height_px / LATENT_PX,
            request.width_px / LATENT_PX,
        );
        let mut generators: Vec<TorchGenerator> = seeds.iter().map(|seed| TorchGenerator::new(*seed)).collect();
        let mut draw_noise = || -> Result<Tensor, candle_core::Error> {
            let rows: Result<Vec<Tensor>, _> = generators.iter_mut().map(|g| g.randn(shape)).collect();
            Tensor::cat(&rows?, 0)
        };
        let start = draw_noise()?;
        let Some(latents) = self.denoise(request, &start, &mut draw_noise, progress)? else {
            return Ok(None);
        };
        // One at a time: decoding takes far more memory than a sampling step.
        let mut pictures = Vec::new();
        for row in 0..seeds.len() {
            pictures.push(to_picture(&self.decode(&latents.i(row..row + 1)?)?)?);
        }
        Ok(Some(pictures))
    }

    /// Walks noise `start` [n, c, h/8, w/8], standard normal, to latents. `None` when `progress` ended it.
    ///
    /// # Errors
    /// A wrong request, or what the models answer.
    pub fn denoise(
        &mut self,
        request: &SampleRequest,
        start: &Tensor,
        draw_noise: &mut dyn FnMut() -> Result<Tensor, candle_core::Error>,
        progress: Progress,
    ) -> Result<Option<Tensor>, PipelineError> {
        let mut sampler = schedulers::build(
            request.sampler,
            request.karras,
            self.scheduler,
            request.num_inference_steps,
        )?;
        let guided = request.guidance_scale > 1.0;
        let context = self.context(request, start.dim(0)?, guided)?;
        let timesteps = sampler.timesteps().to_vec();
        let mut x = (start * sampler.init_noise_sigma())?;
        for (i, timestep) in timesteps.iter().enumerate() {
            let input = sampler.scale_model_input(&x, i)?;
            let input = if guided {
                Tensor::cat(&[&input, &input], 0)?
            } else {
                input
            };
            let timesteps = vec![*timestep as f32; input.dim(0)?];
            let output = self.networks.predict(&input, &timesteps, &context)?;
            let output = if guided {
                let halves = output.chunk(2, 0)?;
                (&halves[0] + ((&halves[1] - &halves[0])? * request.guidance_scale)?)?
            } else {
                output
            };
            let noise = if sampler.draws_noise() {
                Some(draw_noise()?)
            } else {
                None
            };
            x = sampler.step(&output, i, &x, noise.as_ref())?;
            if progress(i + 1, timesteps.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(x))
    }

    /// [negative..., positive...] states of the text encoder, or the positive ones alone.
    fn context(&mut self, request: &SampleRequest, rows: usize, guided: bool) -> Result<Tensor, PipelineError> {
        let mut encode = |prompt: &str| -> Result<Tensor, PipelineError> {
            let ids = self.tokenizer.encode(prompt, true)?.ids;
            let states = self.networks.text(&ids, 1, request.clip_skip)?;
            Ok(states.repeat((rows, 1, 1))?)
        };
        let positive = encode(&request.prompt)?;
        if !guided {
            return Ok(positive);
        }
        let negative = encode(&request.negative_prompt)?;
        Ok(Tensor::cat(&[negative, positive], 0)?)
    }

    /// Latents to images in -1..1, [n, 3, h, w].
    ///
    /// # Errors
    /// What the VAE answers.
    pub fn decode(&mut self, latents: &Tensor) -> Result<Tensor, PipelineError> {
        Ok(self.networks.decode(&(latents / self.vae_scaling_factor)?)?)
    }
}

/// An image [1, 3, h, w] in -1..1 as 8-bit pixels.
///
/// # Errors
/// When it has another shape.
pub fn to_picture(image: &Tensor) -> Result<Picture, PipelineError> {
    let (_, _, height, width) = image.dims4()?;
    let planes = image.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let finite = planes.iter().all(|v| v.is_finite());
    // numpy rounds a half to the even neighbour.
    let level = |v: f32| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let plane = width * height;
    let rgb = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = y as usize * width + x as usize;
        image::Rgb([0, 1, 2].map(|channel| level(planes[channel * plane + at])))
    });
    Ok(Picture { rgb, finite })
}

/// Writes a PNG, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn save_png(rgb: &RgbImage, path: &Path) -> Result<(), PipelineError> {
    let mut bytes = Vec::new();
    let (width, height) = rgb.dimensions();
    PngEncoder::new(&mut bytes).write_image(rgb, width, height, image::ExtendedColorType::Rgb8)?;
    Ok(store::write_atomic(path, &bytes)?)
}

/// Writes a small JPEG, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn save_preview(rgb: &RgbImage, path: &Path) -> Result<(), PipelineError> {
    let mut bytes = Cursor::new(Vec::new());
    let encoder = JpegEncoder::new_with_quality(&mut bytes, PREVIEW_QUALITY);
    if rgb.width().max(rgb.height()) > PREVIEW_PX {
        let filter = image::imageops::FilterType::CatmullRom;
        let small = DynamicImage::ImageRgb8(rgb.clone()).resize(PREVIEW_PX, PREVIEW_PX, filter);
        small.write_with_encoder(encoder)?;
    } else {
        rgb.write_with_encoder(encoder)?;
    }
    Ok(store::write_atomic(path, bytes.get_ref())?)
}
