//! Arithmetic that vectorises: sums in a fixed order, exponentials, the error function, gates and their slopes.

const LANES: usize = 16;
/// Values summed in f32 lanes before the lanes go into an f64.
const BLOCK: usize = 64 * LANES;

/// Sum of `term` over the indexes, in a fixed order: f32 lanes inside blocks, f64 across blocks.
#[inline(always)]
pub(crate) fn sum_by(len: usize, term: impl Fn(usize) -> f32) -> f64 {
    let mut total = 0f64;
    let mut start = 0;
    while start < len {
        let end = (start + BLOCK).min(len);
        let mut lanes = [0f32; LANES];
        let mut i = start;
        while i + LANES <= end {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += term(i + lane);
            }
            i += LANES;
        }
        for (lane, sum) in lanes.iter_mut().enumerate() {
            if i + lane < end {
                *sum += term(i + lane);
            }
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        start = end;
    }
    total
}

/// `e^x` to 1e-7 relative, without branches so that loops over it vectorise. Cephes' expf.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding it rounds to a whole number in the low bits.
    const ROUND: f32 = 12_582_912.;
    // Not `clamp`, which is slower; NaN stays NaN through the comparison's false branch.
    let bounded = if x > 88.376 { 88.376 } else { x };
    let bounded = if bounded < -87.336 { -87.336 } else { bounded };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = bounded - whole * LN2_HIGH - whole * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let fraction = p * r * r + r + 1.;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    fraction * f32::from_bits(exponent)
}

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1. / (1. + exp(-x))
}

/// The error function to 2e-7, a rational approximation on -4 to 4, beyond which it is 1 (as Eigen and XLA do it).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = if x > 3.832_507 { 3.832_507 } else { x };
    let x = if x < -3.832_507 { -3.832_507 } else { x };
    let square = x * x;
    let mut p = -2.726_142_3e-10;
    p = p * square + 2.770_681_4e-8;
    p = p * square + -2.101_024e-6;
    p = p * square + -5.692_506_5e-5;
    p = p * square + -7.349_906e-4;
    p = p * square + -2.954_6e-3;
    p = p * square + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * square + -2.133_740_6e-4;
    q = q * square + -1.682_827e-3;
    q = q * square + -7.373_329e-3;
    q = q * square + -1.426_474_e-2;
    x * p / q
}

/// 1 / sqrt(2 pi)
const NORMAL: f32 = 0.398_942_3;

/// Slope of `x sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s + x * s * (1. - s)
}

/// The normal distribution function: `gelu(x) = x phi(x)`.
#[inline(always)]
pub(crate) fn phi(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    phi(x) + x * NORMAL * exp(-0.5 * x * x)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{exact_erf, noise},
        *,
    };

    #[test]
    fn exp_and_erf_are_right_to_the_last_digits() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 2e-7 * want, "exp({x}) = {got}, not {want}");
        }
        for i in -6000..6000 {
            let x = i as f32 * 0.001;
            let (got, want) = (f64::from(erf(x)), exact_erf(f64::from(x)));
            assert!((got - want).abs() <= 4e-7, "erf({x}) = {got}, not {want}");
        }
        assert!(exp(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn sums_lose_nothing_at_odd_lengths() {
        for len in [0, 1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let values = noise(len, 7);
            let want: f64 = values.iter().map(|&v| f64::from(v)).sum();
            assert!((sum_by(len, |i| values[i]) - want).abs() < 1e-3, "{len}");
        }
    }
}
