//! Prompt to picture against diffusers' `StableDiffusionPipeline`.

use std::ops::ControlFlow;

use candle_core::{DType, Tensor};
use trainer::device::Device;
use trainer::dreambooth::learner::Learner;
use trainer::formats;
use trainer::pipeline::{self, SampleRequest};
use trainer::schedulers::SamplerKind;

use super::support::{Table, load, relmax, values};

const LATENTS_TOLERANCE: f64 = 5e-5;
/// Of the values that may be one level off.
const LEVELS_SHARE: f64 = 0.01;

fn agrees(name: &'static str, sampler: &str, steps: usize, (width_px, height_px): (usize, usize)) {
    let golden = load(format!("txt2img/{name}.safetensors"));
    let folder = super::dir().join("tiny-sd");
    let weights = formats::load(folder.to_str().unwrap()).unwrap();
    let mut learner = Learner::for_drawing(weights, &Device::Cpu).unwrap();
    let request = SampleRequest {
        prompt: "a photo of zwx dog in a bucket, highly detailed".into(),
        negative_prompt: "blurry, low quality".into(),
        guidance_scale: 7.5,
        num_inference_steps: steps,
        sampler: sampler.parse::<SamplerKind>().unwrap(),
        karras: false,
        width_px,
        height_px,
        clip_skip: 1,
    };
    let mut no_noise = || -> candle_core::Result<Tensor> { panic!("a deterministic sampler asks for no noise") };
    let mut calls = 0;
    let mut count = |_done: usize, _of: usize| {
        calls += 1;
        ControlFlow::Continue(())
    };
    let mut pipeline = learner.pipeline();
    let latents = pipeline.denoise(&request, &golden["latents0"], &mut no_noise, &mut count);
    let latents = latents.unwrap().expect("it is not stopped");
    let decoded = pipeline.decode(&latents).unwrap();
    let picture = pipeline::to_picture(&decoded).unwrap();
    assert!(picture.finite);

    let mut table = Table::new(name);
    table.check("latents", relmax(&latents, &golden["latents"]), LATENTS_TOLERANCE);
    if let Some(want) = golden.get("decoded") {
        table.check("decoded", relmax(&decoded, want), LATENTS_TOLERANCE);
    }
    let want = values(&golden["image_u8"].to_dtype(DType::F64).unwrap());
    let got: Vec<f64> = picture.rgb.as_raw().iter().map(|v| f64::from(*v)).collect();
    assert_eq!(got.len(), want.len());
    let off: Vec<f64> = got
        .iter()
        .zip(&want)
        .map(|(a, b)| (a - b).abs())
        .filter(|d| *d > 0.0)
        .collect();
    table.check("largest level difference", off.iter().copied().fold(0.0, f64::max), 1.0);
    table.check(
        "share of differing levels",
        off.len() as f64 / want.len() as f64,
        LEVELS_SHARE,
    );
    table.finish();
}

#[test]
fn ddim() {
    agrees("ddim24", "ddim", 24, (64, 64));
}

#[test]
fn pndm() {
    agrees("pndm10", "pndm", 10, (64, 64));
}

#[test]
fn dpmpp_2m() {
    agrees("dpmpp2m_12_wide", "dpmpp_2m", 12, (96, 64));
}

#[test]
fn a_drawing_can_be_stopped_between_its_steps() {
    let folder = super::dir().join("tiny-sd");
    let weights = formats::load(folder.to_str().unwrap()).unwrap();
    let mut learner = Learner::for_drawing(weights, &Device::Cpu).unwrap();
    let request = SampleRequest {
        prompt: "photo of a dog".into(),
        negative_prompt: String::new(),
        guidance_scale: 7.5,
        num_inference_steps: 10,
        sampler: SamplerKind::default(),
        karras: false,
        width_px: 64,
        height_px: 64,
        clip_skip: 1,
    };
    let mut third = |done: usize, _of: usize| match done {
        3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    assert!(learner.pipeline().draw(&request, &[1], &mut third).unwrap().is_none());
}
