//! Group normalisation: mean 0, variance 1 over a group of channels and all pixels of a row, then scale and offset by
//! channel; SiLU after it where asked.
//!
//! With `s = x + shift`, `n = (s - mean) r`, `r = 1 / sqrt(variance + eps)`, `z = w n + b`, m values in a group and `dz` the
//! gradient: `dw = sum dz n`, `db = sum dz`, `ds = r (w dz - (sum w dz + n sum w dz n) / m)`, the last sums over the group. The
//! gradient of the shift is the sum of `ds` over pixels, which follows from the sums of `dz`, `dz n` and `n`.
//!
//! Channels lie side by side, so everything is computed for all channels of a pixel at once, with the numbers of a
//! group written out by channel.

use rayon::prelude::*;

use super::{
    kernel::{CHUNK, MatMut, Plus, Write, add, vectorized},
    math::{sigmoid, silu_slope},
};

/// What forward and backward both take.
#[derive(Clone, Copy)]
pub(crate) struct GroupNorm<'a> {
    /// `[rows, pixels, channels]`.
    pub x: &'a [f32],
    /// `[rows, channels]`.
    pub shift_rows: Option<&'a [f32]>,
    /// `[channels]`, as are `w` and `b`.
    pub shift_channels: Option<&'a [f32]>,
    pub w: &'a [f32],
    pub b: &'a [f32],
    pub rows: usize,
    pub groups: usize,
    pub silu: bool,
}

impl GroupNorm<'_> {
    fn channels(&self) -> usize {
        self.w.len()
    }

    fn row_values(&self) -> usize {
        self.x.len() / self.rows
    }

    fn pixels(&self) -> usize {
        self.row_values() / self.channels()
    }

    /// Values of a task: whole blocks of pixels.
    fn task(&self) -> usize {
        (CHUNK / self.channels()).next_multiple_of(BLOCK_PIXELS) * self.channels()
    }

    /// What is added to each channel of a row.
    fn shift(&self, row: usize) -> Vec<f32> {
        let channels = self.channels();
        let mut shift = vec![0.; channels];
        for part in [self.shift_rows.map(|rows| &rows[row * channels..]), self.shift_channels] {
            if let Some(part) = part {
                add(&mut shift, part);
            }
        }
        shift
    }

    /// A group's numbers for each of its channels.
    fn by_channel(&self, of_group: impl Fn(usize) -> f32) -> Vec<f32> {
        let per_group = self.channels() / self.groups;
        (0..self.channels())
            .map(|channel| of_group(channel / per_group))
            .collect()
    }

    /// `centre` and `r` of each channel, so that `n = (x - centre) r`.
    fn normal(&self, row: usize, stats: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut centre = self.by_channel(|group| stats[2 * group]);
        (centre.iter_mut().zip(self.shift(row))).for_each(|(centre, shift)| *centre -= shift);
        (centre, self.by_channel(|group| stats[2 * group + 1]))
    }
}

/// `y` like `x`; `stats` `[rows, groups, 2]`, mean and r.
pub(crate) fn forward(y: &mut [f32], stats: &mut [f32], norm: GroupNorm, eps: f64) {
    let (row_values, groups) = (norm.row_values(), norm.groups);
    y.par_chunks_mut(row_values)
        .zip(norm.x.par_chunks(row_values))
        .zip(stats.par_chunks_mut(2 * groups))
        .enumerate()
        .for_each(|(row, ((y, x), stats))| {
            statistics(stats, x, &norm, row, eps);
            let (centre, mut scale) = norm.normal(row, stats);
            scale.iter_mut().zip(norm.w).for_each(|(scale, w)| *scale *= w);
            let write = if norm.silu { affine_silu } else { affine };
            y.par_chunks_mut(norm.task())
                .zip(x.par_chunks(norm.task()))
                .for_each(|(y, x)| write(y, x, &centre, &scale, norm.b));
        });
}

