//! Random numbers that every device draws alike, and in any order: Philox4x32 with ten rounds (Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", 2011). A block of four numbers is a function of key and counter alone; here the key is the
//! run's seed, and the counter says for which micro-batch, row and values they are, and what for.
//!
//! `kernels/draw.cu` is the same on a GPU.

use crate::noise::Purpose;

/// Values of a block.
pub const BLOCK: usize = 4;

/// What is drawn from: seed and micro-batch, as the host writes them into the input that instructions call `clock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    pub seed: u64,
    /// Of the micro-batch, counted from 0 over the whole run.
    pub number: u64,
}

impl Clock {
    /// Numbers of a clock, low halves first.
    pub const WORDS: usize = 4;

    pub fn words(self) -> [u32; Self::WORDS] {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let ([a, b], [c, d]) = (halves(self.seed), halves(self.number));
        [a, b, c, d]
    }

    pub fn of_words([a, b, c, d]: [u32; Self::WORDS]) -> Self {
        let whole = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
        Self {
            seed: whole(a, b),
            number: whole(c, d),
        }
    }

    /// Block `index` of a row's numbers. Rows of a batch are fewer than 2^24.
    fn block(self, purpose: Purpose, row: usize, index: usize) -> [u32; BLOCK] {
        let [seed_low, seed_high, number_low, number_high] = self.words();
        let row_and_purpose = (row as u32) | ((purpose as u32) << 24);
        philox(
            [index as u32, row_and_purpose, number_low, number_high],
            [seed_low, seed_high],
        )
    }

    /// Standard normal values, one after the other.
    pub fn normals(self, purpose: Purpose, row: usize, count: usize) -> impl Iterator<Item = f64> {
        (0..count.div_ceil(BLOCK))
            .flat_map(move |index| {
                let [a, b, c, d] = self.block(purpose, row, index);
                let ([first, second], [third, fourth]) = (pair(a, b), pair(c, d));
                [first, second, third, fourth]
            })
            .take(count)
    }

    /// A whole number below `most`. Two of them differ in how likely they are by less than `most` / 2^32.
    pub fn below(self, purpose: Purpose, row: usize, most: usize) -> usize {
        ((u64::from(self.block(purpose, row, 0)[0]) * most as u64) >> 32) as usize
    }
}

/// Two standard normal values (Box and Muller 1958) from 24 bits each: all the bits that an f32 of 0 to 1 has, so that what is
/// put into logarithm and angle is the same on every device.
fn pair(a: u32, b: u32) -> [f64; 2] {
    const UNIT: f64 = 1. / (1 << 24) as f64;
    // Above zero, so that the logarithm is finite.
    let radius = (-2. * (f64::from((a >> 8) + 1) * UNIT).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * (f64::from(b >> 8) * UNIT)).sin_cos();
    [radius * cos, radius * sin]
}

fn philox(mut counter: [u32; BLOCK], mut key: [u32; 2]) -> [u32; BLOCK] {
    let wide = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let [a, b, c, d] = counter;
        let ((high0, low0), (high1, low1)) = (wide(0xd251_1f53, a), wide(0xcd9e_8d57, c));
        counter = [high1 ^ b ^ key[0], low1, high0 ^ d ^ key[1], low0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' own implementation.
    #[test]
    fn blocks_are_those_of_the_authors() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    const CLOCK: Clock = Clock {
        seed: (7 << 40) | 1,
        number: 3,
    };

    #[test]
    fn a_draw_depends_on_seed_number_purpose_and_row_alone() {
        let draw = |clock: Clock, purpose, row, count| clock.normals(purpose, row, count).collect::<Vec<f64>>();
        let first = draw(CLOCK, Purpose::Noise, 0, 99);
        assert_eq!(first, draw(Clock::of_words(CLOCK.words()), Purpose::Noise, 0, 99));
        assert_eq!(first[..10], draw(CLOCK, Purpose::Noise, 0, 10));
        for (clock, purpose, row) in [
            (CLOCK, Purpose::Noise, 1),
            (CLOCK, Purpose::Latents, 0),
            (Clock { number: 4, ..CLOCK }, Purpose::Noise, 0),
            (Clock { seed: 1, ..CLOCK }, Purpose::Noise, 0),
        ] {
            assert_ne!(first, draw(clock, purpose, row, 99));
        }
    }

    #[test]
    fn normals_have_the_moments_of_a_normal_distribution() {
        let values: Vec<f64> = CLOCK.normals(Purpose::Noise, 5, 100_000).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let moment = |power: i32| values.iter().map(|v| (v - mean).powi(power)).sum::<f64>() / n;
        // Five standard errors of each.
        assert!(mean.abs() < 0.016, "mean {mean}");
        assert!((moment(2) - 1.).abs() < 0.023, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.04, "third moment {}", moment(3));
        assert!((moment(4) - 3.).abs() < 0.16, "fourth moment {}", moment(4));
        let neighbours = values.windows(2).map(|two| two[0] * two[1]).sum::<f64>() / n;
        assert!(neighbours.abs() < 0.016, "neighbours {neighbours}");
    }

    #[test]
    fn whole_numbers_cover_their_range_and_nothing_else() {
        let mut counts = [0; 1000];
        for number in 0..20_000 {
            let clock = Clock { number, ..CLOCK };
            counts[clock.below(Purpose::Timesteps, 1, 1000)] += 1;
        }
        assert!(counts.iter().all(|&count| (2..60).contains(&count)));
    }
}
