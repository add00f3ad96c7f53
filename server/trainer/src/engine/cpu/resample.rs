//! Nearest-neighbour upsampling (pixel i comes from pixel `floor(i * old / new)`, and its gradient is the sum over its
//! copies), and channels laid side by side.

use rayon::prelude::*;

use super::kernel::{Plus, add};

/// `x` `[rows, height, width, channels]`, `y` the same rows at another height and width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub height: usize,
    pub width: usize,
    pub new_height: usize,
    pub new_width: usize,
    pub channels: usize,
}

impl Sizes {
    pub fn of(x: &[usize], y: &[usize]) -> Self {
        let (&[_, height, width, channels], &[_, new_height, new_width, _]) = (x, y) else {
            unreachable!("upsampling is of maps: {x:?} to {y:?}")
        };
        Self {
            height,
            width,
            new_height,
            new_width,
            channels,
        }
    }

    fn source_line(self, line: usize) -> usize {
        line * self.height / self.new_height
    }

    fn source_column(self, column: usize) -> usize {
        column * self.width / self.new_width
    }
}

pub(crate) fn upsample(y: &mut [f32], x: &[f32], sizes: Sizes) {
    let Sizes {
        height,
        width,
        new_height,
        new_width,
        channels,
    } = sizes;
    let lines = y.par_chunks_mut(new_width * channels).enumerate().with_min_len(4);
    lines.for_each(|(index, y)| {
        let line = index / new_height * height + sizes.source_line(index % new_height);
        let x = &x[line * width * channels..][..width * channels];
        for (column, y) in y.chunks_exact_mut(channels).enumerate() {
            y.copy_from_slice(&x[sizes.source_column(column) * channels..][..channels]);
        }
    });
}

pub(crate) fn upsample_grad(dx: &mut [f32], dy: &[f32], plus: Plus, sizes: Sizes) {
    let Sizes {
        height,
        width,
        new_height,
        new_width,
        channels,
    } = sizes;
    let (line, new_line) = (width * channels, new_width * channels);
    let lines = dx.par_chunks_mut(line).enumerate().with_min_len(4);
    lines.for_each(|(index, dx)| {
        plus.part(index * line, line).lay(dx);
        let dy = &dy[index / height * new_height * new_line..][..new_height * new_line];
        // The copies of a line lie one below the other.
        let copies = (dy.chunks_exact(new_line).enumerate())
            .skip_while(|(copy, _)| sizes.source_line(*copy) < index % height)
            .take_while(|(copy, _)| sizes.source_line(*copy) == index % height);
        for (_, dy) in copies {
            for (column, dy) in dy.chunks_exact(channels).enumerate() {
                add(&mut dx[sizes.source_column(column) * channels..][..channels], dy);
            }
        }
    });
}

/// Channels of `a`, then those of `b`; `of_a` and `of_b` of them.
pub(crate) fn concat(y: &mut [f32], a: &[f32], b: &[f32], (of_a, of_b): (usize, usize)) {
    y.par_chunks_mut(of_a + of_b)
        .zip(a.par_chunks(of_a))
        .zip(b.par_chunks(of_b))
        .with_min_len(PIXELS)
        .for_each(|((y, a), b)| {
            y[..of_a].copy_from_slice(a);
            y[of_a..].copy_from_slice(b);
        });
}

/// Channels `first..` of `dy`, as many as `part` has; they have `channels` and `all`.
pub(crate) fn concat_grad(part: &mut [f32], dy: &[f32], first: usize, (channels, all): (usize, usize)) {
    part.par_chunks_mut(channels)
        .zip(dy.par_chunks(all))
        .with_min_len(PIXELS)
        .for_each(|(part, dy)| part.copy_from_slice(&dy[first..first + channels]));
}

/// Pixels that are worth a task.
const PIXELS: usize = 64;
