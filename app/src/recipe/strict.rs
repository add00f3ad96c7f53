//! What a step is, and what `strict_tutorial` changes about it.
//!
//! A step ends with an optimizer update of all its micro-batches. The tutorial's script calls each micro-batch a step
//! instead, stops after `max_train_steps` of them, but builds its schedule for `max_train_steps *
//! gradient_accumulation_steps` updates, of which it makes `max_train_steps / gradient_accumulation_steps`.

use super::{MixedPrecision, Precision, RecipeDraft};

impl RecipeDraft {
    /// Batches whose gradients one step adds up.
    pub fn micro_batches_per_step(&self) -> u32 {
        match self.strict_tutorial {
            true => 1,
            false => self.gradient_accumulation_steps,
        }
    }

    /// Steps from one optimizer update to the next.
    pub fn steps_per_update(&self) -> u32 {
        match self.strict_tutorial {
            true => self.gradient_accumulation_steps,
            false => 1,
        }
    }

    /// Warm-up and length of the learning rate's schedule, in optimizer updates.
    pub fn schedule_updates(&self) -> (u64, u64) {
        let stretch = u64::from(self.steps_per_update());
        let stretched = |steps: u32| u64::from(steps) * stretch;
        (stretched(self.lr_warmup_steps), stretched(self.max_train_steps))
    }

    /// What training shall compute in; `None` leaves it to the device. In low memory weights are in bf16 alone, so that
    /// f32 would add nothing.
    pub fn precision(&self) -> Option<Precision> {
        match self.mixed_precision {
            MixedPrecision::Fp16 => Some(Precision::Fp16),
            MixedPrecision::Bf16 => Some(Precision::Bf16),
            MixedPrecision::No | MixedPrecision::Auto if self.low_memory => None,
            MixedPrecision::No => Some(Precision::No),
            MixedPrecision::Auto => self.strict_tutorial.then_some(Precision::No),
        }
    }

    /// What the gradients' norm is clipped to; 0 clips nothing. The script declares the flag and does not use it.
    pub fn clip_norm(&self) -> f64 {
        match self.strict_tutorial {
            true => 0.0,
            false => self.adam.max_grad_norm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(strict_tutorial: bool, gradient_accumulation_steps: u32) -> RecipeDraft {
        RecipeDraft {
            max_train_steps: 800,
            lr_warmup_steps: 10,
            gradient_accumulation_steps,
            strict_tutorial,
            ..RecipeDraft::default()
        }
    }

    #[test]
    fn a_step_is_an_update_and_of_a_strict_run_a_micro_batch() {
        let counts = |draft: RecipeDraft| (draft.micro_batches_per_step(), draft.steps_per_update());
        assert_eq!(counts(draft(false, 4)), (4, 1));
        assert_eq!(counts(draft(true, 4)), (1, 4));
        assert_eq!(counts(draft(true, 1)), counts(draft(false, 1)));
    }

    #[test]
    fn a_strict_schedule_is_stretched() {
        assert_eq!(draft(false, 4).schedule_updates(), (10, 800));
        // 200 updates are made of it, as if warm-up and decay were 16 times as long.
        assert_eq!(draft(true, 4).schedule_updates(), (40, 3200));
        assert_eq!(draft(true, 1).schedule_updates(), (10, 800));
    }

    #[test]
    fn thirty_two_bits_are_asked_for_by_name_or_by_a_strict_run() {
        let asked = |mixed_precision, strict_tutorial| {
            let draft = RecipeDraft {
                mixed_precision,
                ..draft(strict_tutorial, 1)
            };
            draft.precision()
        };
        assert_eq!(asked(MixedPrecision::No, false), Some(Precision::No));
        assert_eq!(asked(MixedPrecision::Auto, false), None);
        assert_eq!(asked(MixedPrecision::Auto, true), Some(Precision::No));
        assert_eq!(asked(MixedPrecision::Fp16, true), Some(Precision::Fp16));
    }

    #[test]
    fn a_strict_run_clips_nothing() {
        assert_eq!((draft(false, 1).clip_norm(), draft(true, 1).clip_norm()), (1.0, 0.0));
    }
}
