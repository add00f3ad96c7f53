//! A running average of the weights (Polyak and Juditsky 1992), with the warm-up of diffusers' `EMAModel`:
//!
//! ```text
//! d = min(decay, n / (9 + n))        n = updates so far, the first copies
//! a -= (1 - d) * (a - p)
//! ```

use crate::engine::nets::networks::Networks;
use crate::engine::session::EngineError;

/// How the session's averages follow the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ema {
    decay: f64,
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
    /// When the device has no room for averages.
    pub fn new(decay: f64, networks: &mut Networks) -> Result<Self, EngineError> {
        networks.session().keep_averages()?;
        Ok(Self { decay })
    }

    /// Takes in the weights after optimizer update `update`, counted from 1.
    ///
    /// # Errors
    /// What the device answers.
    pub fn follow(&self, networks: &mut Networks, update: u64) -> Result<(), EngineError> {
        let fresh = (1.0 - decay_at(update, self.decay)) as f32;
        networks.session().follow_weights(fresh)
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
        let ema = Ema::new(0.5, &mut networks).expect("begins");
        let mut want = 0.0;
        for (update, weight) in (1..).zip([1.0f32, 3.0, -1.0, 2.0]) {
            set(&mut networks, weight);
            ema.follow(&mut networks, update).expect("follows");
            let d = decay_at(update, 0.5);
            want = d * want + (1.0 - d) * f64::from(weight);
            let got = networks.session().average(W).expect("an average");
            assert!((f64::from(got[0]) - want).abs() < 1e-6, "{update}: {} {want}", got[0]);
            assert_eq!(got[1], 2.0 * got[0]);
            assert!(update > 1 || got[0] == 1.0);
        }
    }

    #[test]
    fn an_exchange_and_its_return_change_no_bit() {
        let mut networks = tiny_networks();
        assert!(networks.session().average(W).is_err(), "none is kept");
        set(&mut networks, 0.1);
        Ema::new(0.9, &mut networks).expect("begins");
        set(&mut networks, 0.3);
        let session = networks.session();
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push((
                session.weight(W).expect("weight")[..2].to_vec(),
                session.average(W).expect("average")[..2].to_vec(),
            ));
            session.exchange_averages().expect("exchanges");
        }
        let (fresh, averaged) = (vec![0.3f32, 0.6], vec![0.1f32, 0.2]);
        assert_eq!(seen[0], (fresh.clone(), averaged.clone()));
        assert_eq!(seen[1], (averaged, fresh));
        assert_eq!(seen[2], seen[0]);
    }
}
