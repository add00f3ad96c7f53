//! When the training state is saved.
//!
//! `checkpointing_steps` says how often; where nobody asked for it, how often at most. A state of Stable Diffusion 1.5 is 6 GB and more, which takes seconds to
//! write; a GPU does a hundred steps in three. So a save that takes long waits until the time since the last one makes up
//! for it: a crash loses at most some [`WORTH`] times what the save would have taken, and saving a twentieth of the time.

use std::time::{Duration, Instant};

/// Time of training that is worth the time of one save.
const WORTH: u32 = 20;

/// A save that takes no longer than this is made whenever it is due.
const SHORT: Duration = Duration::from_secs(2);

/// What a common SSD writes and syncs, until the first save tells better.
const BYTES_PER_SECOND: f64 = 1e9;

pub(super) struct Saves {
    every: u32,
    /// Steps between updates; the state is one between updates.
    steps_per_update: u32,
    /// The user counts on every state: `checkpointing_steps` was given, or each is kept under its step.
    counted_on: bool,
    cost: Duration,
    last: Instant,
}

impl Saves {
    /// `state_bytes`: about how large a state will be.
    pub fn new(every: u32, steps_per_update: u32, counted_on: bool, state_bytes: u64) -> Self {
        Self {
            every,
            steps_per_update,
            counted_on,
            cost: Duration::from_secs_f64(state_bytes as f64 / BYTES_PER_SECOND),
            last: Instant::now(),
        }
    }

    /// Whether the state after `step` is to be saved; `last` when no step follows.
    pub fn due(&self, step: u32, last: bool) -> bool {
        self.due_after(step, last, self.last.elapsed())
    }

    fn due_after(&self, step: u32, last: bool, since_last: Duration) -> bool {
        // Updates may come less often than saves are asked for: the first one after is taken.
        let asked = self.every > 0 && step >= self.every && step % self.every < self.steps_per_update;
        let worth = self.counted_on || self.cost <= SHORT || since_last >= WORTH * self.cost;
        (asked || last) && worth
    }

    /// Makes a save and notes what it took.
    ///
    /// # Errors
    /// What `save` answers.
    pub fn timed<E>(&mut self, save: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let begin = Instant::now();
        save()?;
        self.last = Instant::now();
        self.cost = self.last - begin;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_AGO: Duration = Duration::from_secs(3600);
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_small_state_is_saved_as_often_as_asked() {
        let saves = Saves::new(100, 1, false, GIB / 8);
        let due: Vec<u32> = (1..=300)
            .filter(|&s| saves.due_after(s, false, Duration::ZERO))
            .collect();
        assert_eq!(due, [100, 200, 300]);
        assert!(saves.due_after(7, true, Duration::ZERO), "the last one");
    }

    #[test]
    fn a_large_state_waits_until_there_is_enough_to_lose() {
        let saves = Saves::new(100, 1, false, 6 * GIB);
        assert!(!saves.due_after(100, false, Duration::from_secs(3)));
        assert!(!saves.due_after(800, true, Duration::from_secs(25)));
        assert!(saves.due_after(4500, false, Duration::from_secs(130)));
        assert!(!saves.due_after(4501, false, LONG_AGO), "only where it was asked for");
        assert!(saves.due_after(4501, true, LONG_AGO), "and at the end");
    }

    #[test]
    fn states_that_are_counted_on_are_all_saved() {
        assert!(Saves::new(100, 1, true, 6 * GIB).due_after(100, false, Duration::ZERO));
    }

    #[test]
    fn without_an_interval_only_the_last_is_saved() {
        let saves = Saves::new(0, 1, false, 1);
        assert!(!saves.due_after(100, false, LONG_AGO) && saves.due_after(100, true, LONG_AGO));
    }

    #[test]
    fn the_state_is_saved_after_an_update() {
        let saves = Saves::new(3, 2, false, 1);
        let due: Vec<u32> = (2..=12)
            .step_by(2)
            .filter(|&s| saves.due_after(s, false, LONG_AGO))
            .collect();
        assert_eq!(due, [4, 6, 10, 12]);
    }

    #[test]
    fn a_save_is_as_dear_as_it_was() {
        let mut saves = Saves::new(1, 1, false, 6 * GIB);
        assert!(!saves.due(1, false));
        saves.timed(|| Ok::<(), ()>(())).expect("saves");
        assert!(saves.due(1, false));
    }
}
