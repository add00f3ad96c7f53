//! AdamW (Loshchilov and Hutter 2019) as `torch.optim.AdamW` computes it, in f32, in place:
//!
//! ```text
//! p *= 1 - lr * weight_decay
//! m += (g - m) * (1 - b1)            v = v * b2 + g * g * (1 - b2)
//! p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```
//!
//! Every parameter decays, biases, norms and unused embedding rows included.

use std::collections::BTreeMap;
use std::sync::Mutex;

use app::recipe::Adam;
use candle_core::{CpuStorage, InplaceOp2, Layout, Var};
use rayon::prelude::*;

use super::Grads;
use super::grads::GradError;

/// Values a thread works on at a time: parameter, gradient and both moments stay in its cache.
const RUN: usize = 1 << 13;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub epsilon: f64,
}

impl From<&Adam> for AdamWSettings {
    fn from(adam: &Adam) -> Self {
        Self {
            beta1: adam.adam_beta1,
            beta2: adam.adam_beta2,
            weight_decay: adam.adam_weight_decay,
            epsilon: adam.adam_epsilon,
        }
    }
}

/// First and second moment of one tensor, in its row-major order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

/// The optimizer's memory: moments by tensor name, and how many updates made them.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    pub updates: u64,
    pub moments: BTreeMap<String, Moments>,
}

impl AdamW {
    pub fn new(settings: AdamWSettings, vars: &BTreeMap<String, Var>) -> Self {
        let zeros = |var: &Var| Moments {
            first: vec![0.0; var.elem_count()],
            second: vec![0.0; var.elem_count()],
        };
        Self {
            settings,
            updates: 0,
            moments: vars.iter().map(|(name, var)| (name.clone(), zeros(var))).collect(),
        }
    }

    /// One update of all of `vars` with their gradients times `clip_factor`, each at its own rate.
    ///
    /// # Errors
    /// When a variable has no gradient or no moments, or does not lie contiguous in host memory as f32.
    pub fn update(
        &mut self,
        vars: &BTreeMap<String, Var>,
        grads: &Grads,
        learning_rate: impl Fn(&str) -> f64,
        clip_factor: f64,
    ) -> Result<(), GradError> {
        self.updates += 1;
        let t = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let AdamWSettings {
            beta1,
            beta2,
            weight_decay,
            epsilon,
        } = self.settings;
        let rates = |learning_rate: f64| Rates {
            clip: clip_factor as f32,
            keep: (1.0 - learning_rate * weight_decay) as f32,
            beta2: beta2 as f32,
            fresh1: (1.0 - beta1) as f32,
            fresh2: (1.0 - beta2) as f32,
            step: (learning_rate / (1.0 - beta1.powi(t))) as f32,
            root2: (1.0 - beta2.powi(t)).sqrt() as f32,
            epsilon: epsilon as f32,
        };
        for (name, var) in vars {
            let missing = || GradError::Missing(name.clone());
            let grad = grads.get(name).ok_or_else(missing)?;
            let moments = Mutex::new(self.moments.get_mut(name).ok_or_else(missing)?);
            let rates = rates(learning_rate(name));
            var.as_tensor().inplace_op2(grad, &Update { rates, moments })?;
        }
        Ok(())
    }
}

/// The numbers of one update, the same for all elements.
#[derive(Clone, Copy)]
struct Rates {
    clip: f32,
    keep: f32,
    beta2: f32,
    fresh1: f32,
    fresh2: f32,
    step: f32,
    root2: f32,
    epsilon: f32,
}

impl Rates {
    fn apply(self, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        let g = g * self.clip;
        *p *= self.keep;
        *m += (g - *m) * self.fresh1;
        *v = *v * self.beta2 + g * g * self.fresh2;
        *p -= self.step * (*m / (v.sqrt() / self.root2 + self.epsilon));
    }
}

/// Parameters, gradients, first and second moments of some elements.
type Run<'a> = (((&'a mut [f32], &'a [f32]), &'a mut [f32]), &'a mut [f32]);

