//! Which items of the data set make up which micro-batch.

use crate::noise::{Noise, Purpose};

/// An order of items that is drawn anew in every round through them, or batches that are put together once.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub items: usize,
    pub batch_size: usize,
    /// Batches stay together for the whole run, and only they are shuffled: what the tutorial's script does when it
    /// caches latents, because it caches them by the batch.
    pub frozen: bool,
    pub noise: Noise,
}

impl Order {
    /// The items of micro-batch `number`, counted from 0, and the round it is in. The last batch of a round may be short.
    pub fn batch(&self, number: u64) -> (u64, Vec<usize>) {
        let per_round = self.items.div_ceil(self.batch_size) as u64;
        let (round, mut batch) = (number / per_round, (number % per_round) as usize);
        let order = if self.frozen {
            batch = self.noise.permutation(Purpose::Shuffle, round + 1, per_round as usize)[batch];
            self.noise.permutation(Purpose::Shuffle, 0, self.items)
        } else {
            self.noise.permutation(Purpose::Shuffle, round, self.items)
        };
        let end = ((batch + 1) * self.batch_size).min(self.items);
        (round, order[batch * self.batch_size..end].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The sorted batches of a round of seven items by twos.
    fn rounds(frozen: bool) -> Vec<Vec<Vec<usize>>> {
        let order = Order {
            items: 7,
            batch_size: 2,
            frozen,
            noise: Noise::new(3),
        };
        let batch = |number| {
            let (round, mut items) = order.batch(number);
            assert_eq!(round, number / 4);
            items.sort_unstable();
            items
        };
        (0..5)
            .map(|round| (4 * round..4 * round + 4).map(batch).collect())
            .collect()
    }

    #[test]
    fn every_round_shows_every_item_once() {
        for frozen in [false, true] {
            for round in rounds(frozen) {
                let mut items: Vec<usize> = round.concat();
                items.sort_unstable();
                assert_eq!(items, (0..7).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn batches_are_mixed_anew_unless_they_are_frozen() {
        let distinct = |frozen| {
            let batches: BTreeSet<Vec<usize>> = rounds(frozen).concat().into_iter().collect();
            batches.len()
        };
        assert_eq!(distinct(true), 4);
        assert!(distinct(false) > 4);
        // Which comes first differs from round to round all the same.
        let firsts: BTreeSet<Vec<usize>> = rounds(true).into_iter().map(|round| round[0].clone()).collect();
        assert!(firsts.len() > 1);
    }
}
