//! Whole training runs: against the CPU session, captured against eager, and one run against the next.

use std::{collections::BTreeMap, sync::Arc};

use super::{Check, Result, instructions::ADAM, networks, networks::Network, noise, relative, updates};
use crate::engine::{
    cpu::CpuSession,
    cuda::{
        call::Element,
        device::Device,
        session::{CudaSession, Settings},
    },
    ir::{Group, Kind, ParamId},
    session::{Algorithms, Data, Moments, OptimizerSettings, ProgramId, Session, Update},
};

const STEPS: u64 = 10;
/// Replays that have to give the bits of as many eager steps.
const REPLAYS: u64 = 200;

pub(super) fn check(device: &Arc<Device>, element: Element, report: &mut dyn FnMut(Check)) -> Result<()> {
    let network = networks::dreambooth(2, [16, 12], 77)?;
    for moments in [Moments::F32, Moments::EightBit] {
        let optimizer = OptimizerSettings { moments, ..ADAM };
        against_cpu(device, element, &network, optimizer, report)?;
    }
    same_bits(device, element, &network, ADAM, report)?;
    updates::check(device, element, &network, report)?;
    preferred(device, element, &network, report)
}

pub(super) fn settings(element: Element, optimizer: OptimizerSettings, eager: bool) -> Settings {
    Settings {
        element,
        optimizer,
        eager,
        poison: true,
    }
}

/// A session with the network's weights and program in it.
pub(super) struct Run<S> {
    pub session: S,
    program: ProgramId,
    network: Network,
    pub losses: Vec<f32>,
    pub norms: Vec<f64>,
}

impl<S: Session> Run<S> {
    pub fn new(mut session: S, network: &Network) -> Result<Self> {
        for (index, param) in network.table.params.iter().enumerate() {
            let (inputs, values) = (param.len() / param.dims[0], noise(param.len(), index as u64 + 1));
            let values: Vec<f32> = match param.dims.len() {
                1 if param.name.ends_with("weight") => values.iter().map(|value| 1. + 0.2 * value).collect(),
                1 => values.iter().map(|value| 0.1 * value).collect(),
                _ => values.iter().map(|value| value * (2. / inputs as f32).sqrt()).collect(),
            };
            session.set_weight(ParamId(index as u32), &values)?;
        }
        let program = session.compile(network.program.clone())?;
        let network = Network {
            name: network.name,
            table: network.table.clone(),
            program: network.program.clone(),
        };
        Ok(Self {
            session,
            program,
            network,
            losses: Vec::new(),
            norms: Vec::new(),
        })
    }

    fn write(&mut self, step: u64, loss_scale: f32) -> Result<()> {
        for (seed, (name, &id)) in self.network.program.inputs.iter().enumerate() {
            let value = self.network.program.value(id);
            let values = noise(value.len(), step * 100 + seed as u64);
            match (name.as_str(), value.kind) {
                (_, Kind::Ids) => {
                    let ids: Vec<u32> = values.iter().map(|value| (value.abs() * 99.) as u32).collect();
                    self.session.write(self.program, name, Data::Ids(&ids))?;
                }
                ("shares", _) => self
                    .session
                    .write(self.program, name, Data::F32(&vec![0.5; value.len()]))?,
                // All timesteps are the middle of a schedule.
                ("schedule", _) => {
                    let levels = [0.8, 0.6, 1.].repeat(value.dims[0]);
                    self.session.write(self.program, name, Data::F32(&levels))?;
                }
                ("scale", _) => self.session.write(self.program, name, Data::F32(&[loss_scale]))?,
                _ => self.session.write(self.program, name, Data::F32(&values))?,
            }
        }
        Ok(())
    }

    pub fn step(&mut self, number: u64, loss_scale: f32) -> Result<()> {
        self.step_with(number, number, loss_scale)
    }

