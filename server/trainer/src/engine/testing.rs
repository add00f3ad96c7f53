//! Help for tests: noise, and gradients against central differences of the forward, in f64.

use std::collections::BTreeMap;

use super::autodiff::{AutodiffError, Backward, backward};
use super::builder::{Builder, Forward};
use super::ir::{Kind, ParamTable, Program, ValueId};
use super::reference::Reference;

/// Values around -1 to 1, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 / (1u64 << 53) as f64 - 0.5) * 2.
    };
    // The first values after a small seed are much alike.
    (0..8 + len).map(|_| next()).skip(8).collect()
}

/// A network with a loss: what `write` returns is compared with a random target by `Mse`, so that the gradient that
/// comes in is random. F32 inputs are noise; those named in `wanted` get gradients, too.
pub struct Case {
    pub table: ParamTable,
    pub forward: Forward,
    seed: (ValueId, ValueId),
    wanted: Vec<(&'static str, ValueId)>,
    pub inputs: BTreeMap<String, Vec<f64>>,
    weights: Vec<Vec<f64>>,
}

impl Case {
    pub fn new(write: impl FnOnce(&mut Builder, &mut Vec<(&'static str, ValueId)>) -> ValueId) -> Self {
        let mut case = Self::unfilled(write);
        for (seed, (name, &id)) in case.forward.program.inputs.iter().enumerate() {
            let value = case.forward.program.value(id);
            let mut values = noise(value.len(), 100 + seed as u64);
            if value.kind == Kind::Ids {
                values.iter_mut().for_each(|value| *value = (value.abs() * 7.).floor());
            }
            case.inputs.insert(name.clone(), values);
        }
        // A bias of each weight keeps norms away from their symmetric point.
        case.weights = (case.table.params.iter().enumerate())
            .map(|(index, param)| {
                noise(param.len(), index as u64)
                    .iter()
                    .map(|value| value * 0.7 + 0.1)
                    .collect()
            })
            .collect();
        case
    }

    /// Not to be run: has neither weights nor inputs.
    pub fn shapes_only(write: impl FnOnce(&mut Builder) -> ValueId) -> Self {
        Self::unfilled(|b, _| write(b))
    }

    fn unfilled(write: impl FnOnce(&mut Builder, &mut Vec<(&'static str, ValueId)>) -> ValueId) -> Self {
        let (mut table, mut wanted) = (ParamTable::default(), Vec::new());
        let mut b = Builder::new(&mut table);
        let predicted = write(&mut b, &mut wanted);
        let dims = b.dims(predicted).to_vec();
        let target = b.input("target", &dims, Kind::F32);
        let weights = b.input("weights", &dims[..1], Kind::F32);
        let scale = b.input("scale", &[1], Kind::F32);
        let (losses, dpredicted) = b.mse(predicted, target, weights, scale);
        b.output("losses", losses);
        let forward = b.finish().unwrap();
        Self {
            table,
            forward,
            seed: (predicted, dpredicted),
            wanted,
            inputs: BTreeMap::new(),
            weights: Vec::new(),
        }
    }

    pub fn program(&self, accumulate: bool, recompute: bool) -> Program {
        let options = Backward {
            accumulate,
            recompute,
            light_norms: 0,
            wanted: &self.wanted,
        };
        backward(self.forward.clone(), &self.table, &[self.seed], options).unwrap()
    }

    pub fn try_program(&self) -> Result<Program, AutodiffError> {
        backward(self.forward.clone(), &self.table, &[self.seed], Backward::default())
    }

    fn loss(&self, weights: &[Vec<f64>], inputs: &BTreeMap<String, Vec<f64>>) -> f64 {
        let mut reference = Reference::new(&self.table, weights.to_vec()).unwrap();
        let values = reference.run(&self.forward.program, inputs).unwrap();
        let losses = values.output("losses").unwrap();
        inputs["scale"][0]
            * losses
                .iter()
                .zip(&inputs["weights"])
                .map(|(loss, weight)| loss * weight)
                .sum::<f64>()
    }

    /// Gradients of all trained weights by name, and of what is wanted.
    pub fn gradients(&self, program: &Program) -> BTreeMap<String, Vec<f64>> {
        self.gradients_after(program, f64::NAN)
    }

    /// With `before` in every weight's gradient buffer.
    pub fn gradients_after(&self, program: &Program, before: f64) -> BTreeMap<String, Vec<f64>> {
        let mut reference = Reference::new(&self.table, self.weights.clone()).unwrap();
        reference
            .gradients
            .iter_mut()
            .for_each(|gradient| gradient.fill(before));
        let values = reference.run(program, &self.inputs).unwrap();
        let mut found: BTreeMap<String, Vec<f64>> = (self.wanted.iter())
            .map(|&(name, _)| (name.to_string(), values.output(name).unwrap().to_vec()))
            .collect();
        for (param, gradient) in self.table.params.iter().zip(&reference.gradients) {
            if param.trained {
                found.insert(param.name.clone(), gradient.clone());
            }
        }
        found
    }

    /// Compares at most `samples` elements of each gradient with central differences.
    pub fn check(&self, samples: usize) {
        let found = self.gradients(&self.program(false, false));
        let step = 1e-5;
        for (name, gradient) in &found {
            let largest = gradient.iter().fold(0., |max: f64, value| max.max(value.abs()));
            assert!(largest > 0., "{name} has no gradient");
            let stride = (gradient.len() / samples).max(1);
            for index in (0..gradient.len()).step_by(stride) {
                let at = |sign: f64| {
                    let (mut weights, mut inputs) = (self.weights.clone(), self.inputs.clone());
                    match self.table.params.iter().position(|param| &param.name == name) {
                        Some(param) => weights[param][index] += sign * step,
                        None => inputs.get_mut(name.trim_start_matches("d ")).unwrap()[index] += sign * step,
                    }
                    self.loss(&weights, &inputs)
                };
                let expected = (at(1.) - at(-1.)) / (2. * step);
                let error = (gradient[index] - expected).abs();
                // Differences of f64 losses around 1 carry 1e-16 / step, and the third derivative step^2.
                assert!(
                    error <= 1e-7 * largest.max(1e-2),
                    "{name}[{index}]: {} and {expected}",
                    gradient[index]
                );
            }
        }
    }
}
