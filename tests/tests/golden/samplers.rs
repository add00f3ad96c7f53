//! Noise schedule and samplers against diffusers' trajectories.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json as json_value;
use trainer::models::config::{PredictionType, SchedulerConfig};
use trainer::schedulers::{self, NoiseSchedule, SamplerKind};

use super::support::{Golden, Table, json, json_text, load, peek, relative, relmax_values, worse};

const X_TOLERANCE: f64 = 2e-5;
const SIGMA_TOLERANCE: f64 = 1e-5;

fn values(tensor: &Tensor) -> anyhow::Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

#[test]
fn the_noise_schedule_is_that_of_sd15() -> anyhow::Result<()> {
    let golden = load("train/noise_schedule.safetensors");
    let schedule = NoiseSchedule::new(&SchedulerConfig::default())?;
    let alphas: Vec<f32> = schedule.betas().iter().map(|beta| 1.0 - beta).collect();
    let snr = schedule.snr();
    let mut table = Table::new("noise schedule");
    for (name, ours) in [
        ("betas", schedule.betas()),
        ("alphas", &alphas),
        ("alphas_cumprod", schedule.alphas_cumprod()),
        ("snr", &snr),
    ] {
        let wanted: Vec<f32> = golden[name].to_vec1()?;
        assert_eq!(ours.len(), wanted.len());
        let apart = ours
            .iter()
            .zip(&wanted)
            .map(|(got, wanted)| relative(f64::from(*got), f64::from(*wanted)));
        table.check(name, apart.fold(0.0, worse), 1e-6);
    }
    table.finish();
    Ok(())
}

#[test]
fn noise_is_added_row_by_row() -> anyhow::Result<()> {
    let inputs = peek("train/inputs.safetensors");
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
        assert!(relmax_values(&values(&noisy.get(row)?)?, &mix(signal, sigma)) < 1e-6);
        assert!(relmax_values(&values(&velocity.get(row)?)?, &mix(-sigma, signal)) < 1e-6);
    }
    assert!(schedule.add_noise(&latents, &noise, &timesteps[1..]).is_err());
    assert!(schedule.add_noise(&latents, &noise, &[1000; 4]).is_err());
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    latent_shape: Vec<usize>,
    samplers: BTreeMap<String, Reference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    /// diffusers' name of it.
    #[serde(rename = "class")]
    _class: IgnoredAny,
    /// What the effective configuration was made by.
    #[serde(rename = "config_over_sd15")]
    _config_over_sd15: IgnoredAny,
    effective_config: serde_json::Value,
    runs: BTreeMap<String, Run>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    init_noise_sigma: f64,
    calls: usize,
    timesteps: Vec<f64>,
    timesteps_dtype: String,
    scale_model_input_factor: Option<Vec<f64>>,
    noise_used: Option<Vec<Vec<usize>>>,
    sigmas: Option<Vec<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spaced {
    timesteps: Vec<f64>,
    init_noise_sigma: f64,
}

/// Our name and Karras flag of a sampler in the reference data.
fn kind(name: &str) -> (SamplerKind, bool) {
    let (name, karras) = name.strip_suffix("_karras").map_or((name, false), |name| (name, true));
    (name.parse().unwrap(), karras)
}

/// The reference's configuration but for the spacing of timesteps: that is each sampler's own.
fn config_of(name: &str, reference: &serde_json::Value) -> SchedulerConfig {
    let config: SchedulerConfig = serde_json::from_value(reference.clone()).unwrap();
    let (kind, karras) = kind(name);
    assert_eq!(
        reference.get("use_karras_sigmas").is_some_and(|flag| flag == true),
        karras,
        "{name}"
    );
    let variance = match kind {
        SamplerKind::Ddpm => json_value!("fixed_small"),
        _ => json_value!(null),
    };
    // What ours have no setting for.
    for (setting, value) in [
        ("thresholding", json_value!(false)),
        ("rescale_betas_zero_snr", json_value!(false)),
        ("use_exponential_sigmas", json_value!(false)),
        ("use_beta_sigmas", json_value!(false)),
        ("use_flow_sigmas", json_value!(false)),
        ("use_lu_lambdas", json_value!(false)),
        ("final_sigmas_type", json_value!("zero")),
        ("lower_order_final", json_value!(true)),
        ("euler_at_final", json_value!(false)),
        ("solver_order", json_value!(2)),
        ("algorithm_type", json_value!("dpmsolver++")),
        (
            "solver_type",
            json_value!(if kind == SamplerKind::UniPc { "bh2" } else { "midpoint" }),
        ),
        ("predict_x0", json_value!(true)),
        ("interpolation_type", json_value!("linear")),
        ("timestep_type", json_value!("discrete")),
        ("variance_type", variance),
        ("skip_prk_steps", json_value!(true)),
    ] {
        assert!(
            reference.get(setting).is_none_or(|there| *there == value),
            "{name}: {setting}"
        );
    }
    SchedulerConfig {
        timestep_spacing: None,
        ..config
    }
}

