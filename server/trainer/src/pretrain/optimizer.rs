//! AdamW without decay over all weights as one flat vector, with an exponential moving average of them.
//!
//! Flat, so that a step of a model of many small tensors costs a few large operations on a GPU and not thousands.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Weights, moments and average, each flat in the order of the names.
pub struct FlatAdam {
    vars: BTreeMap<String, Var>,
    weights: Tensor,
    first: Tensor,
    second: Tensor,
    average: Tensor,
    pub updates: u64,
    average_decay: f64,
}

impl FlatAdam {
    pub fn new(vars: BTreeMap<String, Var>, average_decay: f64) -> Result<Self> {
        let flat = vars
            .values()
            .map(|var| var.as_tensor().flatten_all())
            .collect::<Result<Vec<_>>>()?;
        let weights = Tensor::cat(&flat, 0)?.detach();
        let zeros = weights.zeros_like()?;
        Ok(Self {
            vars,
            average: weights.clone(),
            weights,
            first: zeros.clone(),
            second: zeros,
            updates: 0,
            average_decay,
        })
    }

    /// One update; the gradient's L2 norm is clipped to `max_norm`. Returns the norm before.
    pub fn update(&mut self, grads: &GradStore, learning_rate: f64, max_norm: f64) -> Result<f32> {
        let mut flat = Vec::with_capacity(self.vars.len());
        for (name, var) in &self.vars {
            let grad = grads
                .get(var)
                .ok_or_else(|| candle_core::Error::Msg(format!("no gradient for {name}")))?;
            flat.push(grad.flatten_all()?);
        }
        let grad = Tensor::cat(&flat, 0)?.detach();
        let norm = grad.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.updates += 1;
        let grad = grad.affine((max_norm / f64::from(norm).max(max_norm)).min(1.0), 0.0)?;
        let t = self.updates as f64;
        self.first = (self.first.affine(BETA1, 0.0)? + grad.affine(1.0 - BETA1, 0.0)?)?;
        self.second = (self.second.affine(BETA2, 0.0)? + grad.sqr()?.affine(1.0 - BETA2, 0.0)?)?;
        let root = self
            .second
            .affine(1.0 / (1.0 - BETA2.powf(t)), 0.0)?
            .sqrt()?
            .affine(1.0, EPSILON)?;
        let rate = learning_rate / (1.0 - BETA1.powf(t));
        self.weights = (&self.weights - self.first.div(&root)?.affine(rate, 0.0)?)?;
        // A young average follows faster, or it would remember the first random weights for long.
        let decay = self.average_decay.min((1.0 + t) / (10.0 + t));
        self.average = (self.average.affine(decay, 0.0)? + self.weights.affine(1.0 - decay, 0.0)?)?;
        self.put(&self.weights)?;
        Ok(norm)
    }

    fn put(&self, flat: &Tensor) -> Result<()> {
        let mut at = 0;
        for var in self.vars.values() {
            let count = var.elem_count();
            var.set(&flat.narrow(0, at, count)?.reshape(var.shape())?)?;
            at += count;
        }
        Ok(())
    }

    /// The averaged weights by name, f32 on the CPU.
    pub fn averaged(&self) -> Result<BTreeMap<String, Tensor>> {
        let flat = self.average.to_device(&Device::Cpu)?;
        let mut at = 0;
        let mut out = BTreeMap::new();
        for (name, var) in &self.vars {
            let count = var.elem_count();
            out.insert(name.clone(), flat.narrow(0, at, count)?.reshape(var.shape())?);
            at += count;
        }
        Ok(out)
    }

    /// Everything a later run needs to go on.
    pub fn save(&self, path: &Path) -> Result<()> {
        let updates = Tensor::new(&[self.updates as i64], &Device::Cpu)?;
        let tensors = HashMap::from([
            ("weights", self.weights.clone()),
            ("first", self.first.clone()),
            ("second", self.second.clone()),
            ("average", self.average.clone()),
            ("updates", updates),
        ]);
        let scratch = path.with_extension("partial");
        candle_core::safetensors::save(&tensors, &scratch)?;
        std::fs::rename(&scratch, path).map_err(candle_core::Error::wrap)
    }

    /// Takes a saved state over, if there is one.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        if !path.is_file() {
            return Ok(());
        }
        let device = self.weights.device().clone();
        let mut state = candle_core::safetensors::load(path, &device)?;
        let mut take = |name: &str| {
            let missing = || candle_core::Error::Msg(format!("{}: `{name}` is missing", path.display()));
            state.remove(name).ok_or_else(missing)
        };
        let weights = take("weights")?.to_dtype(DType::F32)?;
        if weights.elem_count() != self.weights.elem_count() {
            let message = format!("{}: this state belongs to a model of another size", path.display());
            return Err(candle_core::Error::Msg(message));
        }
        self.weights = weights;
        self.first = take("first")?;
        self.second = take("second")?;
        self.average = take("average")?;
        self.updates = take("updates")?
            .to_vec1::<i64>()?
            .first()
            .copied()
            .unwrap_or(0)
            .unsigned_abs();
        self.put(&self.weights)
    }
}

/// Half a cosine from `base` to a tenth of it, after a short warm-up.
pub fn cosine(base: f64, update: u64, total: u64) -> f64 {
    const WARMUP: f64 = 200.0;
    let done = (update as f64 / total.max(1) as f64).min(1.0);
    let shape = 0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    base * shape * ((update as f64 + 1.0) / WARMUP).min(1.0)
}
