//! `pretrain evaluate`: how well a starter draws what it is asked for, and gives photographs back.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use image::{Rgb, RgbImage, imageops};
use serde::Serialize;

use super::autoencoder::reconstruction_psnr_db;
use super::captions::{HELD_OUT, noun_of, nouns, prompt};
use super::data::StarterData;
use super::judge::Judge;
use super::starter::SIDE_PX;
use super::{PretrainError, captions};
use crate::device::Device;
use crate::dreambooth::learner::Learner;
use crate::engine::nets::networks::values;
use crate::formats;
use crate::pipeline::{self, SampleRequest};
use crate::schedulers::SamplerKind;

/// Times that the forty held-out combinations are composed, to judge the judge.
const JUDGED_TIMES: u64 = 10;
const PHOTO_CROPS: usize = 32;
/// Pictures that go through the autoencoder at once.
const ROWS: usize = 8;
const STEPS: usize = 24;
/// Pictures in a row of the figure, and the frame around each that tells the verdict.
const COLUMNS: u32 = 8;
const FRAME_PX: u32 = 4;

/// What to evaluate, and how.
#[derive(Clone, Debug)]
pub struct Evaluation {
    pub data: PathBuf,
    /// Receives `evaluation.json` and `evaluation.png`.
    pub work: PathBuf,
    /// `starter`, or a folder that `pretrain diffusion` wrote.
    pub model: String,
    pub guidance_scale: f64,
    /// Of the judge's training.
    pub updates: u64,
    pub seed: u64,
    pub device: Device,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub guidance_scale: f64,
    /// Of the judge on held-out combinations, as composed and as the model's autoencoder gives them back.
    pub judge_accuracy: f64,
    pub judge_accuracy_through_autoencoder: f64,
    /// Of the drawings of the forty prompts.
    pub top1: f64,
    /// Mean over crops of held-out photographs.
    pub psnr_db: f64,
    pub drawings: Vec<Verdict>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub prompt: String,
    pub seed: u64,
    pub judged: &'static str,
    pub right: bool,
}

/// Trains the judge, draws, judges and writes the report.
///
/// # Errors
/// When the model or the data cannot be read, a result cannot be written, or the device gives out.
pub fn evaluate(evaluation: &Evaluation) -> Result<Report, PretrainError> {
    let data = StarterData::open(&evaluation.data, SIDE_PX, evaluation.seed)?;
    let model = load(&evaluation.model)?;
    let mut learner = Learner::for_drawing(model, &evaluation.device).map_err(super::failed)?;
    let mut judge = Judge::train(&data, evaluation.updates, evaluation.seed, &evaluation.device)?;

    let (mut right, mut right_through, mut count) = (0, 0, 0);
    for time in 0..JUDGED_TIMES {
        let (pixels, shown) = data.held_out(time);
        right += agreeing(&judge.nouns(&pixels)?, &shown);
        let (through, _) = through_autoencoder(&mut learner, &pixels)?;
        right_through += agreeing(&judge.nouns(&through)?, &shown);
        count += shown.len();
    }
    let (_, db) = through_autoencoder(&mut learner, &data.held_out_photos(PHOTO_CROPS))?;

    let mut figure = Figure::new(HELD_OUT.len() as u32);
    let mut drawings = Vec::new();
    for ((label, style, colour), index) in HELD_OUT.into_iter().zip(0u32..) {
        let prompt = prompt((label, style, colour));
        let seed = evaluation.seed + u64::from(index);
        let (pixels, picture) = draw(&mut learner, &prompt, seed, evaluation.guidance_scale)?;
        let judged = judge.nouns(&pixels)?.first().copied().unwrap_or_default();
        let info = captions::PictureInfo {
            label: label.into(),
            ..captions::PictureInfo::default()
        };
        let right = noun_of(&info) == Some(judged);
        figure.put(index, &picture, right);
        drawings.push(Verdict {
            prompt,
            seed,
            judged: nouns()[judged],
            right,
        });
    }
    let report = Report {
        model: evaluation.model.clone(),
        guidance_scale: evaluation.guidance_scale,
        judge_accuracy: f64::from(right) / count as f64,
        judge_accuracy_through_autoencoder: f64::from(right_through) / count as f64,
        top1: drawings.iter().filter(|drawing| drawing.right).count() as f64 / drawings.len() as f64,
        psnr_db: db.iter().map(|db| f64::from(*db)).sum::<f64>() / db.len() as f64,
        drawings,
    };
    let path = evaluation.work.join("evaluation.png");
    pipeline::save_png(&figure.0, &path).map_err(drawing)?;
    let path = evaluation.work.join("evaluation.json");
    let text = serde_json::to_vec_pretty(&report).map_err(|source| PretrainError::Index {
        path: path.clone(),
        source,
    })?;
    std::fs::write(&path, text).map_err(|source| PretrainError::Write { path, source })?;
    Ok(report)
}