/// In two passes: the difference of squares would lose the variance of values far from zero.
fn statistics(stats: &mut [f32], x: &[f32], norm: &GroupNorm, row: usize, eps: f64) {
    let (channels, pixels) = (norm.channels(), norm.pixels() as f64);
    let per_group = channels / norm.groups;
    let count = pixels * per_group as f64;
    let shift = norm.shift(row);
    let sums = channel_sums(x.par_chunks(norm.task()), channels, |sums, x| plain_sums(sums, x));
    for (group, stats) in stats.chunks_exact_mut(2).enumerate() {
        let of_group = group * per_group..(group + 1) * per_group;
        let sum: f64 = of_group.map(|c| sums[c] + pixels * f64::from(shift[c])).sum();
        stats[0] = (sum / count) as f32;
    }
    let (centre, _) = norm.normal(row, stats);
    let squares = channel_sums(x.par_chunks(norm.task()), channels, |sums, x| {
        square_sums(sums, x, &centre)
    });
    for (group, stats) in stats.chunks_exact_mut(2).enumerate() {
        let sum: f64 = squares[group * per_group..(group + 1) * per_group].iter().sum();
        stats[1] = (1. / (sum / count + eps).sqrt()) as f32;
    }
}

/// Pixels summed in f32 before they go into f64.
const BLOCK_PIXELS: usize = 64;

/// Sums over pixels of what `block` adds to `width` numbers, in a fixed order.
fn channel_sums<'a>(
    tasks: impl IndexedParallelIterator<Item = &'a [f32]>,
    width: usize,
    block: impl Fn(&mut [f32], &[f32]) + Sync,
) -> Vec<f64> {
    sums_of(tasks, width, |sums, wide, x: &[f32]| {
        for x in x.chunks(BLOCK_PIXELS * width) {
            block(sums, x);
            flush(sums, wide);
        }
    })
}

/// Sums of tasks in their order. `task(sums, wide, item)` works in `sums`, and adds to `wide` now and then ([`flush`]).
fn sums_of<T: Send>(
    tasks: impl IndexedParallelIterator<Item = T>,
    width: usize,
    task: impl Fn(&mut [f32], &mut [f64], T) + Sync,
) -> Vec<f64> {
    let parts: Vec<Vec<f64>> = tasks
        .map(|item| {
            let (mut sums, mut wide) = (vec![0f32; width], vec![0f64; width]);
            task(&mut sums, &mut wide, item);
            wide
        })
        .collect();
    let mut total = vec![0f64; width];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    total
}

fn flush(sums: &mut [f32], wide: &mut [f64]) {
    for (sum, wide) in sums.iter_mut().zip(wide) {
        *wide += f64::from(std::mem::take(sum));
    }
}

vectorized! {
    fn plain_sums(sums: &mut [f32], x: &[f32]) {
        for x in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
    }
}

vectorized! {
    fn square_sums(sums: &mut [f32], x: &[f32], centre: &[f32]) {
        for x in x.chunks_exact(sums.len()) {
            for ((sum, x), centre) in sums.iter_mut().zip(x).zip(centre) {
                *sum += (x - centre) * (x - centre);
            }
        }
    }
}

vectorized! {
    fn affine(y: &mut [f32], x: &[f32], centre: &[f32], scale: &[f32], b: &[f32]) {
        for (y, x) in y.chunks_exact_mut(b.len()).zip(x.chunks_exact(b.len())) {
            for ((((y, x), centre), scale), b) in y.iter_mut().zip(x).zip(centre).zip(scale).zip(b) {
                *y = (x - centre) * scale + b;
            }
        }
    }
}

vectorized! {
    fn affine_silu(y: &mut [f32], x: &[f32], centre: &[f32], scale: &[f32], b: &[f32]) {
        for (y, x) in y.chunks_exact_mut(b.len()).zip(x.chunks_exact(b.len())) {
            for ((((y, x), centre), scale), b) in y.iter_mut().zip(x).zip(centre).zip(scale).zip(b) {
                let z = (x - centre) * scale + b;
                *y = z * sigmoid(z);
            }
        }
    }
}

