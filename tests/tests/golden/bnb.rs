//! The 8-bit optimizer against bitsandbytes' rule: code tables, coding, and a trajectory of 20 updates.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::Deserialize;
use trainer::engine::{
    optim::adamw_8bit::{self, BLOCK, Block, Code, Codes, Quantized, Rates, SMALL},
    session::{Moments, OptimizerSettings, Update},
};

use super::support::{Golden, Table, json, part_of, peek, relmax_values, values, worse};

/// How the trajectory was made.
#[derive(Deserialize)]
struct Settings {
    numel: usize,
    steps: u64,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    min_8bit_size: usize,
}

#[derive(Deserialize)]
struct File {
    settings: Settings,
}

fn settings() -> Settings {
    json::<File>("bnb/bnb.json").settings
}

fn f32s(golden: &Golden, name: &str) -> Vec<f32> {
    values(&golden[name]).into_iter().map(|value| value as f32).collect()
}

fn codes_of(tensor: &Tensor) -> Vec<u8> {
    values(tensor).into_iter().map(|code| code as u8).collect()
}

/// How many of two lists differ, and by how much at most.
fn differing(got: &[u8], want: &[u8]) -> (usize, u8) {
    assert_eq!(got.len(), want.len());
    let differences = got.iter().zip(want).map(|(got, want)| got.abs_diff(*want));
    let apart: Vec<u8> = differences.filter(|&difference| difference > 0).collect();
    (apart.len(), apart.iter().copied().max().unwrap_or(0))
}

/// The largest distance in units in the last place.
fn ulps(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let distance = |(got, want): (&f32, &f32)| got.to_bits().abs_diff(want.to_bits());
    got.iter().zip(want).map(distance).max().map_or(f64::NAN, f64::from)
}

fn relmax(got: &[f32], want: &[f32]) -> f64 {
    let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|value| f64::from(*value)).collect() };
    relmax_values(&wide(got), &wide(want))
}

#[test]
fn tables_and_coding_are_those_of_bitsandbytes() {
    let golden = part_of("bnb/bnb.safetensors", "coding");
    let mut table = Table::new("bitsandbytes: code tables and coding");
    for (code, map, of) in [
        (Code::signed(), "qmap_signed", "x"),
        (Code::unsigned(), "qmap_unsigned", "y"),
    ] {
        table.check(format!("{map}, ulp"), ulps(code.values(), &f32s(&golden, map)), 1.);
        let values = f32s(&golden, &format!("quant.{of}"));
        let want = codes_of(&golden[format!("quant.{of}_codes").as_str()]);
        let mut codes = vec![0; values.len()];
        let largest: Vec<f32> = (values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)))
            .map(|(values, codes)| code.quantize(values, codes))
            .collect();
        table.equal(
            format!("largest of each block of {of}"),
            &largest,
            &f32s(&golden, &format!("quant.{of}_absmax")),
        );
        // Those within 1e-6 of the middle between two entries may fall to either side.
        let (count, apart) = differing(&codes, &want);
        table.check(format!("codes of {of} that differ"), count as f64, 3.);
        table.check(format!("codes of {of}, apart"), f64::from(apart), 1.);
        let decoded = decoded(&code, &want, &largest);
        let want = f32s(&golden, &format!("quant.{of}_dequant"));
        table.check(format!("{of} decoded, ulp"), ulps(&decoded, &want), 0.);
    }
    table.finish();
}

fn decoded(code: &Code, codes: &[u8], largest: &[f32]) -> Vec<f32> {
    let values = codes.chunks(BLOCK).zip(largest);
    values
        .flat_map(|(codes, largest)| codes.iter().map(move |c| code.values()[usize::from(*c)] * largest))
        .collect()
}

struct State {
    p: Vec<f32>,
    first: Vec<u8>,
    first_largest: Vec<f32>,
    second: Vec<u8>,
    second_largest: Vec<f32>,
}

impl State {
    fn start(golden: &Golden) -> Self {
        let p = f32s(golden, "traj.p0");
        let (len, blocks) = (p.len(), p.len().div_ceil(BLOCK));
        Self {
            p,
            first: vec![0; len],
            first_largest: vec![0.; blocks],
            second: vec![0; len],
            second_largest: vec![0.; blocks],
        }
    }

    fn stored(golden: &Golden, step: u64) -> Self {
        Self {
            p: f32s(golden, &format!("traj.p.{step}")),
            first: codes_of(&golden[format!("traj.m_codes.{step}").as_str()]),
            first_largest: f32s(golden, &format!("traj.m_absmax.{step}")),
            second: codes_of(&golden[format!("traj.v_codes.{step}").as_str()]),
            second_largest: f32s(golden, &format!("traj.v_absmax.{step}")),
        }
    }

