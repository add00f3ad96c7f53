//! Help for the kernels' tests.

/// Values around -1 to 1, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.
        })
        .collect()
}

/// The error function in f64, by a series whose terms are all of one sign.
pub(crate) fn exact_erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 1.);
    while term.abs() > 1e-18 * sum.abs() {
        term *= 2. * x * x / (2. * n + 1.);
        sum += term;
        n += 1.;
    }
    2. / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