    /// The update of that number, with the inputs of another.
    pub fn step_with(&mut self, inputs: u64, number: u64, loss_scale: f32) -> Result<()> {
        self.write(inputs, loss_scale)?;
        self.update(number, f64::from(loss_scale))
    }

    /// The update of that number, of the mean of `parts` times the same gradients.
    pub fn sum(&mut self, number: u64, parts: u32, loss_scale: f32) -> Result<()> {
        self.write(number, loss_scale)?;
        for part in 1..parts {
            self.session.run(self.program)?;
            self.session.add_gradients(part == 1)?;
        }
        self.update(number, f64::from(loss_scale) * f64::from(parts))
    }

    fn update(&mut self, number: u64, loss_scale: f64) -> Result<()> {
        let update = Update {
            learning_rates: BTreeMap::from([(Group::UNet, 1e-3), (Group::TextEncoder, 5e-4)]),
            // Clips some steps and not others.
            max_grad_norm: self.norms.first().copied().unwrap_or(1.),
            loss_scale,
            number,
        };
        let updated = self.session.run_and_update(self.program, &update)?;
        self.norms
            .push(if updated.skipped { f64::NAN } else { updated.grad_norm });
        let losses = self.session.read(self.program, "losses")?;
        self.losses.extend(losses);
        Ok(())
    }

    pub fn weights(&mut self) -> Result<Vec<Vec<f32>>> {
        let ids = (0..self.network.table.params.len()).map(|index| ParamId(index as u32));
        ids.map(|id| Ok(self.session.weight(id)?)).collect()
    }
}

pub(super) fn against_cpu(
    device: &Arc<Device>,
    element: Element,
    network: &Network,
    optimizer: OptimizerSettings,
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    let low = optimizer.low_memory.is_some();
    let name = format!(
        "{} step against the CPU, moments {:?}{}",
        element.suffix(),
        optimizer.moments,
        if low { ", low memory" } else { "" }
    );
    let loss_scale = if element == Element::F16 { 1024. } else { 1. };
    let session = CudaSession::new(network.table.clone(), settings(element, optimizer, false), device)?;
    let mut gpu = Run::new(session, network)?;
    let mut cpu = Run::new(CpuSession::new(network.table.clone(), optimizer)?, network)?;
    let start = cpu.weights()?;
    // What is written is the exact master, whatever is computed in.
    let kept = gpu.weights()?;
    let unlike = start.iter().zip(&kept).filter(|(a, b)| a != b).count();
    report(Check {
        name: format!("{name}: weights come back as they were set"),
        error: unlike as f64,
        tolerance: 0.,
    });
    for number in 1..=STEPS {
        gpu.step(number, loss_scale)?;
        cpu.step(number, 1.)?;
        if number == 1 && low {
            gradient_norms(&mut gpu, &mut cpu, &name, report)?;
        } else if number == 1 {
            gradients(&mut gpu, &mut cpu, f64::from(loss_scale), &name, element, report)?;
        }
    }
    let (loss, change) = match element {
        Element::F32 => (1e-4, 2e-2),
        Element::F16 => (1e-2, 0.2),
        Element::Bf16 => (4e-2, 0.5),
    };
    let expected = cpu.losses.iter().map(|&loss| f64::from(loss));
    report(Check {
        name: format!("{name}: losses of {STEPS} steps"),
        error: relative(&gpu.losses, expected, 0.),
        tolerance: loss,
    });
    let error = relative(
        &gpu.norms.iter().map(|&norm| norm as f32).collect::<Vec<_>>(),
        cpu.norms.iter().copied(),
        0.,
    );
    report(Check {
        name: format!("{name}: gradient norms"),
        error,
        tolerance: loss,
    });
    // Adam divides by the gradient's own size, so that one which is all rounding moves a weight as far as any other: the
    // changes are compared as a whole.
    let (mut off, mut all) = (0f64, 0f64);
    for ((got, expected), start) in gpu.weights()?.iter().zip(&cpu.weights()?).zip(&start) {
        for ((got, expected), start) in got.iter().zip(expected).zip(start) {
            off += f64::from(got - expected).powi(2);
            all += f64::from(expected - start).powi(2);
        }
    }
    report(Check {
        name: format!("{name}: change of all weights in {STEPS} steps"),
        error: (off / all).sqrt(),
        tolerance: change,
    });
    if !low {
        averages(&mut gpu, loss_scale, &name, report)?;
    }
    // Moments of one device are those of the other.
    let (ours, theirs) = (gpu.session.moments()?, cpu.session.moments()?);
    let lens = |moments: &BTreeMap<String, Vec<u8>>| {
        moments
            .iter()
            .map(|(name, bytes)| (name.clone(), bytes.len()))
            .collect::<Vec<_>>()
    };
    report(Check {
        name: format!("{name}: moments have the names and lengths of the CPU's"),
        error: f64::from(u8::from(lens(&ours) != lens(&theirs))),
        tolerance: 0.,
    });
    gpu.session.restore_moments(&theirs)?;
    report(Check {
        name: format!("{name}: the CPU's moments come back from the GPU"),
        error: f64::from(u8::from(gpu.session.moments()? != theirs)),
        tolerance: 0.,
    });
    Ok(())
}