struct Update<'a> {
    rates: Rates,
    moments: Mutex<&'a mut Moments>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        param: &mut CpuStorage,
        param_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(p), CpuStorage::F32(g)) = (param, grad) else {
            candle_core::bail!("adamw wants parameters and gradients in f32")
        };
        let (Some((p_start, p_end)), Some((g_start, g_end))) =
            (param_layout.contiguous_offsets(), grad_layout.contiguous_offsets())
        else {
            candle_core::bail!("adamw wants contiguous parameters and gradients")
        };
        let (p, g) = (&mut p[p_start..p_end], &g[g_start..g_end]);
        let Ok(mut moments) = self.moments.lock() else {
            candle_core::bail!("an earlier update of these moments failed")
        };
        let Moments { first, second } = &mut **moments;
        if p.len() != g.len() || p.len() != first.len() || p.len() != second.len() {
            candle_core::bail!(
                "adamw: {} parameters, {} gradients, {} moments",
                p.len(),
                g.len(),
                first.len()
            )
        }
        let rates = self.rates;
        let run = |(((p, g), m), v): Run<'_>| {
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                rates.apply(p, *g, m, v);
            }
        };
        if p.len() <= RUN {
            run((((p, g), first), second));
        } else {
            p.par_chunks_mut(RUN)
                .zip(g.par_chunks(RUN))
                .zip(first.par_chunks_mut(RUN))
                .zip(second.par_chunks_mut(RUN))
                .for_each(run);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// The formula of the module in f64 plain loops.
    fn reference(p: &mut [f64], grads: &[Vec<f64>], s: AdamWSettings, lr: f64) {
        let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
        for (t, g) in grads.iter().enumerate() {
            let t = t as i32 + 1;
            for i in 0..p.len() {
                p[i] *= 1.0 - lr * s.weight_decay;
                m[i] = s.beta1 * m[i] + (1.0 - s.beta1) * g[i];
                v[i] = s.beta2 * v[i] + (1.0 - s.beta2) * g[i] * g[i];
                let m_hat = m[i] / (1.0 - s.beta1.powi(t));
                let v_hat = v[i] / (1.0 - s.beta2.powi(t));
                p[i] -= lr * m_hat / (v_hat.sqrt() + s.epsilon);
            }
        }
    }

    #[test]
    fn five_updates_agree_with_the_formula_in_f64() {
        let settings = AdamWSettings::from(&Adam {
            adam_weight_decay: 0.1,
            ..Adam::default()
        });
        // Odd, and more than one run.
        let n = RUN + 77;
        let wave = |i: usize, k: f64| ((i as f64 + 1.0) * k).sin();
        let start: Vec<f32> = (0..n).map(|i| wave(i, 0.37) as f32).collect();
        let var = Var::from_vec(start.clone(), n, &Device::Cpu).expect("var");
        let vars = BTreeMap::from([("w".to_owned(), var)]);
        let mut adam = AdamW::new(settings, &vars);
        let mut steps = Vec::new();
        for t in 0..5 {
            let g: Vec<f32> = (0..n).map(|i| wave(i, 0.11 * (t + 1) as f64) as f32).collect();
            let upstream = Tensor::from_slice(&g, n, &Device::Cpu).expect("upstream");
            let loss = (vars["w"].as_tensor() * &upstream)
                .and_then(|x| x.sum_all())
                .expect("loss");
            let grads = Grads::take(&vars, loss.backward().expect("backward"), 1.0).expect("grads");
            adam.update(&vars, &grads, |_| 1e-2, 0.5).expect("updates");
            steps.push(g.iter().map(|v| f64::from(*v) * 0.5).collect());
        }
        let mut want: Vec<f64> = start.iter().map(|v| f64::from(*v)).collect();
        reference(&mut want, &steps, settings, 1e-2);
        let got = vars["w"].to_vec1::<f32>().expect("values");
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{i}: {got} {want}");
        }
    }

    #[test]
    fn a_variable_without_gradient_is_an_error() {
        let used = Var::ones(3, candle_core::DType::F32, &Device::Cpu).expect("var");
        let unused = Var::ones(3, candle_core::DType::F32, &Device::Cpu).expect("var");
        let loss = used.as_tensor().sum_all().expect("loss");
        let vars = BTreeMap::from([("unused".to_owned(), unused), ("used".to_owned(), used)]);
        let missing = Grads::take(&vars, loss.backward().expect("backward"), 1.0);
        assert!(matches!(missing, Err(GradError::Missing(name)) if name == "unused"));
    }
}
