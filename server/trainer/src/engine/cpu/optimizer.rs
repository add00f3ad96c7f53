//! The optimizer's memory and its update on the CPU.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{
    super::{
        ir::{Param, ParamTable},
        optim::{
            adamw,
            adamw_8bit::{self, BLOCK, Block, Codes, Quantized, SMALL},
            clip_factor, rounding,
        },
        session::{EngineError, LowMemory, Moments, OptimizerSettings, Result, Update, Updated},
    },
    kernel::vectorized,
    memory::check_free,
};

/// Values a thread works on at a time: parameter, gradient and moments stay in its cache.
const RUN: usize = 32 * BLOCK;

pub(super) struct Optimizer {
    settings: OptimizerSettings,
    codes: Codes,
    /// By parameter; empty until the first update.
    states: Vec<State>,
}

/// Both moments of a tensor, in its row-major order.
enum State {
    /// Not trained.
    None,
    F32 {
        first: Vec<f32>,
        second: Vec<f32>,
    },
    /// The largest value is by block.
    EightBit {
        first: Vec<u8>,
        first_largest: Vec<f32>,
        second: Vec<u8>,
        second_largest: Vec<f32>,
    },
}

impl State {
    fn new(param: &Param, moments: Moments) -> Self {
        let len = param.len();
        if !param.trained {
            Self::None
        } else if moments == Moments::F32 || len < SMALL {
            Self::F32 {
                first: vec![0.; len],
                second: vec![0.; len],
            }
        } else {
            Self::EightBit {
                first: vec![0; len],
                first_largest: vec![0.; len.div_ceil(BLOCK)],
                second: vec![0; len],
                second_largest: vec![0.; len.div_ceil(BLOCK)],
            }
        }
    }

    /// Bytes that [`Self::new`] takes.
    fn bytes(param: &Param, moments: Moments) -> usize {
        let len = param.len();
        match (param.trained, moments == Moments::F32 || len < SMALL) {
            (false, _) => 0,
            (true, true) => 2 * size_of::<f32>() * len,
            (true, false) => 2 * (len + size_of::<f32>() * len.div_ceil(BLOCK)),
        }
    }

    /// Its parts under the names that torch and bitsandbytes give them.
    fn parts(&mut self) -> Vec<(&'static str, Part<'_>)> {
        match self {
            Self::None => vec![],
            Self::F32 { first, second } => vec![("exp_avg", Part::F32(first)), ("exp_avg_sq", Part::F32(second))],
            Self::EightBit {
                first,
                first_largest,
                second,
                second_largest,
            } => vec![
                ("state1", Part::Codes(first)),
                ("absmax1", Part::F32(first_largest)),
                ("state2", Part::Codes(second)),
                ("absmax2", Part::F32(second_largest)),
            ],
        }
    }
}

/// Bytes that the optimizer of these weights is going to hold.
pub(super) fn moment_bytes(params: &ParamTable, moments: Moments) -> usize {
    params.params.iter().map(|param| State::bytes(param, moments)).sum()
}

enum Part<'a> {
    F32(&'a mut [f32]),
    Codes(&'a mut [u8]),
}

impl Part<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Codes(codes) => codes.to_vec(),
        }
    }

    fn restore(self, name: &str, bytes: &[u8]) -> Result<()> {
        let want = match &self {
            Self::F32(values) => size_of_val(&**values),
            Self::Codes(codes) => codes.len(),
        };
        if bytes.len() != want {
            return Err(EngineError::Length {
                name: name.to_owned(),
                want,
                got: bytes.len(),
            });
        }
        match self {
            Self::F32(values) => {
                let (words, _) = bytes.as_chunks::<4>();
                values
                    .iter_mut()
                    .zip(words)
                    .for_each(|(value, word)| *value = f32::from_le_bytes(*word));
            }
            Self::Codes(codes) => codes.copy_from_slice(bytes),
        }
        Ok(())
    }
}

impl Optimizer {
    pub fn new(settings: OptimizerSettings) -> Self {
        Self {
            settings,
            codes: Codes::default(),
            states: vec![],
        }
    }

    /// Makes room for the moments when they are first needed: a session that only samples has none.
    fn prepare(&mut self, params: &ParamTable) -> Result<()> {
        if !self.states.is_empty() {
            return Ok(());
        }
        check_free(moment_bytes(params, self.settings.moments), "the optimizer")?;
        let state = |param| State::new(param, self.settings.moments);
        self.states = params.params.iter().map(state).collect();
        Ok(())
    }

    /// One update of the trained weights of the groups that have a learning rate.
    pub fn update(
        &mut self,
        params: &ParamTable,
        weights: &mut [Vec<f32>],
        gradients: &[Vec<f32>],
        update: &Update,
    ) -> Result<Updated> {
        self.prepare(params)?;
        let rate = |index: usize| update.learning_rates.get(&params.params[index].group).copied();
        let trained: Vec<(usize, f64)> = (0..weights.len())
            .filter(|&index| params.params[index].trained)
            .filter_map(|index| Some((index, rate(index)?)))
            .collect();
        let squares: f64 = trained
            .iter()
            .map(|&(index, _)| sum_of_squares(&gradients[index]))
            .sum();
        let grad_norm = squares.sqrt() / update.loss_scale;
        if !grad_norm.is_finite() {
            return Ok(Updated {
                grad_norm,
                skipped: true,
            });
        }
        let factor = clip_factor(grad_norm, update.max_grad_norm) / update.loss_scale;
        for (index, learning_rate) in trained {
            self.apply(
                index,
                (&mut weights[index], &gradients[index]),
                update,
                learning_rate,
                factor,
            );
        }
        Ok(Updated {
            grad_norm,
            skipped: false,
        })
    }

