//! Noise schedule and samplers against diffusers' trajectories.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use trainer::models::config::{PredictionType, SchedulerConfig};
use trainer::schedulers::{self, NoiseSchedule, SamplerKind};

type Tensors = HashMap<String, Tensor>;

fn tensors(name: &str) -> anyhow::Result<Tensors> {
    Ok(candle_core::safetensors::load(super::dir().join(name), &Device::Cpu)?)
}

fn values(tensor: &Tensor) -> anyhow::Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// `max|a - b| / max|b|`; NaN stays NaN.
fn relmax(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0.0, |most: f64, v| if v > most || v.is_nan() { v } else { most })
    };
    let apart = largest(&mut a.iter().zip(b).map(|(a, b)| (a - b).abs()));
    apart / largest(&mut b.iter().map(|b| b.abs()))
}

#[test]
fn the_noise_schedule_is_that_of_sd15() -> anyhow::Result<()> {
    let golden = tensors("train/noise_schedule.safetensors")?;
    let schedule = NoiseSchedule::new(&SchedulerConfig::default())?;
    let snr = schedule.snr();
    let ours = [
        ("betas", schedule.betas()),
        ("alphas_cumprod", schedule.alphas_cumprod()),
        ("snr", &snr),
    ];
    for (name, ours) in ours {
        let wanted: Vec<f32> = golden[name].to_vec1()?;
        assert_eq!(ours.len(), wanted.len());
        for (t, (&got, &wanted)) in ours.iter().zip(&wanted).enumerate() {
            let within = (got - wanted).abs() <= 1e-6 * wanted.abs();
            assert!(within, "{name}[{t}]: {got} is not {wanted}");
        }
        let exact = ours.iter().zip(&wanted).filter(|(a, b)| a == b).count();
        println!("{name}: {exact} of {} to the last bit", wanted.len());
    }
    Ok(())
}

#[test]
fn noise_is_added_row_by_row() -> anyhow::Result<()> {
    let inputs = tensors("train/inputs.safetensors")?;
    let schedule = NoiseSchedule::new(&SchedulerConfig::default())?;
    let (latents, noise) = (inputs["latents"].get(0)?, inputs["noise"].get(0)?);
    let timesteps: Vec<u32> = inputs["timesteps"].get(0)?.to_dtype(DType::U32)?.to_vec1()?;
    let noisy = schedule.add_noise(&latents, &noise, &timesteps)?;
    let velocity = schedule.velocity(&latents, &noise, &timesteps)?;
    for (row, &t) in timesteps.iter().enumerate() {
        let ac = f64::from(schedule.alphas_cumprod()[t as usize]);
        let (signal, sigma) = (ac.sqrt(), (1.0 - ac).sqrt());
        let (x, n) = (values(&latents.get(row)?)?, values(&noise.get(row)?)?);
        let mix = |a: f64, b: f64| -> Vec<f64> { x.iter().zip(&n).map(|(x, n)| a * x + b * n).collect() };
        assert!(relmax(&values(&noisy.get(row)?)?, &mix(signal, sigma)) < 1e-6);
        assert!(relmax(&values(&velocity.get(row)?)?, &mix(-sigma, signal)) < 1e-6);
    }
    assert!(schedule.add_noise(&latents, &noise, &timesteps[1..]).is_err());
    assert!(schedule.add_noise(&latents, &noise, &[1000; 4]).is_err());
    Ok(())
}

#[derive(Deserialize)]
struct Tables {
    samplers: BTreeMap<String, Table>,
}

#[derive(Deserialize)]
struct Table {
    runs: BTreeMap<String, Run>,
}

#[derive(Deserialize)]
struct Run {
    init_noise_sigma: f64,
    calls: usize,
    timesteps: Vec<f64>,
    scale_model_input_factor: Option<Vec<f64>>,
    noise_used: Option<Vec<Vec<usize>>>,
}

#[derive(Deserialize)]
struct Spaced {
    timesteps: Vec<f64>,
    init_noise_sigma: f64,
}

/// Our name and Karras flag of a sampler in the reference data; `None` for one that we do not have.
fn kind(name: &str) -> Option<(SamplerKind, bool)> {
    let (name, karras) = name.strip_suffix("_karras").map_or((name, false), |name| (name, true));
    Some((name.parse().ok()?, karras))
}