/// Where the backward puts what is wanted.
pub(crate) struct Gradients<'a> {
    pub dx: &'a mut [f32],
    /// `[rows, channels]`.
    pub dshift: Option<&'a mut [f32]>,
    /// `[channels]`, as are the next two; replaced, or added to.
    pub dw: Option<&'a mut [f32]>,
    pub db: Option<&'a mut [f32]>,
    pub dshift_channels: Option<&'a mut [f32]>,
    pub write: Write,
}

/// One row's share of the gradients that are numbers by channel.
struct ByChannel {
    dw: Vec<f64>,
    db: Vec<f64>,
    dshift: Vec<f64>,
}

/// `stats` as the forward left them.
pub(crate) fn backward(out: Gradients, dy: &[f32], norm: GroupNorm, stats: &[f32], plus: Plus) {
    let (row_values, channels) = (norm.row_values(), norm.channels());
    let dx = MatMut::new(out.dx, norm.rows, row_values);
    let rows: Vec<ByChannel> = (0..norm.rows)
        .into_par_iter()
        .map(|row| {
            // SAFETY: each row is one task's.
            let mut dx = unsafe { dx.tile((row, 1), (0, row_values)) };
            let part = row * row_values..(row + 1) * row_values;
            let plus = plus.part(part.start, row_values);
            let stats = &stats[row * 2 * norm.groups..][..2 * norm.groups];
            row_backward(dx.row(0), &dy[part.clone()], &norm.x[part], &norm, row, stats, plus)
        })
        .collect();
    if let Some(dshift) = out.dshift {
        for (dshift, row) in dshift.chunks_exact_mut(channels).zip(&rows) {
            dshift
                .iter_mut()
                .zip(&row.dshift)
                .for_each(|(to, from)| *to = *from as f32);
        }
    }
    let sum = |to: Option<&mut [f32]>, of: fn(&ByChannel) -> &[f64]| {
        for (channel, to) in to.into_iter().flatten().enumerate() {
            let sum = rows.iter().map(|row| of(row)[channel]).sum::<f64>() as f32;
            *to = if out.write == Write::Add { *to + sum } else { sum };
        }
    };
    sum(out.dw, |row| &row.dw);
    sum(out.db, |row| &row.db);
    sum(out.dshift_channels, |row| &row.dshift);
}

fn row_backward(
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    norm: &GroupNorm,
    row: usize,
    stats: &[f32],
    plus: Plus,
) -> ByChannel {
    let (channels, pixels, task) = (norm.channels(), norm.pixels() as f64, norm.task());
    let per_group = channels / norm.groups;
    let (centre, r) = norm.normal(row, stats);
    let affine = Affine {
        centre: &centre,
        r: &r,
        w: norm.w,
        b: norm.b,
    };
    let sums = sums_of(
        dy.par_chunks(task).zip(x.par_chunks(task)),
        3 * channels,
        |sums, wide, (dy, x)| {
            let block = BLOCK_PIXELS * channels;
            for (dy, x) in dy.chunks(block).zip(x.chunks(block)) {
                let add = if norm.silu { add_sums_silu } else { add_sums };
                add(sums, dy, x, affine);
                flush(sums, wide);
            }
        },
    );
    let (db, rest) = sums.split_at(channels);
    let (dw, normed) = rest.split_at(channels);
    let count = pixels * per_group as f64;
    let mean = |values: &[f64]| {
        let weighted: Vec<f64> = values.iter().zip(norm.w).map(|(v, w)| v * f64::from(*w)).collect();
        norm.by_channel(|group| {
            (weighted[group * per_group..(group + 1) * per_group].iter().sum::<f64>() / count) as f32
        })
    };
    let (of_mean, of_variance) = (mean(db), mean(dw));
    let write = if norm.silu { to_input_silu } else { to_input };
    let dx_tasks = dx.par_chunks_mut(task).zip(dy.par_chunks(task)).zip(x.par_chunks(task));
    dx_tasks.enumerate().for_each(|(index, ((dx, dy), x))| {
        // Onto what is to be added, so that one loop serves all.
        plus.part(index * task, dx.len()).lay(dx);
        write(dx, dy, x, affine, &of_mean, &of_variance);
    });
    let dshift = (0..channels).map(|c| {
        let of_group = pixels * f64::from(of_mean[c]) + normed[c] * f64::from(of_variance[c]);
        f64::from(r[c]) * (f64::from(norm.w[c]) * db[c] - of_group)
    });
    ByChannel {
        dshift: dshift.collect(),
        dw: dw.to_vec(),
        db: db.to_vec(),
    }
}

