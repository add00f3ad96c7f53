//! The tutorial's whole run, as a user would time it: this program's own `train` and `convert`, on a model of random weights.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use app::event::{Event, EventKind, Phase};
use image::{Rgb, RgbImage};
use serde_json::json;

use super::cli::Bench;
use super::programs::Model;
use super::report::{GIB, Machine, Times, config};
use crate::engine::cuda::call::Element;
use crate::formats::{self, Width};

const PHOTOS: u32 = 5;
const CLASS_IMAGES: u32 = 50;
const SAMPLES: u32 = 4;
/// Of class images and samples.
const SAMPLING_STEPS: u32 = 20;

pub(super) fn run(bench: &Bench) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("likeness-bench-").tempdir()?;
    let folder = scratch.path();
    let begun = Instant::now();
    let mut model = Model::new(bench.args.arch);
    formats::save_diffusers(&folder.join("model"), &model.weights()?, Width::Single)?;
    draw_photos(&folder.join("photos"), model.side_px() as u32)?;
    bench.say(format_args!(
        "a model and photos were made up in {:.1} s, in {}",
        begun.elapsed().as_secs_f64(),
        folder.display()
    ));

    let first = Trained::new(bench, folder, "first")?;
    let begin = Instant::now();
    let converted = folder.join("model.safetensors");
    let step = bench.args.steps().to_string();
    let mut convert = Command::new(std::env::current_exe()?);
    convert.arg("convert").args(["--half", "--use_safetensors"]);
    convert.arg("--model_path").arg(folder.join("first").join(step));
    convert.arg("--checkpoint_path").arg(&converted);
    finish(&mut convert)?;
    let convert_s = begin.elapsed().as_secs_f64();
    let all_s = first.all_s + convert_s;
    // Class images are there now, as they are for whoever trains a second time.
    let second = Trained::new(bench, folder, "second")?;

    let times = Times::new(first.step_ms.clone());
    bench.say(format_args!(
        "whole run {all_s:.1} s: {CLASS_IMAGES} class images {:.1}, {} steps {:.1} (median {:.2} ms), {SAMPLES} samples and the model {:.1}, \
         conversion {convert_s:.1}, the rest {:.1}",
        first.class_images_s,
        bench.args.steps(),
        first.training_s,
        times.at(0.5),
        first.after_s,
        first.all_s - first.class_images_s - first.training_s - first.after_s,
    ));
    bench.say(format_args!(
        "start     first step done after {:.1} s, {:.1} s where class images are still to be drawn",
        second.first_step_s, first.first_step_s
    ));
    for (name, run) in [("phases", &first), ("again", &second)] {
        let begun: Vec<String> = (run.phases_s.iter())
            .map(|(phase, at_s)| format!("{phase:?} {at_s:.1}"))
            .collect();
        bench.say(format_args!(
            "{name:<9} s from the start to its beginning: {}, end {:.1}",
            begun.join(", "),
            run.all_s
        ));
    }
    let peaks = first.peaks_gib.iter().map(|(phase, gib)| format!("{phase:?} {gib:.2}"));
    if !first.peaks_gib.is_empty() {
        let peaks: Vec<String> = peaks.collect();
        bench.say(format_args!(
            "memory    GiB at most, as the driver counts: {}",
            peaks.join(", ")
        ));
    }
    let line = json!({
        "s_in_all": all_s,
        "first_step_s": second.first_step_s,
        "class_images_s": first.class_images_s,
        "training_s": first.training_s,
        "after_training_s": first.after_s,
        "convert_s": convert_s,
        "phases_s": first.phases_s.iter().map(|(phase, at_s)| json!([phase, at_s])).collect::<Vec<_>>(),
        "ms_per_step": times.at(0.5),
        "times_ms": times.json(),
        "peaks_gib": first.peaks_gib.iter().map(|(phase, gib)| json!([phase, gib])).collect::<Vec<_>>(),
        "device": bench.machine.name(),
        "config": config(bench),
    });
    println!("{line}");
    Ok(())
}

/// What one `train` took, by its own log.
struct Trained {
    all_s: f64,
    first_step_s: f64,
    class_images_s: f64,
    training_s: f64,
    after_s: f64,
    step_ms: Vec<f64>,
    /// When each phase began, in order.
    phases_s: Vec<(Phase, f64)>,
    /// Of the GPU's memory in each phase, in order; what was in use before is not counted.
    peaks_gib: Vec<(Phase, f64)>,
}

impl Trained {
    fn new(bench: &Bench, folder: &Path, name: &str) -> anyhow::Result<Self> {
        let output = folder.join(name);
        let start_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        let begin = Instant::now();
        let used = watched(&bench.machine, || finish(&mut train(bench, folder, &output)?))?;
        let all_s = begin.elapsed().as_secs_f64();
        let log = output.join(".likeness").join("events.jsonl");
        let text = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let events: Vec<Event> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let after = |found: &dyn Fn(&EventKind) -> bool| {
            let event = events.iter().find(|event| found(&event.kind));
            event.map(|event| event.at_ms.saturating_sub(start_ms) as f64 / 1e3)
        };
        let phase = |wanted: Phase| after(&|kind| matches!(kind, EventKind::Phase { phase } if *phase == wanted));
        let steps = bench.args.steps() as u32;
        let step = |wanted: u32| after(&|kind| matches!(kind, EventKind::Step { step, .. } if *step == wanted));
        let (first_step_s, last_step_s) = step(1).zip(step(steps)).context("the run's log lacks steps")?;
        let class_images_s = match (phase(Phase::ClassImages), phase(Phase::CachingLatents)) {
            (Some(from), Some(to)) => to - from,
            _ => 0.,
        };
        let phases: Vec<(Phase, u64)> = (events.iter())
            .filter_map(|event| match event.kind {
                EventKind::Phase { phase } => Some((phase, event.at_ms)),
                _ => None,
            })
            .collect();
        let step_ms = events.iter().filter_map(|event| match event.kind {
            EventKind::Step { ms, .. } => Some(f64::from(ms)),
            _ => None,
        });
        Ok(Self {
            all_s,
            first_step_s,
            class_images_s,
            training_s: last_step_s - first_step_s,
            after_s: all_s - last_step_s,
            step_ms: step_ms.collect(),
            phases_s: (phases.iter())
                .map(|&(phase, at_ms)| (phase, at_ms.saturating_sub(start_ms) as f64 / 1e3))
                .collect(),
            peaks_gib: peaks_gib(&used, &phases),
        })
    }
}

