//! A training step.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;

use super::arithmetic::flop;
use super::cli::{Bench, Running};
use super::profile::profile;
use super::programs::Model;
use super::report::{GIB, Machine, Planned, Times, config, held};
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::cuda::call::Element;
use crate::engine::ir::{Group, Kind, ParamId, ParamTable};
use crate::engine::session::{Data, Session, Update};

/// Steps before the clock starts: algorithms are chosen, kernels load, the step is captured.
const WARM_UP: u64 = 5;

pub(super) fn run(bench: &Bench) -> anyhow::Result<()> {
    let (args, begun) = (bench.args, Instant::now());
    let mut model = Model::new(args.arch);
    let program = model.training(
        args.rows,
        args.train_text_encoder,
        args.gradient_checkpointing || args.low_memory,
    )?;
    // A run holds the VAE, too, though no step reads it.
    let encoding = model.encoding()?;
    let rate = matrix_rate(bench)?;
    let idle = bench.machine.used_bytes()?;
    let planned = Planned::new(bench, &model.table, &[&program, &encoding])?;
    let mut running = bench.session(model.table.clone())?;
    model.fill(running.session())?;
    let weights_s = begun.elapsed().as_secs_f64();
    let id = running.session().compile(program.clone())?;
    let encoding_id = running.session().compile(encoding.clone())?;
    model.write(running.session(), encoding_id, &encoding, 0)?;
    running.session().run(encoding_id)?;
    let mut losses = Vec::new();
    let mut first_step_s = 0.;
    let mut millis = Vec::new();
    for number in 1..=WARM_UP + args.steps() as u64 {
        let start = Instant::now();
        model.write(running.session(), id, &program, number)?;
        let begin = Instant::now();
        let updated = running.session().run_and_update(id, &update(number))?;
        losses = running.session().read(id, "losses")?;
        anyhow::ensure!(
            !updated.skipped && losses.iter().all(|loss| loss.is_finite()),
            "step {number} gave {losses:?}, gradient norm {}",
            updated.grad_norm
        );
        if number == 1 {
            first_step_s = begun.elapsed().as_secs_f64();
        }
        if number > WARM_UP {
            // Making up inputs is the bench's work and writing them the step's; the first is most of the difference.
            millis.push(begin.elapsed().as_secs_f64() * 1e3);
            tracing::debug!(
                "step {number}: {:.2} ms with new inputs",
                start.elapsed().as_secs_f64() * 1e3
            );
        }
    }
    let warmup_s = begun.elapsed().as_secs_f64() - millis.iter().sum::<f64>() / 1e3;
    let (used, times) = (bench.machine.used_bytes()?, Times::new(millis));
    let held = held(&running);
    let work = flop(&program);
    let floor = rate.map(|rate| work / rate * 1e3);
    bench.say(format_args!(
        "{}: {} instructions",
        bench.machine.name(),
        program.code.len()
    ));
    bench.say(format_args!(
        "step      {:.2} ms (p10 {:.2}, p90 {:.2}), {:.1} images/s, last losses {losses:?}",
        times.at(0.5),
        times.at(0.1),
        times.at(0.9),
        args.rows as f64 / times.at(0.5) * 1e3
    ));
    if let (Some(floor), Some(rate)) = (floor, rate) {
        bench.say(format_args!(
            "floor     {floor:.2} ms: {:.2} TFLOP of matrix work at the {:.0} TFLOP/s that one large product reaches; ratio {:.2}",
            work / 1e12,
            rate / 1e12,
            times.at(0.5) / floor
        ));
    }
    bench.say(format_args!(
        "memory    {:.2} GiB in use, {:.2} before the weights; held: {held:.2?}",
        used as f64 / GIB,
        idle as f64 / GIB
    ));
    let ratio = planned.ratio(bench, used)?;
    bench.say(format_args!(
        "start     first step done after {first_step_s:.1} s, weights there after {weights_s:.1} s"
    ));
    let kinds = profile(bench, &mut running, id, &program, Some(&update(1)))?;
    let line = json!({
        "ms_per_step": times.at(0.5),
        "min_ms": times.at(0.),
        "times_ms": times.json(),
        "images_per_s": args.rows as f64 / times.at(0.5) * 1e3,
        "peak_gib": used as f64 / GIB,
        "allocated_gib": held.values().sum::<f64>(),
        "held_gib": held,
        "planned_peak_gib": planned.peak() as f64 / GIB,
        "planned_gib": planned.gib(),
        "peak_over_plan": ratio,
        "warmup_s": warmup_s,
        "first_step_s": first_step_s,
        "flop": work,
        "matrix_flop_per_s": rate,
        "floor_ms": floor,
        "by_instruction_ms": kinds,
        "device": bench.machine.name(),
        "config": config(bench),
    });
    println!("{line}");
    Ok(())
}

fn update(number: u64) -> Update {
    Update {
        learning_rates: BTreeMap::from([(Group::UNet, 1e-6), (Group::TextEncoder, 1e-6)]),
        max_grad_norm: 1.,
        loss_scale: 1.,
        number,
    }
}

/// FLOP/s of one large matrix product, the most that this device shows; `None` on the CPU.
fn matrix_rate(bench: &Bench) -> anyhow::Result<Option<f64>> {
    const SIDE: usize = 8192;
    if matches!(bench.machine, Machine::Cpu) || bench.element() == Element::F32 {
        return Ok(None);
    }
    let mut table = ParamTable::default();
    let mut b = Builder::new(&mut table);
    let x = b.input("x", &[SIDE, SIDE], Kind::Activation);
    let y = b.linear(x, &Scope::new("product", Group::UNet, false), SIDE, Bias::None, None);
    b.output("y", y);
    let program = b.finish()?.program;
    let Running::Gpu(mut session) = bench.session(table)? else {
        return Ok(None);
    };
    let values: Vec<f32> = (0..SIDE * SIDE)
        .map(|i| ((i * 7919 % 1000) as f32 - 499.5) / 500.)
        .collect();
    session.set_weight(ParamId(0), &values)?;
    let id = session.compile(program.clone())?;
    session.write(id, "x", Data::F32(&values))?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let millis: f64 = session
            .profile(id, None)?
            .iter()
            .map(|(_, millis)| f64::from(*millis))
            .sum();
        best = best.min(millis / 1e3);
    }
    Ok(Some(flop(&program) / best))
}