/// The shipped starter, or a folder with packed token rows, which only `pretrain` writes.
fn load(model: &str) -> Result<formats::ModelWeights, PretrainError> {
    let loaded = match model {
        app::recipe::STARTER => formats::load(model),
        folder => formats::load_packed(Path::new(folder)),
    };
    loaded.map_err(|source| PretrainError::Model(Box::new(source)))
}

fn agreeing(judged: &[usize], shown: &[usize]) -> u32 {
    judged.iter().zip(shown).map(|(a, b)| u32::from(a == b)).sum()
}

/// `[rows, 3, 128, 128]` encoded and decoded, and the PSNR of each in dB.
fn through_autoencoder(learner: &mut Learner, pixels: &[f32]) -> Result<(Vec<f32>, Vec<f32>), PretrainError> {
    let side = SIDE_PX as usize;
    let (mut through, mut psnr) = (Vec::new(), Vec::new());
    for rows in pixels.chunks(ROWS * 3 * side * side) {
        let shape = (rows.len() / (3 * side * side), 3, side, side);
        let x = Tensor::from_slice(rows, shape, &candle_core::Device::Cpu)?;
        let (y, db) = reconstruction_psnr_db(&mut learner.networks, &x)?;
        through.extend(values(&y)?);
        psnr.extend(db);
    }
    Ok((through, psnr))
}

/// What a prompt gives: as `[3, 128, 128]` in -1 to 1 and as a picture.
fn draw(
    learner: &mut Learner,
    prompt: &str,
    seed: u64,
    guidance_scale: f64,
) -> Result<(Vec<f32>, RgbImage), PretrainError> {
    let request = SampleRequest {
        prompt: prompt.into(),
        negative_prompt: String::new(),
        guidance_scale,
        num_inference_steps: STEPS,
        sampler: SamplerKind::Ddim,
        karras: false,
        width_px: SIDE_PX as usize,
        height_px: SIDE_PX as usize,
        clip_skip: 1,
    };
    let mut go_on = |_, _| ControlFlow::Continue(());
    let drawn = learner
        .pipeline()
        .draw(&request, &[seed], &mut go_on)
        .map_err(drawing)?;
    let picture = drawn.into_iter().flatten().next();
    let rgb = picture.map_or_else(|| RgbImage::new(SIDE_PX, SIDE_PX), |picture| picture.rgb);
    let planes = (0..3).flat_map(|channel| rgb.pixels().map(move |pixel| f32::from(pixel.0[channel]) / 127.5 - 1.0));
    Ok((planes.collect(), rgb))
}

fn drawing(source: pipeline::PipelineError) -> PretrainError {
    PretrainError::Drawing(Box::new(source))
}

/// Drawings in order of their prompts, framed green where the judge agrees and red where not.
struct Figure(RgbImage);

impl Figure {
    const CELL_PX: u32 = SIDE_PX + 2 * FRAME_PX;

    fn new(pictures: u32) -> Self {
        let rows = pictures.div_ceil(COLUMNS);
        Self(RgbImage::new(COLUMNS * Self::CELL_PX, rows * Self::CELL_PX))
    }

    fn put(&mut self, index: u32, picture: &RgbImage, right: bool) {
        let colour = if right { [40, 150, 70] } else { [200, 40, 40] };
        let mut cell = RgbImage::from_pixel(Self::CELL_PX, Self::CELL_PX, Rgb(colour));
        let frame = i64::from(FRAME_PX);
        imageops::replace(&mut cell, picture, frame, frame);
        let (x, y) = (index % COLUMNS, index / COLUMNS);
        imageops::replace(
            &mut self.0,
            &cell,
            (x * Self::CELL_PX).into(),
            (y * Self::CELL_PX).into(),
        );
    }
}