/// The tutorial's command.
fn train(bench: &Bench, folder: &Path, output: &Path) -> anyhow::Result<Command> {
    let args = bench.args;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("train").args([
        "--instance_prompt=photo of zwx dog",
        "--class_prompt=photo of a dog",
        "--with_prior_preservation",
        "--prior_loss_weight=1.0",
        "--seed=1337",
        "--train_batch_size=1",
        "--gradient_accumulation_steps=1",
        "--learning_rate=1e-6",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        "--sample_batch_size=4",
        "--save_sample_prompt=photo of zwx dog",
        "--save_fp16",
    ]);
    let mut flag = |name: &str, value: &dyn std::fmt::Display| {
        command.arg(format!("--{name}={value}"));
    };
    let precision = match bench.element() {
        Element::F32 => "no",
        Element::F16 => "fp16",
        Element::Bf16 => "bf16",
    };
    flag("mixed_precision", &precision);
    flag("max_train_steps", &args.steps());
    flag("num_class_images", &CLASS_IMAGES);
    flag("n_save_sample", &SAMPLES);
    flag("save_infer_steps", &SAMPLING_STEPS);
    flag("device", &bench.machine.kind());
    flag("pretrained_model_name_or_path", &folder.join("model").display());
    flag("instance_data_dir", &folder.join("photos").display());
    flag("class_data_dir", &folder.join("class").display());
    flag("output_dir", &output.display());
    let switches = [
        ("train_text_encoder", args.train_text_encoder),
        ("use_8bit_adam", args.use_8bit_adam),
        ("gradient_checkpointing", args.gradient_checkpointing),
        ("low_memory", args.low_memory),
    ];
    for (name, on) in switches {
        if on {
            command.arg(format!("--{name}"));
        }
    }
    Ok(command)
}

/// Between two looks at the GPU's memory.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes of a GPU's memory in use while `work` goes on, by the time in milliseconds; nothing on the CPU. The first is from
/// before.
fn watched(machine: &Machine, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Vec<(u64, u64)>> {
    let Machine::Gpu(_) = machine else {
        work()?;
        return Ok(Vec::new());
    };
    let look = || -> anyhow::Result<(u64, u64)> {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        Ok((at_ms, machine.used_bytes()?))
    };
    let mut seen = vec![look()?];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| -> anyhow::Result<()> {
            while !done.load(Ordering::Relaxed) {
                seen.push(look()?);
                std::thread::sleep(LOOK);
            }
            Ok(())
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let watched = watching
            .join()
            .map_err(|_| anyhow::anyhow!("watching the memory failed"))?;
        worked.and(watched)
    })?;
    Ok(seen)
}

/// The most of each phase, less what was in use before.
fn peaks_gib(used: &[(u64, u64)], phases: &[(Phase, u64)]) -> Vec<(Phase, f64)> {
    let Some((_, before)) = used.first() else {
        return Vec::new();
    };
    let ends = phases.iter().skip(1).map(|(_, at_ms)| *at_ms).chain([u64::MAX]);
    (phases.iter().zip(ends))
        .map(|(&(phase, from), to)| {
            let within = used.iter().filter(|(at_ms, _)| (from..to).contains(at_ms));
            let most = within.map(|(_, bytes)| bytes.saturating_sub(*before)).max();
            (phase, most.unwrap_or(0) as f64 / GIB)
        })
        .collect()
}

/// Runs a command to its end; its words are shown only when it fails.
fn finish(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Photos of nothing: what is in them costs no time.
fn draw_photos(folder: &Path, side: u32) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    (0..PHOTOS)
        .map(|photo| {
            let path = folder.join(format!("{photo}.png"));
            let picture = RgbImage::from_fn(side, side, |x, y| {
                let level = |part: u32| (part * 255 / side) as u8;
                Rgb([level(x), level(y), level((x * (photo + 1) + y) % side)])
            });
            picture.save(&path)?;
            Ok(path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_of_their_own_phase() {
        let gib = |gib: u64| gib << 30;
        let used = [(5, gib(1)), (10, gib(4)), (19, gib(5)), (20, gib(2)), (90, gib(3))];
        let phases = [(Phase::Loading, 10), (Phase::Training, 20), (Phase::Exporting, 95)];
        let expected = [(Phase::Loading, 4.), (Phase::Training, 2.), (Phase::Exporting, 0.)];
        assert_eq!(peaks_gib(&used, &phases), expected);
        assert!(peaks_gib(&[], &phases).is_empty());
    }
}
