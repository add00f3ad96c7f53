//! The 8-bit optimizer against bitsandbytes' rule: code tables, coding, and a trajectory of 20 updates.

use std::collections::BTreeMap;

use candle_core::Tensor;
use trainer::engine::{
    optim::adamw_8bit::{self, BLOCK, Block, Code, Codes, Quantized, Rates},
    session::{Moments, OptimizerSettings, Update},
};

use super::support::{Table, Tensors, load, values};

const LEARNING_RATE: f64 = 1e-3;

fn f32s(golden: &Tensors, name: &str) -> Vec<f32> {
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

#[test]
fn tables_and_coding_are_those_of_bitsandbytes() {
    let golden = load("bnb/bnb.safetensors");
    let mut table = Table::new("bitsandbytes: code tables and coding");
    for (code, map, of) in [
        (Code::signed(), "qmap_signed", "x"),
        (Code::unsigned(), "qmap_unsigned", "y"),
    ] {
        table.check(format!("{map}, ulp"), ulps(code.values(), &f32s(&golden, map)), 1.);
        let values = f32s(&golden, &format!("quant.{of}"));
        let want = codes_of(&golden[&format!("quant.{of}_codes")]);
        let mut codes = vec![0; values.len()];
        let largest: Vec<f32> = (values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)))
            .map(|(values, codes)| code.quantize(values, codes))
            .collect();
        assert_eq!(largest, f32s(&golden, &format!("quant.{of}_absmax")));
        // Those within 1e-6 of the middle between two entries may fall to either side.
        let (count, apart) = differing(&codes, &want);
        table.check(format!("codes of {of} that differ"), count as f64, 3.);
        table.check(format!("codes of {of}, apart"), f64::from(apart), 1.);
        let decoded: Vec<f32> = (want.iter().zip(0..))
            .map(|(&c, i): (&u8, usize)| code.values()[usize::from(c)] * largest[i / BLOCK])
            .collect();
        let want = f32s(&golden, &format!("quant.{of}_dequant"));
        table.check(format!("{of} decoded, ulp"), ulps(&decoded, &want), 1.);
    }
    table.finish();
}

struct State {
    p: Vec<f32>,
    first: Vec<u8>,
    first_largest: Vec<f32>,
    second: Vec<u8>,
    second_largest: Vec<f32>,
}

impl State {
    fn start(golden: &Tensors) -> Self {
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

    fn stored(golden: &Tensors, step: u64) -> Self {
        Self {
            p: f32s(golden, &format!("traj.p.{step}")),
            first: codes_of(&golden[&format!("traj.m_codes.{step}")]),
            first_largest: f32s(golden, &format!("traj.m_absmax.{step}")),
            second: codes_of(&golden[&format!("traj.v_codes.{step}")]),
            second_largest: f32s(golden, &format!("traj.v_absmax.{step}")),
        }
    }

    fn update(&mut self, number: u64, gradient: &[f32], codes: &Codes) {
        let settings = OptimizerSettings {
            moments: Moments::EightBit,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            epsilon: 1e-8,
            low_memory: None,
        };
        let update = Update {
            learning_rates: BTreeMap::new(),
            max_grad_norm: 0.,
            loss_scale: 1.,
            number,
        };
        let rates = Rates::new(&settings, &update, LEARNING_RATE, 1.);
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
            p_max: p.iter().map(|d| d.abs()).fold(0., super::support::worse),
            p_rms: (p.iter().map(|d| d * d).sum::<f64>() / p.len() as f64).sqrt(),
            codes: m.max(v) as f64 / p.len() as f64,
            apart: f64::from(m_apart.max(v_apart)),
        }
    }
}

struct Difference {
    p_max: f64,
    p_rms: f64,
    /// Share of the codes that differ, of the moment with more of them.
    codes: f64,
    apart: f64,
}

/// The gradient of update `number`, counted from 1.
fn gradient(golden: &Tensors, number: u64) -> Vec<f32> {
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
    let golden = load("bnb/bnb.safetensors");
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
    }
    table.finish();
}

#[test]
fn twenty_updates_on_its_own() {
    let golden = load("bnb/bnb.safetensors");
    let codes = Codes::default();
    let mut state = State::start(&golden);
    let mut table = Table::new("bitsandbytes: twenty updates");
    for number in 1..=20 {
        state.update(number, &gradient(&golden, number), &codes);
        if golden.contains_key(&format!("traj.p.{number}")) {
            let difference = state.compare(&State::stored(&golden, number));
            table.check(format!("p, rms after {number}"), difference.p_rms, 1e-5);
            table.check(format!("share of codes after {number}"), difference.codes, 5e-3);
        }
    }
    table.finish();
}
