//! A running average of the weights (Polyak and Juditsky 1992), with the warm-up of diffusers' `EMAModel`:
//!
//! ```text
//! d = min(decay, n / (9 + n))        n = updates so far, the first copies
//! a -= (1 - d) * (a - p)
//! ```

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

/// The averaged weights by tensor name, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Ema {
    decay: f64,
    pub averaged: BTreeMap<String, Vec<f32>>,
}

/// What is kept of the average at update `update`, counted from 1.
pub fn decay_at(update: u64, decay: f64) -> f64 {
    match update {
        0 | 1 => 0.0,
        n => (n as f64 / (9.0 + n as f64)).min(decay),
    }
}

impl Ema {
    /// Begins at the weights as they are.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn new(decay: f64, vars: &BTreeMap<String, Var>) -> candle_core::Result<Self> {
        let averaged = vars.iter().map(|(name, var)| Ok((name.clone(), values(var)?)));
        Ok(Self {
            decay,
            averaged: averaged.collect::<candle_core::Result<_>>()?,
        })
    }

    /// Takes in the weights after optimizer update `update`, counted from 1.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn follow(&mut self, vars: &BTreeMap<String, Var>, update: u64) -> candle_core::Result<()> {
        let fresh = (1.0 - decay_at(update, self.decay)) as f32;
        for (name, var) in vars {
            let Some(averaged) = self.averaged.get_mut(name) else {
                continue;
            };
            for (a, p) in averaged.iter_mut().zip(values(var)?) {
                *a -= fresh * (*a - p);
            }
        }
        Ok(())
    }

    /// Exchanges weights and averages: to draw and save with the averages, and back again.
    ///
    /// # Errors
    /// When weights cannot be read or written.
    pub fn exchange(&mut self, vars: &BTreeMap<String, Var>) -> candle_core::Result<()> {
        for (name, var) in vars {
            let Some(averaged) = self.averaged.get_mut(name) else {
                continue;
            };
            let weights = values(var)?;
            let averages = Tensor::from_slice(averaged, var.dims(), &candle_core::Device::Cpu)?;
            var.set(&averages.to_device(var.device())?)?;
            *averaged = weights;
        }
        Ok(())
    }
}

fn values(var: &Var) -> candle_core::Result<Vec<f32>> {
    var.as_tensor().flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn vars(value: f32) -> BTreeMap<String, Var> {
        let var = Var::from_vec(vec![value, 2.0 * value], 2, &Device::Cpu).expect("var");
        BTreeMap::from([("w".to_owned(), var)])
    }

    fn set(vars: &BTreeMap<String, Var>, value: f32) {
        let values = Tensor::new(&[value, 2.0 * value], &Device::Cpu).expect("values");
        vars["w"].set(&values).expect("sets");
    }

    #[test]
    fn the_first_update_copies_and_later_ones_are_kept_ever_longer() {
        // diffusers 0.36, EMAModel(decay=0.9999).get_decay(1, 2, 3, 100, 10**6).
        let wanted = [
            (1, 0.0),
            (2, 2.0 / 11.0),
            (3, 0.25),
            (100, 100.0 / 109.0),
            (1_000_000, 0.9999),
        ];
        for (update, wanted) in wanted {
            assert!((decay_at(update, 0.9999) - wanted).abs() < 1e-15, "{update}");
        }
    }

    #[test]
    fn it_follows_the_weights() {
        let vars = vars(0.0);
        let mut ema = Ema::new(0.5, &vars).expect("begins");
        let (mut want, mut got) = (0.0, Vec::new());
        for (update, weight) in [1.0f32, 3.0, -1.0, 2.0].into_iter().enumerate() {
            set(&vars, weight);
            ema.follow(&vars, update as u64 + 1).expect("follows");
            let d = decay_at(update as u64 + 1, 0.5);
            want = d * want + (1.0 - d) * f64::from(weight);
            got.push(ema.averaged["w"][0]);
            assert!((f64::from(got[update]) - want).abs() < 1e-6, "{update}: {got:?} {want}");
            assert_eq!(ema.averaged["w"][1], 2.0 * got[update]);
        }
        assert_eq!(got[0], 1.0);
    }

    #[test]
    fn an_exchange_and_its_return_change_no_bit() {
        let vars = vars(0.1);
        let mut ema = Ema::new(0.9, &vars).expect("begins");
        set(&vars, 0.3);
        let before = ema.clone();
        ema.exchange(&vars).expect("exchanges");
        assert_eq!(vars["w"].to_vec1::<f32>().expect("values"), [0.1, 0.2]);
        ema.exchange(&vars).expect("exchanges back");
        assert_eq!(vars["w"].to_vec1::<f32>().expect("values"), [0.3, 0.6]);
        assert_eq!(ema, before);
    }
}