/// Whole timesteps exactly, fractional ones (Euler, LMS) within 1e-4.
#[track_caller]
fn same_timesteps(name: &str, got: &[f64], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len(), "{name}: {got:?}");
    for (got, wanted) in got.iter().zip(wanted) {
        let limit = if wanted.fract() == 0.0 { 0.0 } else { 1e-4 };
        assert!((got - wanted).abs() <= limit, "{name}: {got} is not {wanted}");
    }
}

#[track_caller]
fn close(name: &str, got: f64, wanted: f64, relative: f64) {
    assert!(
        (got - wanted).abs() <= relative * wanted.abs(),
        "{name}: {got} is not {wanted}"
    );
}

/// The stand-in for a U-Net that the reference trajectories were made with.
fn fake_model(x: &Tensor, t: f64) -> anyhow::Result<Tensor> {
    let flat: Vec<f32> = x.flatten_all()?.to_vec1()?;
    // Fractional timesteps are f32 there.
    let t = f64::from(t as f32);
    let answer: Vec<f32> = flat
        .iter()
        .enumerate()
        .map(|(i, x)| 0.3 * x + (0.1 * (0.01 * t + i as f64).sin()) as f32)
        .collect();
    Ok(Tensor::from_vec(answer, x.shape(), x.device())?)
}

#[test]
fn samplers_walk_the_way_of_diffusers() -> anyhow::Result<()> {
    let tables = std::fs::read_to_string(super::dir().join("samplers/tables.json"))?;
    // Python wrote an infinity, which JSON does not have.
    let tables: Tables = serde_json::from_str(&tables.replace("-Infinity", "null"))?;
    let common = tensors("samplers/common.safetensors")?;
    let epsilon = tensors("samplers/epsilon.safetensors")?;
    let v_prediction = tensors("samplers/v_prediction.safetensors")?;
    let mut walked = Vec::new();
    for (name, table) in &tables.samplers {
        let Some((kind, karras)) = kind(name) else { continue };
        walked.push(kind);
        for (steps, run) in &table.runs {
            for (prediction_type, golden) in [
                (PredictionType::Epsilon, &epsilon),
                (PredictionType::VPrediction, &v_prediction),
            ] {
                let config = SchedulerConfig {
                    prediction_type,
                    ..SchedulerConfig::default()
                };
                let case = format!("{name}.{steps}");
                let wanted = Wanted { run, golden, case };
                wanted.compare(&common, schedulers::build(kind, karras, &config, steps.parse()?)?)?;
            }
        }
    }
    for kind in SamplerKind::ALL {
        assert!(walked.contains(&kind), "no reference for {kind}");
    }
    Ok(())
}

struct Wanted<'a> {
    run: &'a Run,
    golden: &'a Tensors,
    case: String,
}

impl Wanted<'_> {
    fn compare(&self, common: &Tensors, mut sampler: Box<dyn schedulers::Sampler>) -> anyhow::Result<()> {
        let (run, case) = (self.run, &self.case);
        let timesteps = sampler.timesteps().to_vec();
        assert_eq!(timesteps.len(), run.calls, "{case}");
        same_timesteps(case, &timesteps, &run.timesteps);
        close(case, sampler.init_noise_sigma(), run.init_noise_sigma, 1e-6);
        assert_eq!(sampler.draws_noise(), run.noise_used.is_some(), "{case}");

        let kept: Vec<i64> = self.golden[&format!("{case}.x_index")].to_vec1()?;
        let kept_x = &self.golden[&format!("{case}.x")];
        let head = &self.golden[&format!("{case}.x_head")];
        let check = |x: &Tensor, step: usize| -> anyhow::Result<()> {
            let got = values(x)?;
            if let Some(at) = kept.iter().position(|&index| index == step as i64) {
                let apart = relmax(&got, &values(&kept_x.get(at)?)?);
                assert!(apart <= 2e-5, "{case} after step {step}: {apart}");
            }
            let wanted: Vec<f32> = head.get(step)?.to_vec1()?;
            let scale = got.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
            for (got, wanted) in got.iter().zip(&wanted[2..]) {
                let within = (got - f64::from(*wanted)).abs() <= 2e-5 * scale;
                assert!(within, "{case} after step {step}: {got} is not {wanted}");
            }
            Ok(())
        };

        let pool = &common["noise_pool"];
        let mut x = common["latent0"].affine(sampler.init_noise_sigma(), 0.0)?;
        check(&x, 0)?;
        for (i, &t) in timesteps.iter().enumerate() {
            let input = sampler.scale_model_input(&x, i)?;
            if let Some(factors) = &run.scale_model_input_factor {
                let factor = values(&input)?[0] / values(&x)?[0];
                close(case, factor, factors[i], 2e-6);
            }
            let answer = fake_model(&input, t)?;
            let noise = match &run.noise_used {
                Some(numbers) => Some(pool.get(numbers[i][0] % pool.dim(0)?)?.reshape(x.shape())?),
                None => None,
            };
            x = sampler.step(&answer, i, &x, noise.as_ref())?;
            check(&x, i + 1)?;
        }
        Ok(())
    }
}