/// Averages follow the weights by the formula, and change places with them without a bit lost.
fn averages(gpu: &mut Run<CudaSession>, loss_scale: f32, name: &str, report: &mut dyn FnMut(Check)) -> Result<()> {
    const FRESH: f32 = 0.25;
    let before = gpu.weights()?;
    gpu.session.keep_averages()?;
    gpu.step(STEPS + 1, loss_scale)?;
    gpu.session.follow_weights(FRESH)?;
    let after = gpu.weights()?;
    let mut averaged = Vec::new();
    for index in 0..after.len() {
        averaged.push(gpu.session.average(ParamId(index as u32))?);
    }
    let expected = before.iter().zip(&after).flat_map(|(before, after)| {
        let pairs = before.iter().zip(after);
        pairs.map(|(before, after)| f64::from(*before) - f64::from(FRESH) * (f64::from(*before) - f64::from(*after)))
    });
    report(Check {
        name: format!("{name}: averages of the weights"),
        error: relative(&averaged.concat(), expected, 0.),
        tolerance: 1e-6,
    });
    gpu.session.exchange_averages()?;
    let exchanged = gpu.weights()? == averaged;
    gpu.session.exchange_averages()?;
    report(Check {
        name: format!("{name}: weights and averages change places and back, same bits"),
        error: f64::from(u8::from(!exchanged || gpu.weights()? != after)),
        tolerance: 0.,
    });
    Ok(())
}

/// The algorithms that a saved run names are taken, and give its bits.
fn preferred(device: &Arc<Device>, element: Element, network: &Network, report: &mut dyn FnMut(Check)) -> Result<()> {
    let loss_scale = if element == Element::F16 { 1024. } else { 1. };
    let mut runs = Vec::new();
    let mut saved: Option<Algorithms> = None;
    for others in [false, true, false] {
        let mut session = CudaSession::new(network.table.clone(), settings(element, ADAM, false), device)?;
        if let Some(saved) = &saved {
            let mut wanted = saved.clone();
            if others {
                wanted.chosen.values_mut().for_each(|position| *position += 1);
            }
            session.prefer(&wanted);
        }
        let mut run = Run::new(session, network)?;
        for number in 1..=3 {
            run.step(number, loss_scale)?;
        }
        let used = run.session.algorithms();
        saved = saved.or_else(|| used.clone());
        runs.push((used, run.losses.clone(), run.weights()?));
    }
    for (name, failed) in [
        (
            "other algorithms are taken where a run names them",
            runs[0].0 == runs[1].0,
        ),
        ("a run's own algorithms are taken again, same bits", runs[0] != runs[2]),
    ] {
        report(Check {
            name: format!("{} {name}", element.suffix()),
            error: f64::from(u8::from(failed)),
            tolerance: 0.,
        });
    }
    Ok(())
}