    /// The update of one weight by itself, clipped by its own norm and rounded to bf16: [`LowMemory`]. Its gradient's sum
    /// of squares, none where its group has no learning rate. One that is not finite changes nothing.
    pub fn update_one(
        &mut self,
        params: &ParamTable,
        index: usize,
        (weight, gradient): (&mut [f32], &[f32]),
        update: &Update,
        LowMemory { seed }: LowMemory,
    ) -> Result<Option<f64>> {
        self.prepare(params)?;
        let Some(&learning_rate) = update.learning_rates.get(&params.params[index].group) else {
            return Ok(None);
        };
        let squares = sum_of_squares(gradient);
        let norm = squares.sqrt() / update.loss_scale;
        if !norm.is_finite() {
            return Ok(Some(squares));
        }
        let factor = clip_factor(norm, update.max_grad_norm) / update.loss_scale;
        self.apply(index, (weight, gradient), update, learning_rate, factor);
        let key = rounding::key_of_tensor(rounding::key(seed, update.number), index as u32);
        (weight.par_chunks_mut(RUN).enumerate()).for_each(|(run, values)| round_run(values, key, (run * RUN) as u32));
        Ok(Some(squares))
    }

    fn apply(&mut self, index: usize, (p, g): (&mut [f32], &[f32]), update: &Update, learning_rate: f64, factor: f64) {
        match (&mut self.states[index], self.settings.moments) {
            (State::None, _) => {}
            (State::F32 { first, second }, Moments::F32) => {
                let rates = adamw::Rates::new(&self.settings, update, learning_rate, factor);
                runs(p, g, first, second, |p, g, m, v| adamw_run(p, g, m, v, &rates));
            }
            (State::F32 { first, second }, Moments::EightBit) => {
                let rates = adamw_8bit::Rates::new(&self.settings, update, learning_rate, factor);
                runs(p, g, first, second, |p, g, m, v| small_run(p, g, m, v, &rates));
            }
            (
                State::EightBit {
                    first,
                    first_largest,
                    second,
                    second_largest,
                },
                _,
            ) => {
                let rates = adamw_8bit::Rates::new(&self.settings, update, learning_rate, factor);
                let blocks = (p.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)))
                    .zip(first.par_chunks_mut(BLOCK).zip(first_largest))
                    .zip(second.par_chunks_mut(BLOCK).zip(second_largest));
                blocks
                    .with_min_len(RUN / BLOCK)
                    .for_each(|(((p, g), (codes1, largest1)), (codes2, largest2))| {
                        let block = Block {
                            p,
                            g,
                            first: Quantized {
                                codes: codes1,
                                largest: largest1,
                            },
                            second: Quantized {
                                codes: codes2,
                                largest: largest2,
                            },
                        };
                        adamw_8bit::update(block, &rates, &self.codes);
                    });
            }
        }
    }

    /// The moments by `tensor.part`, little-endian.
    pub fn moments(&mut self, params: &ParamTable) -> Result<BTreeMap<String, Vec<u8>>> {
        self.prepare(params)?;
        let states = params.params.iter().zip(&mut self.states);
        let named = states.flat_map(|(param, state)| {
            let parts = state.parts().into_iter();
            parts.map(|(part, values)| (format!("{}.{part}", param.name), values.bytes()))
        });
        Ok(named.collect())
    }

    /// # Errors
    /// When a moment is missing, is not one of these, or has another length. The moments may then be partly restored.
    pub fn restore(&mut self, params: &ParamTable, moments: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        self.prepare(params)?;
        let mut unknown: BTreeMap<&str, &[u8]> = moments.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        for (param, state) in params.params.iter().zip(&mut self.states) {
            for (part, values) in state.parts() {
                let name = format!("{}.{part}", param.name);
                match unknown.remove(name.as_str()) {
                    Some(bytes) => values.restore(&name, bytes)?,
                    None => return Err(refused(&name, "is missing")),
                }
            }
        }
        match unknown.keys().next() {
            Some(name) => Err(refused(name, "is none of this optimizer's")),
            None => Ok(()),
        }
    }
}

fn refused(name: &str, why: &str) -> EngineError {
    EngineError::Device {
        what: format!("the moments cannot be restored: `{name}`"),
        why: why.to_owned(),
    }
}

fn runs(
    p: &mut [f32],
    g: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    run: impl Fn(&mut [f32], &[f32], &mut [f32], &mut [f32]) + Sync,
) {
    (p.par_chunks_mut(RUN).zip(g.par_chunks(RUN)))
        .zip(first.par_chunks_mut(RUN).zip(second.par_chunks_mut(RUN)))
        .for_each(|((p, g), (m, v))| run(p, g, m, v));
}

vectorized! {
    fn adamw_run(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], rates: &adamw::Rates) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            rates.apply(p, *g, m, v);
        }
    }
}

vectorized! {
    fn small_run(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], rates: &adamw_8bit::Rates) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            rates.apply(p, *g, m, v);
        }
    }
}

vectorized! {
    fn round_run(values: &mut [f32], key: u32, from: u32) {
        for (value, at) in values.iter_mut().zip(from..) {
            *value = rounding::stochastic(*value, key, at);
        }
    }
}

/// In f64, so that nothing overflows that is finite; in runs, so that it does not depend on the number of threads.
fn sum_of_squares(values: &[f32]) -> f64 {
    let runs: Vec<f64> = values.par_chunks(2 * RUN).map(run_of_squares).collect();
    runs.iter().sum()
}

vectorized! {
    fn run_of_squares(values: &[f32]) -> f64 {
        let mut lanes = [0f64; 16];
        for chunk in values.chunks(16) {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*value) * f64::from(*value);
            }
        }
        lanes.iter().sum()
    }
}