/// By channel: `n = (x - centre) r`, `z = w n + b`.
#[derive(Clone, Copy)]
struct Affine<'a> {
    centre: &'a [f32],
    r: &'a [f32],
    w: &'a [f32],
    b: &'a [f32],
}

impl Affine<'_> {
    /// Adds `dz`, `dz n` and `n` of all pixels to `sums`, channel by channel.
    #[inline(always)]
    fn add_sums(self, sums: &mut [f32], dy: &[f32], x: &[f32], slope: impl Fn(f32) -> f32) {
        let channels = self.b.len();
        let (centre, r, w) = (&self.centre[..channels], &self.r[..channels], &self.w[..channels]);
        let (db, rest) = sums.split_at_mut(channels);
        let (dw, normed) = rest.split_at_mut(channels);
        for (dy, x) in dy.chunks_exact(channels).zip(x.chunks_exact(channels)) {
            for c in 0..channels {
                let n = (x[c] - centre[c]) * r[c];
                let dz = dy[c] * slope(n * w[c] + self.b[c]);
                db[c] += dz;
                dw[c] += dz * n;
                normed[c] += n;
            }
        }
    }

    #[inline(always)]
    fn to_input(
        self,
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        (of_mean, of_variance): (&[f32], &[f32]),
        slope: impl Fn(f32) -> f32,
    ) {
        let channels = self.b.len();
        let (centre, r, w) = (&self.centre[..channels], &self.r[..channels], &self.w[..channels]);
        let (of_mean, of_variance) = (&of_mean[..channels], &of_variance[..channels]);
        let pixels = dx.chunks_exact_mut(channels).zip(dy.chunks_exact(channels));
        for ((dx, dy), x) in pixels.zip(x.chunks_exact(channels)) {
            for c in 0..channels {
                let n = (x[c] - centre[c]) * r[c];
                let dz = dy[c] * slope(n * w[c] + self.b[c]);
                dx[c] += r[c] * (w[c] * dz - (of_mean[c] + n * of_variance[c]));
            }
        }
    }
}

vectorized! {
    fn add_sums(sums: &mut [f32], dy: &[f32], x: &[f32], affine: Affine) {
        affine.add_sums(sums, dy, x, |_| 1.);
    }
}

vectorized! {
    fn add_sums_silu(sums: &mut [f32], dy: &[f32], x: &[f32], affine: Affine) {
        affine.add_sums(sums, dy, x, silu_slope);
    }
}

vectorized! {
    fn to_input(dx: &mut [f32], dy: &[f32], x: &[f32], affine: Affine, of_mean: &[f32], of_variance: &[f32]) {
        affine.to_input(dx, dy, x, (of_mean, of_variance), |_| 1.);
    }
}

vectorized! {
    fn to_input_silu(dx: &mut [f32], dy: &[f32], x: &[f32], affine: Affine, of_mean: &[f32], of_variance: &[f32]) {
        affine.to_input(dx, dy, x, (of_mean, of_variance), silu_slope);
    }
}
