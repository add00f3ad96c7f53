//! A running average of the weights (Polyak and Juditsky 1992), with the warm-up of diffusers' `EMAModel`:
//!
//! ```text
//! d = min(decay, n / (9 + n))        n = updates so far, the first copies
//! a -= (1 - d) * (a - p)
//! ```

use std::collections::BTreeMap;

use crate::engine::nets::networks::Networks;
use crate::engine::session::EngineError;

/// The averaged weights by name, as they lie in the engine.
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
    pub fn new(decay: f64, networks: &mut Networks) -> Result<Self, EngineError> {
        let mut averaged = BTreeMap::new();
        for (id, param) in networks.trained() {
            averaged.insert(param.name, networks.session().weight(id)?);
        }
        Ok(Self { decay, averaged })
    }

    /// Takes in the weights after optimizer update `update`, counted from 1.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn follow(&mut self, networks: &mut Networks, update: u64) -> Result<(), EngineError> {
        let fresh = (1.0 - decay_at(update, self.decay)) as f32;
        for (id, param) in networks.trained() {
            let Some(averaged) = self.averaged.get_mut(&param.name) else {
                continue;
            };
            let weights = networks.session().weight(id)?;
            for (a, p) in averaged.iter_mut().zip(weights) {
                *a -= fresh * (*a - p);
            }
        }
        Ok(())
    }

    /// Exchanges weights and averages: to draw and save with the averages, and back again.
    ///
    /// # Errors
    /// When weights cannot be read or written.
    pub fn exchange(&mut self, networks: &mut Networks) -> Result<(), EngineError> {
        for (id, param) in networks.trained() {
            let Some(averaged) = self.averaged.get_mut(&param.name) else {
                continue;
            };
            let weights = networks.session().weight(id)?;
            networks.session().set_weight(id, averaged)?;
            *averaged = weights;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dreambooth::testing::tiny_networks;
    use crate::engine::ir::ParamId;

    /// The weight that the tests look at.
    const W: ParamId = ParamId(0);

    fn set(networks: &mut Networks, value: f32) {
        let mut values = networks.session().weight(W).expect("weight");
        values.fill(2.0 * value);
        values[0] = value;
        networks.session().set_weight(W, &values).expect("sets");
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
        let mut networks = tiny_networks();
        set(&mut networks, 0.0);
        let name = networks.params().get(W).name.clone();
        let mut ema = Ema::new(0.5, &mut networks).expect("begins");
        let (mut want, mut got) = (0.0, Vec::new());
        for (update, weight) in [1.0f32, 3.0, -1.0, 2.0].into_iter().enumerate() {
            set(&mut networks, weight);
            ema.follow(&mut networks, update as u64 + 1).expect("follows");
            let d = decay_at(update as u64 + 1, 0.5);
            want = d * want + (1.0 - d) * f64::from(weight);
            got.push(ema.averaged[&name][0]);
            assert!((f64::from(got[update]) - want).abs() < 1e-6, "{update}: {got:?} {want}");
            assert_eq!(ema.averaged[&name][1], 2.0 * got[update]);
        }
        assert_eq!(got[0], 1.0);
    }

    #[test]
    fn an_exchange_and_its_return_change_no_bit() {
        let mut networks = tiny_networks();
        set(&mut networks, 0.1);
        let mut ema = Ema::new(0.9, &mut networks).expect("begins");
        set(&mut networks, 0.3);
        let before = ema.clone();
        let mut first_two = |ema: &mut Ema| {
            ema.exchange(&mut networks).expect("exchanges");
            networks.session().weight(W).expect("weight")[..2].to_vec()
        };
        assert_eq!(first_two(&mut ema), [0.1, 0.2]);
        assert_eq!(first_two(&mut ema), [0.3, 0.6]);
        assert_eq!(ema, before);
    }
}
