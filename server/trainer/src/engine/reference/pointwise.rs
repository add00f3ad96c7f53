//! Activations, rearrangements, the embedding and the loss.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::Values;
use crate::engine::ir::{Activation, Op};

pub fn sigmoid(x: f64) -> f64 {
    1. / (1. + (-x).exp())
}

pub fn silu_slope(x: f64) -> f64 {
    let sigmoid = sigmoid(x);
    sigmoid * (1. + x * (1. - sigmoid))
}

/// Abramowitz and Stegun 7.1.6: all terms have one sign, so nothing cancels.
fn erf(x: f64) -> f64 {
    if x.abs() > 6. {
        // 1 - erf(6) is 2e-17.
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.;
        term *= 2. * x * x / (2. * n + 1.);
        sum += term;
    }
    2. / PI.sqrt() * (-x * x).exp() * sum
}

fn normal_cdf(x: f64) -> f64 {
    0.5 * (1. + erf(x * FRAC_1_SQRT_2))
}

fn gelu_slope(x: f64) -> f64 {
    normal_cdf(x) + x * (-0.5 * x * x).exp() / (2. * PI).sqrt()
}

fn activate(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x * sigmoid(x),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Gelu => x * normal_cdf(x),
    }
}

fn slope(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => silu_slope(x),
        // x s(a x) = silu(a x) / a.
        Activation::QuickGelu => silu_slope(1.702 * x),
        Activation::Gelu => gelu_slope(x),
    }
}

pub fn add_channels(values: &mut [f64], channels: &[f64]) {
    for pixel in values.chunks_exact_mut(channels.len()) {
        super::add_to(pixel, channels);
    }
}

pub fn sum_channels(values: &[f64], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.; channels];
    values
        .chunks_exact(channels)
        .for_each(|pixel| super::add_to(&mut sums, pixel));
    sums
}

pub fn embedding(ids: &[f64], table: &[f64], positions: &[f64], tokens: usize, width: usize) -> Vec<f64> {
    let token = |(index, id): (usize, &f64)| {
        let (table, position) = (&table[*id as usize * width..], &positions[index % tokens * width..]);
        (0..width).map(|i| table[i] + position[i]).collect::<Vec<_>>()
    };
    ids.iter().enumerate().flat_map(token).collect()
}

/// `lengths`: of the table and of the positions.
pub fn embedding_grad(
    dy: &[f64],
    ids: &[f64],
    lengths: (usize, usize),
    tokens: usize,
    width: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut dtable, mut dpositions) = (vec![0.; lengths.0], vec![0.; lengths.1]);
    for (index, (dy, id)) in dy.chunks_exact(width).zip(ids).enumerate() {
        super::add_to(&mut dtable[*id as usize * width..][..width], dy);
        super::add_to(&mut dpositions[index % tokens * width..][..width], dy);
    }
    (dtable, dpositions)
}

/// Source pixel of each pixel of an upsampled map.
fn sources(x: &[usize], y: &[usize]) -> Vec<usize> {
    let mut sources = Vec::new();
    for row in 0..y[0] {
        for (out_y, out_x) in (0..y[1]).flat_map(|out_y| (0..y[2]).map(move |out_x| (out_y, out_x))) {
            sources.push((row * x[1] + out_y * x[1] / y[1]) * x[2] + out_x * x[2] / y[2]);
        }
    }
    sources
}

/// The channels `from..to` of each pixel.
fn part(values: &[f64], channels: usize, from: usize, to: usize) -> Vec<f64> {
    values
        .chunks_exact(channels)
        .flat_map(|pixel| pixel[from..to].to_vec())
        .collect()
}

