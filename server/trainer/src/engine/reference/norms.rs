//! Group norm with its shift and SiLU, and layer norm.

use super::pointwise::{sigmoid, silu_slope};

pub struct NormGrads {
    /// Of the normalised input; of a group norm, of `x + shift`.
    pub ds: Vec<f64>,
    pub dw: Vec<f64>,
    pub db: Vec<f64>,
}

fn mean_and_rstd(values: impl Iterator<Item = f64> + Clone, eps: f64) -> (f64, f64) {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, 1. / (variance + eps).sqrt())
}

/// `[rows, pixels, channels]`, channels split into groups.
pub struct GroupShape {
    rows: usize,
    pixels: usize,
    pub channels: usize,
    groups: usize,
}

impl GroupShape {
    pub fn new(dims: &[usize], groups: usize) -> Self {
        let (rows, channels) = (dims[0], dims[dims.len() - 1]);
        Self {
            rows,
            pixels: dims[1..dims.len() - 1].iter().product(),
            channels,
            groups,
        }
    }

    /// Row and channel of the element at `index`.
    fn place(&self, index: usize) -> (usize, usize) {
        (index / (self.pixels * self.channels), index % self.channels)
    }

    /// Where the statistics of a row's channel lie, in units of two numbers.
    fn group(&self, row: usize, channel: usize) -> usize {
        row * self.groups + channel / (self.channels / self.groups)
    }

    pub fn shifted(&self, x: &[f64], rows: Option<&[f64]>, channels: Option<&[f64]>) -> Vec<f64> {
        let shift = |(index, x): (usize, &f64)| {
            let (row, channel) = self.place(index);
            x + rows.map_or(0., |rows| rows[row * self.channels + channel]) + channels.map_or(0., |all| all[channel])
        };
        x.iter().enumerate().map(shift).collect()
    }

    pub fn stats(&self, s: &[f64], eps: f64) -> Vec<f64> {
        let of_group = |group: usize| {
            let members = (s.iter().enumerate())
                .filter(move |(index, _)| {
                    let (row, channel) = self.place(*index);
                    self.group(row, channel) == group
                })
                .map(|(_, &value)| value);
            let (mean, rstd) = mean_and_rstd(members, eps);
            [mean, rstd]
        };
        (0..self.rows * self.groups).flat_map(of_group).collect()
    }

    fn normalised(&self, s: &[f64], stats: &[f64]) -> Vec<f64> {
        let normal = |(index, s): (usize, &f64)| {
            let (row, channel) = self.place(index);
            let group = self.group(row, channel);
            (s - stats[2 * group]) * stats[2 * group + 1]
        };
        s.iter().enumerate().map(normal).collect()
    }

    pub fn forward(&self, s: &[f64], stats: &[f64], w: &[f64], b: &[f64], silu: bool) -> Vec<f64> {
        let finish = |(index, n): (usize, f64)| {
            let z = n * w[index % self.channels] + b[index % self.channels];
            if silu { z * sigmoid(z) } else { z }
        };
        self.normalised(s, stats).into_iter().enumerate().map(finish).collect()
    }

    pub fn backward(&self, dy: &[f64], s: &[f64], stats: &[f64], [w, b]: [&[f64]; 2], silu: bool) -> NormGrads {
        let n = self.normalised(s, stats);
        let (mut dw, mut db) = (vec![0.; self.channels], vec![0.; self.channels]);
        let mut wdz = vec![0.; s.len()];
        let mut sums = vec![(0., 0.); self.rows * self.groups];
        for index in 0..s.len() {
            let (row, channel) = self.place(index);
            let z = n[index] * w[channel] + b[channel];
            let dz = if silu { dy[index] * silu_slope(z) } else { dy[index] };
            dw[channel] += dz * n[index];
            db[channel] += dz;
            wdz[index] = w[channel] * dz;
            let sums = &mut sums[self.group(row, channel)];
            sums.0 += wdz[index];
            sums.1 += wdz[index] * n[index];
        }
        let members = (self.pixels * self.channels / self.groups) as f64;
        let ds = |index: usize| {
            let (row, channel) = self.place(index);
            let group = self.group(row, channel);
            stats[2 * group + 1] * (wdz[index] - (sums[group].0 + n[index] * sums[group].1) / members)
        };
        NormGrads {
            ds: (0..s.len()).map(ds).collect(),
            dw,
            db,
        }
    }

    /// `[rows, channels]`.
    pub fn sum_pixels(&self, ds: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.; self.rows * self.channels];
        for (index, ds) in ds.iter().enumerate() {
            let (row, channel) = self.place(index);
            sums[row * self.channels + channel] += ds;
        }
        sums
    }
}

/// Result, and mean and rstd of each token.
pub fn layer_norm(x: &[f64], w: &[f64], b: &[f64], width: usize, eps: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut stats) = (Vec::new(), Vec::new());
    for token in x.chunks_exact(width) {
        let (mean, rstd) = mean_and_rstd(token.iter().copied(), eps);
        y.extend((0..width).map(|i| (token[i] - mean) * rstd * w[i] + b[i]));
        stats.extend([mean, rstd]);
    }
    (y, stats)
}

pub fn layer_norm_grad(dy: &[f64], x: &[f64], stats: &[f64], w: &[f64]) -> NormGrads {
    let width = w.len();
    let (mut ds, mut dw, mut db) = (Vec::new(), vec![0.; width], vec![0.; width]);
    for ((dy, x), stats) in (dy.chunks_exact(width).zip(x.chunks_exact(width))).zip(stats.chunks_exact(2)) {
        let n: Vec<f64> = x.iter().map(|x| (x - stats[0]) * stats[1]).collect();
        for i in 0..width {
            dw[i] += dy[i] * n[i];
            db[i] += dy[i];
        }
        let sum: f64 = (0..width).map(|i| w[i] * dy[i]).sum();
        let sum_n: f64 = (0..width).map(|i| w[i] * dy[i] * n[i]).sum();
        ds.extend((0..width).map(|i| stats[1] * (w[i] * dy[i] - (sum + n[i] * sum_n) / width as f64)));
    }
    NormGrads { ds, dw, db }
}
