//! Prompt to picture against diffusers' `StableDiffusionPipeline`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{DType, IndexOp, Tensor};
use serde::Deserialize;
use serde::de::IgnoredAny;
use trainer::device::Device;
use trainer::dreambooth::learner::Learner;
use trainer::formats;
use trainer::noise::TorchGenerator;
use trainer::pipeline::{self, Pipeline, SampleRequest};
use trainer::schedulers::{self, SamplerKind};

use super::support::{Golden, Table, json, load, relmax, values};

const STATES_TOLERANCE: f64 = 1e-5;
const LATENTS_TOLERANCE: f64 = 5e-5;
/// Of the values that may be one level off.
const LEVELS_SHARE: f64 = 0.01;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    prompt: String,
    negative_prompt: String,
    guidance_scale: f64,
    runs: BTreeMap<String, Run>,
    /// Where the tolerances come from.
    #[serde(rename = "f32_vs_f64")]
    _f32_vs_f64: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    scheduler: String,
    steps: usize,
    height: usize,
    width: usize,
    calls: usize,
    timesteps: Vec<f64>,
}

/// By diffusers' class.
fn sampler_of(class: &str) -> SamplerKind {
    match class {
        "DDIMScheduler" => SamplerKind::Ddim,
        "PNDMScheduler" => SamplerKind::Pndm,
        "DPMSolverMultistepScheduler" => SamplerKind::DpmSolver,
        other => panic!("{other} is none of the drawn ones"),
    }
}

fn agrees(name: &str) {
    let meta: Meta = json("txt2img/meta.json");
    let run = &meta.runs[name];
    let golden = load(&format!("txt2img/{name}.safetensors"));
    let folder = super::dir().join("tiny-sd");
    let weights = formats::load(folder.to_str().unwrap()).unwrap();
    let mut learner = Learner::for_drawing(weights, &Device::Cpu).unwrap();
    let request = SampleRequest {
        prompt: meta.prompt.clone(),
        negative_prompt: meta.negative_prompt.clone(),
        guidance_scale: meta.guidance_scale,
        num_inference_steps: run.steps,
        sampler: sampler_of(&run.scheduler),
        karras: false,
        width_px: run.width,
        height_px: run.height,
        clip_skip: 1,
    };
    let mut table = Table::new(name);
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
    table.equal("calls", &calls, &run.calls);
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
    on_the_way(&mut table, &mut pipeline, &request, run, &golden);
    table.finish();
}

/// What the pipeline keeps to itself: states of the prompts, timesteps, and latents after each step.
fn on_the_way(table: &mut Table, pipeline: &mut Pipeline, request: &SampleRequest, run: &Run, golden: &Golden) {
    let mut sampler = schedulers::build(request.sampler, request.karras, pipeline.scheduler, run.steps).unwrap();
    table.equal("timesteps", &sampler.timesteps().to_vec(), &run.timesteps);
    let Some(every) = golden.get("latents_every_step") else {
        return;
    };
    let mut states = |prompt: &str, name: &str| {
        let ids = pipeline.tokenizer.encode(prompt, true).unwrap().ids;
        let states = pipeline.networks.text(&ids, 1, request.clip_skip).unwrap();
        table.check(name, relmax(&states, &golden[name]), STATES_TOLERANCE);
        states
    };
    let negative = states(&request.negative_prompt, "negative_prompt_embeds");
    let context = Tensor::cat(&[negative, states(&request.prompt, "prompt_embeds")], 0).unwrap();
    let mut x = (&golden["latents0"] * sampler.init_noise_sigma()).unwrap();
    assert_eq!(every.dim(0).unwrap(), run.calls);
    for (i, t) in run.timesteps.iter().enumerate() {
        let input = sampler.scale_model_input(&x, i).unwrap();
        let both = Tensor::cat(&[&input, &input], 0).unwrap();
        let answers = pipeline.networks.predict(&both, &[*t as f32; 2], &context).unwrap();
        let (negative, positive) = (answers.i(..1).unwrap(), answers.i(1..).unwrap());
        let guided = ((positive - &negative).unwrap() * request.guidance_scale).unwrap();
        x = sampler.step(&(negative + guided).unwrap(), i, &x, None).unwrap();
        let want = every.i(i..=i).unwrap();
        table.check(
            format!("latents after step {}", i + 1),
            relmax(&x, &want),
            LATENTS_TOLERANCE,
        );
    }
}

#[test]
fn ddim() {
    agrees("ddim24");
}

#[test]
fn pndm() {
    agrees("pndm10");
}

#[test]
fn dpmpp_2m() {
    agrees("dpmpp2m_12_wide");
}

#[test]
fn every_drawing_of_the_reference_data_is_compared_with() {
    let runs = json::<Meta>("txt2img/meta.json").runs;
    assert!(
        runs.keys().eq(["ddim24", "dpmpp2m_12_wide", "pndm10"]),
        "{:?}",
        runs.keys()
    );
}

/// A seed is torch's: noise to begin with, and what an ancestral sampler goes on to draw, come from one generator.
#[test]
fn a_seed_is_a_generator_that_goes_on() {
    let folder = super::dir().join("tiny-sd");
    let weights = formats::load(folder.to_str().unwrap()).unwrap();
    let mut learner = Learner::for_drawing(weights, &Device::Cpu).unwrap();
    let mut pipeline = learner.pipeline();
    let mut go_on = |_done: usize, _of: usize| ControlFlow::Continue(());
    for sampler in [SamplerKind::Ddim, SamplerKind::EulerAncestral, SamplerKind::Ddpm] {
        let request = SampleRequest {
            prompt: "photo of a dog".into(),
            negative_prompt: String::new(),
            guidance_scale: 3.0,
            num_inference_steps: 3,
            sampler,
            karras: false,
            width_px: 40,
            height_px: 64,
            clip_skip: 1,
        };
        let mut alone = |seed: u64| {
            let mut generator = TorchGenerator::new(seed);
            let mut noise = || generator.randn((1, 4, 8, 5));
            let start = noise().unwrap();
            let latents = pipeline
                .denoise(&request, &start, &mut noise, &mut go_on)
                .unwrap()
                .unwrap();
            pipeline::to_picture(&pipeline.decode(&latents).unwrap()).unwrap().rgb
        };
        let wanted = [7, 52362].map(&mut alone);
        for (seed, wanted) in [7, 52362].into_iter().zip(&wanted) {
            let drawn = pipeline.draw(&request, &[seed], &mut go_on).unwrap().unwrap();
            assert!(&drawn[0].rgb == wanted, "{sampler}, seed {seed}");
        }
        // In a batch, whose sums may round otherwise, each has its own.
        let drawn = pipeline.draw(&request, &[7, 52362], &mut go_on).unwrap().unwrap();
        for (drawn, wanted) in drawn.iter().zip(&wanted) {
            let apart = drawn.rgb.iter().zip(wanted.iter()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(apart.unwrap() <= 1, "{sampler} in a batch: {apart:?}");
        }
    }
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