#[test]
fn timesteps_follow_the_configured_spacing() -> anyhow::Result<()> {
    let file = super::dir().join("samplers/other_spacings.json");
    let spaced: BTreeMap<String, Spaced> = serde_json::from_slice(&std::fs::read(file)?)?;
    for (case, wanted) in &spaced {
        let mut parts = case.split('.');
        let (Some(name), Some(spacing), Some(steps)) = (parts.next(), parts.next(), parts.next()) else {
            anyhow::bail!("{case}");
        };
        let Some((kind, karras)) = kind(name) else { continue };
        let config = SchedulerConfig {
            timestep_spacing: Some(spacing.into()),
            ..SchedulerConfig::default()
        };
        let sampler = schedulers::build(kind, karras, &config, steps.parse()?)?;
        same_timesteps(case, sampler.timesteps(), &wanted.timesteps);
        close(case, sampler.init_noise_sigma(), wanted.init_noise_sigma, 1e-6);
    }
    Ok(())
}

#[test]
fn what_cannot_be_sampled_is_refused() {
    let config = SchedulerConfig::default();
    assert!(schedulers::build(SamplerKind::Ddim, false, &config, 0).is_err());
    assert!(schedulers::build(SamplerKind::Ddim, false, &config, 1001).is_err());
    assert!(schedulers::build(SamplerKind::Ddim, true, &config, 10).is_err());
    assert!("eulr".parse::<SamplerKind>().is_err());
    // Every timestep once is the most.
    let all = schedulers::build(SamplerKind::Ddim, false, &config, 1000).expect("builds");
    assert!(all.timesteps().iter().all(|&t| (0.0..1000.0).contains(&t)));
    let odd = SchedulerConfig {
        beta_schedule: "sigmoid".into(),
        ..config
    };
    assert!(schedulers::build(SamplerKind::Ddim, false, &odd, 10).is_err());
}

#[test]
fn a_sampler_that_remembers_is_walked_in_order() -> anyhow::Result<()> {
    let config = SchedulerConfig::default();
    let x = Tensor::ones((1, 4, 2, 2), DType::F32, &Device::Cpu)?;
    for kind in SamplerKind::ALL {
        for karras in [false, true].into_iter().filter(|&karras| !karras || kind.has_karras()) {
            // One step is the least there is, and must work too.
            for steps in [1, 2, 3] {
                let mut sampler = schedulers::build(kind, karras, &config, steps)?;
                assert!(sampler.timesteps().windows(2).all(|pair| pair[0] >= pair[1]), "{kind}");
                let mut latents = x.clone();
                for i in 0..sampler.timesteps().len() {
                    latents = sampler.step(&x, i, &latents, Some(&x))?;
                    let finite = values(&latents)?.iter().all(|v| v.is_finite());
                    assert!(finite, "{kind} of {steps} steps, karras {karras}");
                }
                assert!(
                    sampler.step(&x, sampler.timesteps().len(), &latents, Some(&x)).is_err(),
                    "{kind}"
                );
            }
        }
    }
    let mut lms = schedulers::build(SamplerKind::Lms, false, &config, 10)?;
    assert!(lms.step(&x, 3, &x, None).is_err());
    let mut ddpm = schedulers::build(SamplerKind::Ddpm, false, &config, 10)?;
    assert!(ddpm.step(&x, 0, &x, None).is_err());
    Ok(())
}