/// Whole timesteps exactly, fractional ones (Euler, LMS) within 1e-4.
fn timesteps(table: &mut Table, case: &str, got: &[f64], wanted: &[f64], whole: bool) {
    assert_eq!(got.len(), wanted.len(), "{case}: {got:?}");
    let apart = got.iter().zip(wanted).map(|(got, wanted)| (got - wanted).abs());
    table.check(
        format!("{case} timesteps"),
        apart.fold(0.0, worse),
        if whole { 0.0 } else { 1e-4 },
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
    // Python wrote an infinity, which JSON does not have.
    let tables: Tables = json_text("samplers/tables.json", |text| text.replace("-Infinity", "null"));
    let common = load("samplers/common.safetensors");
    assert_eq!(common["latent0"].dims(), tables.latent_shape);
    let goldens = [
        (PredictionType::Epsilon, load("samplers/epsilon.safetensors")),
        (PredictionType::VPrediction, load("samplers/v_prediction.safetensors")),
    ];
    let mut table = Table::new("samplers");
    let mut walked = BTreeSet::new();
    for (name, reference) in &tables.samplers {
        let (kind, karras) = kind(name);
        walked.insert((kind.name(), karras));
        let config = config_of(name, &reference.effective_config);
        for (steps, run) in &reference.runs {
            let case = format!("{name}.{steps}");
            let sampler = schedulers::build(kind, karras, &config, steps.parse()?)?;
            if let Some(wanted) = &run.sigmas {
                let got = sigmas(kind, karras, &config, steps.parse()?, wanted[0])?;
                sigmas_agree(&mut table, &case, &got, wanted);
            }
            let is_whole = run.timesteps_dtype == "torch.int64";
            timesteps(&mut table, &case, sampler.timesteps(), &run.timesteps, is_whole);
            let sigma = relative(sampler.init_noise_sigma(), run.init_noise_sigma);
            table.check(format!("{case} first sigma"), sigma, 1e-6);
            assert_eq!(sampler.timesteps().len(), run.calls, "{case}");
            assert_eq!(sampler.draws_noise(), run.noise_used.is_some(), "{case}");
            for (prediction_type, golden) in &goldens {
                let config = SchedulerConfig {
                    prediction_type: *prediction_type,
                    ..config.clone()
                };
                let wanted = Wanted {
                    run,
                    golden,
                    case: &case,
                    prediction_type: *prediction_type,
                };
                let sampler = schedulers::build(kind, karras, &config, steps.parse()?)?;
                wanted.compare(&mut table, &common, sampler)?;
            }
        }
    }
    table.finish();
    for kind in SamplerKind::ALL {
        assert!(walked.contains(&(kind.name(), false)), "no reference for {kind}");
    }
    assert!(walked.contains(&("dpmpp_2m", true)), "no reference for Karras' spacing");
    Ok(())
}

fn sigmas_agree(table: &mut Table, case: &str, got: &[f64], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len(), "{case}: {got:?}");
    let apart = got.iter().zip(wanted).map(|(got, wanted)| match *wanted {
        0.0 => got.abs(),
        wanted => relative(*got, wanted),
    });
    table.check(format!("{case} sigmas"), apart.fold(0.0, worse), SIGMA_TOLERANCE);
}

/// The sigmas that a sampler walks down, seen from outside: in f64, latents that are nothing but noise, and a model that
/// says so, stay just as much noise as the next sigma asks for. `first` is where they begin.
fn sigmas(
    kind: SamplerKind,
    karras: bool,
    config: &SchedulerConfig,
    steps: usize,
    first: f64,
) -> anyhow::Result<Vec<f64>> {
    let mut sampler = schedulers::build(kind, karras, config, steps)?;
    let calls = sampler.timesteps().len();
    let noise = Tensor::ones(1, DType::F64, &Device::Cpu)?;
    let number = |tensor: &Tensor| -> anyhow::Result<f64> { Ok(values(tensor)?[0]) };
    // Some let the noise grow with sigma and scale it for the model; the others keep the variance.
    let grows = sampler.init_noise_sigma() != 1.0;
    if grows {
        let factor = |i: usize| number(&sampler.scale_model_input(&noise, i)?);
        let sigma = |i: usize| -> anyhow::Result<f64> { Ok((factor(i)?.powi(-2) - 1.0).sqrt()) };
        let mut all = (0..calls).map(sigma).collect::<anyhow::Result<Vec<f64>>>()?;
        all.push(0.0);
        return Ok(all);
    }
    let kept = |sigma: f64| sigma / (sigma * sigma + 1.0).sqrt();
    let mut x = (&noise * kept(first))?;
    let mut all = vec![first];
    for i in 0..calls {
        x = sampler.step(&noise, i, &x, None)?;
        let kept = number(&x)?;
        all.push(kept / (1.0 - kept * kept).sqrt());
    }
    Ok(all)
}

struct Wanted<'a> {
    run: &'a Run,
    golden: &'a Golden,
    case: &'a str,
    prediction_type: PredictionType,
}