fn gradients(
    gpu: &mut Run<CudaSession>,
    cpu: &mut Run<CpuSession>,
    loss_scale: f64,
    name: &str,
    element: Element,
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    let tolerance = match element {
        Element::F32 => 2e-4,
        Element::F16 => 3e-2,
        Element::Bf16 => 0.2,
    };
    let (mut worst, mut off, mut all) = ((0., String::new()), 0f64, 0f64);
    for (index, param) in gpu.network.table.params.iter().enumerate() {
        let id = ParamId(index as u32);
        let (got, expected) = (gpu.session.gradient(id)?, cpu.session.gradient(id)?);
        let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (got, expected) in got.iter().zip(&expected) {
            off += (f64::from(*got) / loss_scale - f64::from(*expected)).powi(2);
            all += f64::from(*expected).powi(2);
        }
        // A key's bias moves all scores of a row alike, so that its gradient is rounding and nothing else.
        if largest < 1e-6 || param.name.ends_with("k_proj.bias") {
            continue;
        }
        let scaled = expected.iter().map(|&value| f64::from(value) * loss_scale);
        let error = relative(&got, scaled, 0.);
        if error > worst.0 || error.is_nan() {
            worst = (error, param.name.clone());
        }
    }
    report(Check {
        name: format!("{name}: worst gradient, {}", worst.1),
        error: worst.0,
        tolerance,
    });
    report(Check {
        name: format!("{name}: all gradients together"),
        error: (off / all).sqrt(),
        tolerance: tolerance / 4.,
    });
    Ok(())
}

/// Where gradients are gone, their norms are left.
fn gradient_norms(
    gpu: &mut Run<CudaSession>,
    cpu: &mut Run<CpuSession>,
    name: &str,
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    let mut worst = (0., String::new());
    for (index, param) in gpu.network.table.params.iter().enumerate() {
        let id = ParamId(index as u32);
        let (got, expected) = (gpu.session.gradient_norm(id)?, cpu.session.gradient_norm(id)?);
        if expected < 1e-5 || param.name.ends_with("k_proj.bias") {
            continue;
        }
        let error = (got / expected - 1.).abs();
        if error > worst.0 || error.is_nan() {
            worst = (error, param.name.clone());
        }
    }
    report(Check {
        name: format!("{name}: worst norm of a gradient, {}", worst.1),
        error: worst.0,
        tolerance: 0.1,
    });
    Ok(())
}

/// What a captured step computes is what the eager one does, to the bit; and so is what the next session computes.
pub(super) fn same_bits(
    device: &Arc<Device>,
    element: Element,
    network: &Network,
    optimizer: OptimizerSettings,
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    let loss_scale = if element == Element::F16 { 1024. } else { 1. };
    let mut ends = Vec::new();
    for eager in [true, false, false] {
        let session = CudaSession::new(network.table.clone(), settings(element, optimizer, eager), device)?;
        let mut run = Run::new(session, network)?;
        for number in 1..=REPLAYS {
            run.step(number, loss_scale)?;
        }
        ends.push((run.losses.clone(), run.weights()?, run.session.moments()?));
    }
    let finite = ends[0].0.iter().all(|loss| loss.is_finite());
    let unlike = |a: usize, b: usize| if finite && ends[a] == ends[b] { 0. } else { 1. };
    let low = if optimizer.low_memory.is_some() {
        " in low memory"
    } else {
        ""
    };
    for (name, error) in [
        (
            "a captured step replayed 200 times against 200 eager steps, same bits",
            unlike(0, 1),
        ),
        ("two runs of 200 steps, same bits", unlike(1, 2)),
    ] {
        report(Check {
            name: format!("{}{low} {name}", element.suffix()),
            error,
            tolerance: 0.,
        });
    }
    Ok(())
}