pub fn execute(op: &Op, values: &mut Values) {
    let channels = |values: &Values, id| super::channels(values, id);
    match *op {
        Op::Geglu { x, y } => {
            let half = channels(values, y);
            let gate = |pixel: &[f64]| {
                let (a, b) = pixel.split_at(half);
                a.iter()
                    .zip(b)
                    .map(|(a, b)| a * activate(Activation::Gelu, *b))
                    .collect::<Vec<_>>()
            };
            values.set(y, values.get(x).chunks_exact(2 * half).flat_map(gate).collect());
        }
        Op::GegluGrad { dy, x, dx } => {
            let half = channels(values, dy);
            let grad = |(dy, pixel): (&[f64], &[f64])| {
                let (a, b) = pixel.split_at(half);
                let of_a = (0..half).map(|i| dy[i] * activate(Activation::Gelu, b[i]));
                let of_b = (0..half).map(|i| dy[i] * a[i] * gelu_slope(b[i]));
                of_a.chain(of_b).collect::<Vec<_>>()
            };
            let pixels = values
                .get(dy)
                .chunks_exact(half)
                .zip(values.get(x).chunks_exact(2 * half));
            values.set(dx, pixels.flat_map(grad).collect());
        }
        Op::Activate { kind, x, y } => {
            values.set(y, values.get(x).iter().map(|&x| activate(kind, x)).collect());
        }
        Op::ActivateGrad { kind, dy, x, plus, dx } => {
            let grad = |(dy, x): (&f64, &f64)| dy * slope(kind, *x);
            let result = values.get(dy).iter().zip(values.get(x)).map(grad).collect();
            values.set_plus(dx, result, plus);
        }
        Op::Upsample { x, y } => {
            let (width, source) = (channels(values, x), values.get(x));
            let pixels = sources(values.dims(x), values.dims(y)).into_iter();
            values.set(
                y,
                pixels
                    .flat_map(|from| source[from * width..][..width].to_vec())
                    .collect(),
            );
        }
        Op::UpsampleGrad { dy, plus, dx } => {
            let width = channels(values, dx);
            let mut result = vec![0.; values.program.value(dx).len()];
            let pixels = sources(values.dims(dx), values.dims(dy)).into_iter();
            for (from, dy) in pixels.zip(values.get(dy).chunks_exact(width)) {
                super::add_to(&mut result[from * width..][..width], dy);
            }
            values.set_plus(dx, result, plus);
        }
        Op::Concat { a, b, y } => {
            let pixels =
                (values.get(a).chunks_exact(channels(values, a))).zip(values.get(b).chunks_exact(channels(values, b)));
            values.set(y, pixels.flat_map(|(a, b)| [a, b].concat()).collect());
        }
        Op::ConcatGrad { dy, da, db } => {
            let all = channels(values, dy);
            if let Some(da) = da {
                values.set(da, part(values.get(dy), all, 0, channels(values, da)));
            }
            if let Some(db) = db {
                values.set(db, part(values.get(dy), all, all - channels(values, db), all));
            }
        }
        Op::Mse {
            predicted,
            target,
            weights,
            scale,
            losses,
            dpredicted,
        } => {
            let rows = values.dims(predicted)[0];
            let count = values.get(predicted).len() / rows;
            let error: Vec<f64> = values
                .get(predicted)
                .iter()
                .zip(values.get(target))
                .map(|(p, t)| p - t)
                .collect();
            let loss = |row: &[f64]| row.iter().map(|error| error * error).sum::<f64>() / count as f64;
            let factor = |index: usize| values.get(scale)[0] * values.get(weights)[index / count] * 2. / count as f64;
            let of_predicted = error.iter().enumerate().map(|(i, error)| error * factor(i)).collect();
            let of_rows = error.chunks_exact(count).map(loss).collect();
            values.set(losses, of_rows);
            values.set(dpredicted, of_predicted);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_that_of_the_tables() {
        // Abramowitz and Stegun, table 7.1.
        for (x, expected) in [
            (0.5, 0.520_499_877_8),
            (1., 0.842_700_792_9),
            (1.5, 0.966_105_146_5),
            (-2., -0.995_322_265_0),
        ] {
            assert!((erf(x) - expected).abs() < 1e-10, "{x}");
        }
        assert_eq!(erf(0.), 0.);
    }
}
