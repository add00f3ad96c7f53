//! Drawing images: prompts, DDIM steps with classifier-free guidance, decoding.

use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::arithmetic::flop;
use super::cli::Bench;
use super::profile::profile;
use super::programs::Model;
use super::report::{GIB, Planned, Times, config, held};
use crate::engine::layout::{channels_first, channels_last};
use crate::engine::nets::unet::sinusoids;
use crate::engine::session::Data;
use crate::models::config::SchedulerConfig;
use crate::noise::TorchGenerator;
use crate::schedulers::{self, SamplerKind};

const GUIDANCE: f64 = 7.5;
/// The first drawing captures; the others are timed.
const DRAWINGS: usize = 4;

pub(super) fn run(bench: &Bench) -> anyhow::Result<()> {
    let args = bench.args;
    let mut model = Model::new(args.arch);
    // Guidance asks for every image twice, with the prompt and without.
    let prompts = model.prompts(2 * args.rows)?;
    let prediction = model.prediction(2 * args.rows)?;
    let decoding = model.decoding()?;
    let planned = Planned::new(bench, &model.table, &[&prompts, &prediction, &decoding])?;
    let mut running = bench.session(model.table.clone())?;
    model.fill(running.session())?;
    let [prompts_id, prediction_id, decoding_id] =
        [&prompts, &prediction, &decoding].map(|program| running.session().compile(program.clone()));
    let (prompts_id, prediction_id, decoding_id) = (prompts_id?, prediction_id?, decoding_id?);
    let side = model.unet.sample_size;
    let pixels = side * side;
    let (mut millis, mut decodings) = (Vec::new(), Vec::new());
    for drawing in 0..DRAWINGS {
        let mut sampler = schedulers::build(SamplerKind::Ddim, false, &SchedulerConfig::default(), args.steps())?;
        let mut generator = TorchGenerator::new(drawing as u64);
        let start = generator.randn((args.rows, 4, side, side))?;
        let begin = Instant::now();
        let session = running.session();
        model.write(session, prompts_id, &prompts, 1)?;
        session.run(prompts_id)?;
        let states = session.read(prompts_id, "output")?;
        session.write(prediction_id, "context", Data::F32(&states))?;
        let mut x = (start * sampler.init_noise_sigma())?;
        let timesteps = sampler.timesteps().to_vec();
        for (index, &timestep) in timesteps.iter().enumerate() {
            let input = sampler.scale_model_input(&x, index)?;
            let values = channels_last(&input.flatten_all()?.to_vec1::<f32>()?, 4, pixels);
            session.write(prediction_id, "latents", Data::F32(&values.repeat(2)))?;
            let time = sinusoids(&model.unet, &vec![timestep as f32; 2 * args.rows]);
            session.write(prediction_id, "time", Data::F32(&time))?;
            session.run(prediction_id)?;
            let output = channels_first(&session.read(prediction_id, "output")?, 4, pixels);
            let output = Tensor::from_vec(output, (2 * args.rows, 4, side, side), &Device::Cpu)?;
            let halves = output.chunk(2, 0)?;
            let guided = (&halves[0] + ((&halves[1] - &halves[0])? * GUIDANCE)?)?;
            x = sampler.step(&guided, index, &x, None)?;
        }
        let decode = Instant::now();
        let latents = channels_last(&x.flatten_all()?.to_vec1::<f32>()?, 4, pixels);
        for latents in latents.chunks(4 * pixels) {
            session.write(decoding_id, "z", Data::F32(latents))?;
            session.run(decoding_id)?;
            let image = session.read(decoding_id, "output")?;
            anyhow::ensure!(image.iter().all(|value| value.is_finite()), "an image is not finite");
        }
        if drawing > 0 {
            millis.push(begin.elapsed().as_secs_f64() * 1e3);
            decodings.push(decode.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (times, decodings) = (Times::new(millis), Times::new(decodings));
    let (used, held) = (bench.machine.used_bytes()?, held(&running));
    profile(bench, &mut running, prediction_id, &prediction, None)?;
    profile(bench, &mut running, decoding_id, &decoding, None)?;
    running.session().release(&[])?;
    let used_after = bench.machine.used_bytes()?;
    bench.say(format_args!(
        "{}: {} images of {} px, {} steps: {:.3} s, of that decoding {:.3} s; {:.2} GiB in use, held {held:.2?}, \
         {:.2} when what was drawn with is given back",
        bench.machine.name(),
        args.rows,
        model.side_px(),
        args.steps(),
        times.at(0.5) / 1e3,
        decodings.at(0.5) / 1e3,
        used as f64 / GIB,
        used_after as f64 / GIB,
    ));
    let ratio = planned.ratio(bench, used)?;
    let line = json!({
        "s_in_all": times.at(0.5) / 1e3,
        "ms_per_step": (times.at(0.5) - decodings.at(0.5)) / args.steps() as f64,
        "min_ms": times.at(0.),
        "images_per_s": args.rows as f64 / times.at(0.5) * 1e3,
        "decoding_ms": decodings.at(0.5),
        "flop_per_step": flop(&prediction),
        "decoding_flop": flop(&decoding),
        "peak_gib": used as f64 / GIB,
        "released_gib": used_after as f64 / GIB,
        "allocated_gib": held.values().sum::<f64>(),
        "planned_peak_gib": planned.peak() as f64 / GIB,
        "peak_over_plan": ratio,
        "device": bench.machine.name(),
        "config": config(bench),
    });
    println!("{line}");
    Ok(())
}