    fn update(&mut self, number: u64, gradient: &[f32], codes: &Codes) {
        let given = settings();
        let settings = OptimizerSettings {
            moments: Moments::EightBit,
            beta1: given.betas[0],
            beta2: given.betas[1],
            weight_decay: given.weight_decay,
            epsilon: given.eps,
            low_memory: None,
        };
        let update = Update {
            learning_rates: BTreeMap::new(),
            max_grad_norm: 0.,
            loss_scale: 1.,
            number,
        };
        let rates = Rates::new(&settings, &update, given.lr, 1.);
        let blocks = (self.p.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK)))
            .zip(self.first.chunks_mut(BLOCK).zip(&mut self.first_largest))
            .zip(self.second.chunks_mut(BLOCK).zip(&mut self.second_largest));
        for (((p, g), (first, first_largest)), (second, second_largest)) in blocks {
            let block = Block {
                p,
                g,
                first: Quantized {
                    codes: first,
                    largest: first_largest,
                },
                second: Quantized {
                    codes: second,
                    largest: second_largest,
                },
            };
            adamw_8bit::update(block, &rates, codes);
        }
    }

    fn compare(&self, want: &Self) -> Difference {
        let apart = |got: &[f32], want: &[f32]| -> Vec<f64> {
            got.iter().zip(want).map(|(got, want)| f64::from(got - want)).collect()
        };
        let p = apart(&self.p, &want.p);
        let (m, m_apart) = differing(&self.first, &want.first);
        let (v, v_apart) = differing(&self.second, &want.second);
        Difference {
            p_max: p.iter().map(|d| d.abs()).fold(0., worse),
            largest: relmax(&self.first_largest, &want.first_largest)
                .max(relmax(&self.second_largest, &want.second_largest)),
            p_rms: (p.iter().map(|d| d * d).sum::<f64>() / p.len() as f64).sqrt(),
            codes: m.max(v) as f64 / p.len() as f64,
            apart: f64::from(m_apart.max(v_apart)),
        }
    }
}

struct Difference {
    p_max: f64,
    p_rms: f64,
    /// Of the blocks' largest values, relative to the largest of them.
    largest: f64,
    /// Share of the codes that differ, of the moment with more of them.
    codes: f64,
    apart: f64,
}

/// The gradient of update `number`, counted from 1.
fn gradient(golden: &Golden, number: u64) -> Vec<f32> {
    let at = number as usize - 1;
    let (which, exponent) = (values(&golden["traj.which"])[at], values(&golden["traj.exponent"])[at]);
    let base = golden["traj.grad_base"].get(which as usize).unwrap();
    values(&base)
        .into_iter()
        .map(|g| (g * exponent.exp2()) as f32)
        .collect()
}

#[test]
fn one_update_from_a_stored_state() {
    let golden = peek("bnb/bnb.safetensors");
    let codes = Codes::default();
    let mut table = Table::new("bitsandbytes: one update");
    for (from, number) in [
        (State::start(&golden), 1),
        (State::stored(&golden, 1), 2),
        (State::stored(&golden, 10), 11),
    ] {
        let mut state = from;
        state.update(number, &gradient(&golden, number), &codes);
        let difference = state.compare(&State::stored(&golden, number));
        table.check(format!("p, update {number}"), difference.p_max, 1e-7);
        table.check(format!("share of codes, update {number}"), difference.codes, 1e-3);
        table.check(format!("codes apart, update {number}"), difference.apart, 1.);
        table.check(
            format!("largest of each block, update {number}"),
            difference.largest,
            1e-6,
        );
    }
    table.finish();
}

#[test]
fn twenty_updates_on_its_own() {
    let golden = part_of("bnb/bnb.safetensors", "updates");
    let codes = Codes::default();
    let mut state = State::start(&golden);
    let Settings {
        numel,
        steps,
        min_8bit_size,
        ..
    } = settings();
    let mut table = Table::new("bitsandbytes: twenty updates");
    table.equal("elements from which on moments are in 8 bits", &SMALL, &min_8bit_size);
    assert_eq!(state.p.len(), numel);
    for number in 1..=steps {
        state.update(number, &gradient(&golden, number), &codes);
        if golden.get(&format!("traj.p.{number}")).is_some() {
            let difference = state.compare(&State::stored(&golden, number));
            table.check(format!("p, rms after {number}"), difference.p_rms, 1e-5);
            table.check(format!("share of codes after {number}"), difference.codes, 5e-3);
            table.check(
                format!("largest of each block after {number}"),
                difference.largest,
                1e-4,
            );
        }
    }
    let last = State::stored(&golden, steps);
    for (name, code, of, largest) in [
        ("m", &codes.first, &last.first, &last.first_largest),
        ("v", &codes.second, &last.second, &last.second_largest),
    ] {
        let want = f32s(&golden, &format!("traj.{name}_dequant_first2048.{steps}"));
        let got = decoded(code, &of[..want.len()], largest);
        table.check(format!("{name} decoded after {steps}, ulp"), ulps(&got, &want), 0.);
    }
    table.finish();
}
