//! Help for the ops' tests: odd shapes, random upstream gradients, a plain f64 reference that is itself checked by
//! finite differences.

use candle_core::{DType, Device, Tensor, Var};

pub(super) use crate::engine::cpu::testing::{exact_erf, noise};

/// An input of an op: its values and shape.
pub(super) struct Input {
    pub values: Vec<f32>,
    pub shape: Vec<usize>,
}

pub(super) fn input(shape: &[usize], seed: u64) -> Input {
    Input {
        values: noise(shape.iter().product(), seed),
        shape: shape.to_vec(),
    }
}

/// Checks `op` on f32, and the composed one on f64, against `reference`, values and gradients.
///
/// `reference` maps the inputs' values to the output's in f64 with plain loops. The gradients of `sum(output * r)`, r
/// random, are compared with central differences of the reference; they are as exact as a reference backward would be,
/// and cannot share a mistake with the op.
pub(super) fn check(
    inputs: &[Input],
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    op: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) {
    let expected = Expected::of(inputs, reference);
    expected.compare("own kernel", inputs, DType::F32, 2e-5, op);
    expected.compare("composed in f64", inputs, DType::F64, 1e-6, composed);
}

/// [`check`] without a composed form.
pub(super) fn check_own(
    inputs: &[Input],
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    op: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) {
    Expected::of(inputs, reference).compare("own kernel", inputs, DType::F32, 2e-5, op);
}

struct Expected {
    output: Vec<f64>,
    upstream: Vec<f64>,
    gradients: Vec<Vec<f64>>,
}

impl Expected {
    fn of(inputs: &[Input], reference: impl Fn(&[Vec<f64>]) -> Vec<f64>) -> Self {
        let wide: Vec<Vec<f64>> = inputs
            .iter()
            .map(|i| i.values.iter().map(|&v| f64::from(v)).collect())
            .collect();
        let output = reference(&wide);
        let upstream: Vec<f64> = noise(output.len(), 99).into_iter().map(f64::from).collect();
        let gradients = finite_differences(&wide, &reference, &upstream);
        Self {
            output,
            upstream,
            gradients,
        }
    }

    fn compare(
        &self,
        what: &str,
        inputs: &[Input],
        dtype: DType,
        tolerance: f64,
        op: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
    ) {
        let device = Device::Cpu;
        let var = |input: &Input| {
            let tensor = Tensor::from_vec(input.values.clone(), input.shape.clone(), &device).unwrap();
            Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap()
        };
        let vars: Vec<Var> = inputs.iter().map(var).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let output = op(&tensors).unwrap();
        close(&format!("{what}: output"), &values(&output), &self.output, tolerance);
        let detached: Vec<Tensor> = tensors.iter().map(Tensor::detach).collect();
        assert_eq!(
            values(&op(&detached).unwrap()),
            values(&output),
            "{what}: the same without a graph"
        );

        let upstream = Tensor::from_vec(self.upstream.clone(), output.shape(), &device).unwrap();
        let loss = (output * upstream.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        for (index, (var, want)) in vars.iter().zip(&self.gradients).enumerate() {
            let got = grads
                .get(var)
                .unwrap_or_else(|| panic!("{what}: no gradient of input {index}"));
            assert_eq!(got.dims(), var.dims(), "{what}: gradient {index}");
            close(
                &format!("{what}: gradient of input {index}"),
                &values(got),
                want,
                tolerance,
            );
        }
    }
}

fn finite_differences(
    inputs: &[Vec<f64>],
    reference: &impl Fn(&[Vec<f64>]) -> Vec<f64>,
    upstream: &[f64],
) -> Vec<Vec<f64>> {
    const STEP: f64 = 1e-5;
    let loss = |inputs: &[Vec<f64>]| -> f64 { reference(inputs).iter().zip(upstream).map(|(y, r)| y * r).sum() };
    let mut inputs = inputs.to_vec();
    let mut gradients = Vec::new();
    for which in 0..inputs.len() {
        let mut gradient = Vec::new();
        for i in 0..inputs[which].len() {
            let value = inputs[which][i];
            let mut at = |x: f64| {
                inputs[which][i] = x;
                loss(&inputs)
            };
            let slope = (at(value + STEP) - at(value - STEP)) / (2. * STEP);
            at(value);
            gradient.push(slope);
        }
        gradients.push(gradient);
    }
    gradients
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f64, |most, v| most.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs() / scale;
        // Written so that NaN fails.
        assert!(
            error.partial_cmp(&tolerance).is_some_and(|o| o.is_le()),
            "{what} [{i}]: {got}, not {want}"
        );
    }
}
