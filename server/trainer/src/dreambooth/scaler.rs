//! Loss scaling for fp16, as torch's `GradScaler` does it: the loss is multiplied before the backward pass, so that small
//! gradients do not vanish, and an update whose gradients overflowed is left out.

use app::recipe::Precision;
use serde::{Deserialize, Serialize};

/// `GradScaler`'s defaults.
const FIRST_SCALE: f64 = 65536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
const GROWTH_INTERVAL: u32 = 2000;
/// Beyond these it is not the scale that is wrong.
const MOST_SKIPS_IN_A_ROW: u32 = 50;
const LEAST_SCALE: f64 = 1.0;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScaleError {
    #[error("the gradients are not numbers any more")]
    NotANumber,
    #[error("the gradients overflow fp16 in {0} updates in a row, whatever the loss is multiplied by")]
    SkipsInARow(u32),
    #[error("the gradients overflow fp16 even when the loss is multiplied by less than {LEAST_SCALE}")]
    ScaleTooSmall,
}

/// The scale and how it came about; part of the training state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScaler {
    /// Without scaling, as in f32 and bf16, a gradient that overflows ends the run.
    on: bool,
    scale: f64,
    /// Updates since the scale last changed.
    clean: u32,
    skipped: u64,
    skipped_in_a_row: u32,
}

impl LossScaler {
    /// Scales in fp16 alone: f32 and bf16 have the range.
    pub fn new(precision: Precision) -> Self {
        let on = precision == Precision::Fp16;
        Self {
            on,
            scale: if on { FIRST_SCALE } else { 1.0 },
            clean: 0,
            skipped: 0,
            skipped_in_a_row: 0,
        }
    }

    /// What the loss of the next backward pass is multiplied by, and its gradients divided by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Updates left out since the run began.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Is told after every update whether its gradients `overflowed`, and so whether it was left out.
    ///
    /// # Errors
    /// When there is no use in going on.
    pub fn updated(&mut self, overflowed: bool) -> Result<(), ScaleError> {
        if !self.on {
            return if overflowed {
                Err(ScaleError::NotANumber)
            } else {
                Ok(())
            };
        }
        if !overflowed {
            self.skipped_in_a_row = 0;
            self.clean += 1;
            if self.clean == GROWTH_INTERVAL {
                self.clean = 0;
                // The scale is f32 on the device.
                if self.scale * GROWTH <= f64::from(f32::MAX) {
                    self.scale *= GROWTH;
                }
            }
            return Ok(());
        }
        self.clean = 0;
        self.scale *= BACKOFF;
        self.skipped += 1;
        self.skipped_in_a_row += 1;
        if self.skipped_in_a_row >= MOST_SKIPS_IN_A_ROW {
            return Err(ScaleError::SkipsInARow(self.skipped_in_a_row));
        }
        if self.scale < LEAST_SCALE {
            return Err(ScaleError::ScaleTooSmall);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(updates: impl IntoIterator<Item = bool>) -> LossScaler {
        let mut scaler = LossScaler::new(Precision::Fp16);
        for overflowed in updates {
            scaler.updated(overflowed).expect("goes on");
        }
        scaler
    }

    #[test]
    fn it_doubles_after_2000_clean_updates_and_halves_at_each_overflow() {
        let scale = |updates: Vec<bool>| after(updates).scale();
        let clean = |count: usize| vec![false; count];
        assert_eq!(scale(clean(0)), 65536.0);
        assert_eq!(scale(clean(1999)), 65536.0);
        assert_eq!(scale(clean(2000)), 131_072.0);
        assert_eq!(scale(clean(3999)), 131_072.0);
        assert_eq!(scale(clean(4000)), 262_144.0);
        assert_eq!(scale(vec![true]), 32768.0);
        assert_eq!(scale(vec![true, true, false]), 16384.0);
        // An overflow begins the count anew.
        assert_eq!(scale([clean(1999), vec![true], clean(1999)].concat()), 32768.0);
        assert_eq!(scale([clean(1999), vec![true], clean(2000)].concat()), 65536.0);
    }

    #[test]
    fn skipped_updates_are_counted() {
        assert_eq!(after([true, false, true, true, false]).skipped(), 3);
        assert_eq!(after([false; 10]).skipped(), 0);
    }

    #[test]
    fn it_gives_up_when_the_scale_is_used_up() {
        let mut scaler = after([true; 16]);
        assert_eq!(scaler.scale(), 1.0);
        assert_eq!(scaler.updated(true), Err(ScaleError::ScaleTooSmall));
    }

    #[test]
    fn it_gives_up_after_50_overflows_in_a_row() {
        let mut scaler = after(vec![false; 2000 * 60]);
        let ends: Vec<Result<(), ScaleError>> = (0..50).map(|_| scaler.updated(true)).collect();
        assert!(ends[..49].iter().all(Result::is_ok));
        assert_eq!(ends[49], Err(ScaleError::SkipsInARow(50)));
        // One good update between them is enough.
        let mut scaler = after(vec![false; 2000 * 80]);
        for update in 0..80 {
            assert_eq!(scaler.updated(update != 40), Ok(()), "{update}");
        }
    }

    #[test]
    fn the_scale_stays_a_number_in_f32() {
        let scaler = after(vec![false; 2000 * 130]);
        assert!((scaler.scale() as f32).is_finite());
    }

    #[test]
    fn without_scaling_an_overflow_is_the_end() {
        for precision in [Precision::No, Precision::Bf16] {
            let mut scaler = LossScaler::new(precision);
            assert_eq!((scaler.scale(), scaler.is_on()), (1.0, false));
            assert_eq!(scaler.updated(false), Ok(()));
            assert_eq!(scaler.updated(true), Err(ScaleError::NotANumber));
        }
    }

    #[test]
    fn it_survives_being_saved() {
        let scaler = after([true, false, false, true, false]);
        let json = serde_json::to_string(&scaler).expect("serialises");
        assert_eq!(serde_json::from_str::<LossScaler>(&json).expect("parses"), scaler);
    }
}