impl Wanted<'_> {
    fn compare(
        &self,
        table: &mut Table,
        common: &Golden,
        mut sampler: Box<dyn schedulers::Sampler>,
    ) -> anyhow::Result<()> {
        let (run, case) = (self.run, self.case);
        let named = |what: &str| &self.golden[format!("{case}.{what}").as_str()];
        let kept: Vec<i64> = named("x_index").to_vec1()?;
        let (kept_x, head) = (named("x"), named("x_head"));
        assert_eq!(head.dim(0)?, run.calls + 1, "{case}");
        let (mut x_apart, mut head_apart, mut factor_apart, mut seen) = (0.0, 0.0, 0.0, 0);
        let mut check = |x: &Tensor, step: usize| -> anyhow::Result<()> {
            let got = values(x)?;
            if let Some(at) = kept.iter().position(|&index| index == step as i64) {
                x_apart = worse(x_apart, relmax_values(&got, &values(&kept_x.get(at)?)?));
                seen += 1;
            }
            let wanted = values(&head.get(step)?)?;
            let largest = got.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
            for (got, wanted) in heading(&got).into_iter().zip(wanted) {
                head_apart = worse(head_apart, (got - wanted).abs() / largest);
            }
            Ok(())
        };

        let pool = &common["noise_pool"];
        let mut x = common["latent0"].affine(sampler.init_noise_sigma(), 0.0)?;
        check(&x, 0)?;
        for (i, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
            let input = sampler.scale_model_input(&x, i)?;
            if let Some(factors) = &run.scale_model_input_factor {
                let factor = values(&input)?[0] / values(&x)?[0];
                factor_apart = worse(factor_apart, relative(factor, factors[i]));
            }
            let answer = fake_model(&input, t)?;
            let noise = match &run.noise_used {
                Some(numbers) => Some(pool.get(numbers[i][0] % pool.dim(0)?)?.reshape(x.shape())?),
                None => None,
            };
            x = sampler.step(&answer, i, &x, noise.as_ref())?;
            check(&x, i + 1)?;
        }
        assert_eq!(seen, kept.len(), "{case}: steps that are kept");
        let case = format!("{case} {:?}", self.prediction_type);
        table.check(format!("{case} x"), x_apart, X_TOLERANCE);
        table.check(format!("{case} heads"), head_apart, X_TOLERANCE);
        if run.scale_model_input_factor.is_some() {
            table.check(format!("{case} factors"), factor_apart, 2e-6);
        }
        Ok(())
    }
}

/// Mean, standard deviation and the first two values.
fn heading(x: &[f64]) -> [f64; 4] {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let squares: f64 = x.iter().map(|v| (v - mean).powi(2)).sum();
    [mean, (squares / (x.len() - 1) as f64).sqrt(), x[0], x[1]]
}

/// Of Karras' spacing there is reference data for one sampler; the others walk down the same sigmas.
#[test]
fn karras_spacing_is_that_of_equation_5() -> anyhow::Result<()> {
    let config = SchedulerConfig::default();
    let schedule = NoiseSchedule::new(&config)?;
    let sigma_of = |alpha: f32| ((1.0 - f64::from(alpha)) / f64::from(alpha)).sqrt();
    let alphas = schedule.alphas_cumprod();
    let (least, most) = (sigma_of(alphas[0]), sigma_of(alphas[alphas.len() - 1]));
    let mut table = Table::new("Karras et al. 2022, equation 5");
    for kind in SamplerKind::ALL.into_iter().filter(|kind| kind.has_karras()) {
        for steps in [2, 10, 24] {
            let ramp = (0..steps).map(|i| {
                let part = i as f64 / (steps - 1) as f64;
                let (from, to) = (most.powf(1.0 / 7.0), least.powf(1.0 / 7.0));
                (from + part * (to - from)).powi(7)
            });
            let wanted: Vec<f64> = ramp.chain([0.0]).collect();
            let got = sigmas(kind, true, &config, steps, wanted[0])?;
            sigmas_agree(&mut table, &format!("{kind}.{steps}"), &got, &wanted);
        }
    }
    table.finish();
    Ok(())
}

#[test]
fn timesteps_follow_the_configured_spacing() -> anyhow::Result<()> {
    let spaced: BTreeMap<String, Spaced> = json("samplers/other_spacings.json");
    let mut table = Table::new("spacings");
    for (case, wanted) in &spaced {
        let mut parts = case.split('.');
        let (Some(name), Some(spacing), Some(steps)) = (parts.next(), parts.next(), parts.next()) else {
            anyhow::bail!("{case}");
        };
        let (kind, karras) = kind(name);
        let config = SchedulerConfig {
            timestep_spacing: Some(spacing.into()),
            ..SchedulerConfig::default()
        };
        let sampler = schedulers::build(kind, karras, &config, steps.parse()?)?;
        let is_whole = wanted.timesteps.iter().all(|t| t.fract() == 0.0);
        timesteps(&mut table, case, sampler.timesteps(), &wanted.timesteps, is_whole);
        let sigma = relative(sampler.init_noise_sigma(), wanted.init_noise_sigma);
        table.check(format!("{case} first sigma"), sigma, 1e-6);
    }
    table.finish();
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
