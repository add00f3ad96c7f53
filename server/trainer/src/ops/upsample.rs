//! Nearest-neighbour upsampling to a given size: pixel i comes from pixel `floor(i * old / new)`. A pixel's gradient
//! is the sum over its copies.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    kernel::output,
    node::{Output, attach, on_host, with_slices},
};

/// `x` `[rows, channels, h, w]` to `[rows, channels, height, width]`.
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    if !on_host(&[x]) {
        return composed(x, height, width);
    }
    let (rows, channels, h, w) = x.dims4()?;
    let from = move |new: usize, old: usize, i: usize| i * old / new;
    let columns: Vec<usize> = (0..width).map(|j| from(width, w, j)).collect();
    let mut y = output(rows * channels * height * width);
    with_slices([x], |[x]| {
        y.par_chunks_mut(height * width)
            .zip(x.par_chunks(h * w))
            .for_each(|(y, x)| {
                for (i, y) in y.chunks_mut(width).enumerate() {
                    let x = &x[from(height, h, i) * w..][..w];
                    y.iter_mut().zip(&columns).for_each(|(y, &column)| *y = x[column]);
                }
            });
    })?;
    attach(
        "upsample_nearest",
        Output::host(y, (rows, channels, height, width)),
        &[x],
        move |grad| {
            let mut dx = vec![0f32; rows * channels * h * w];
            with_slices([grad], |[dy]| {
                dx.par_chunks_mut(h * w)
                    .zip(dy.par_chunks(height * width))
                    .for_each(|(dx, dy)| {
                        for (i, dy) in dy.chunks(width).enumerate() {
                            let dx = &mut dx[from(height, h, i) * w..][..w];
                            dy.iter().zip(&columns).for_each(|(dy, &column)| dx[column] += dy);
                        }
                    });
            })?;
            Ok(vec![Some(Tensor::from_vec(dx, (rows, channels, h, w), &Device::Cpu)?)])
        },
    )
}

fn composed(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (rows, channels, h, w) = x.dims4()?;
    if height == 2 * h && width == 2 * w {
        let doubled = x
            .reshape((rows, channels, h, 1, w, 1))?
            .broadcast_as((rows, channels, h, 2, w, 2))?;
        return doubled.reshape((rows, channels, height, width));
    }
    let sources = |new: usize, old: usize| {
        let sources: Vec<u32> = (0..new).map(|i| (i * old / new) as u32).collect();
        Tensor::new(sources, x.device())
    };
    x.contiguous()?
        .index_select(&sources(height, h)?, 2)?
        .index_select(&sources(width, w)?, 3)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{check, input},
        *,
    };

    #[test]
    fn doubling_and_odd_sizes() {
        for ((h, w), (height, width)) in [((3, 2), (6, 4)), ((3, 3), (5, 6)), ((5, 6), (9, 11)), ((1, 1), (2, 1))] {
            let reference = |v: &[Vec<f64>]| {
                let at = |p: usize, i: usize, j: usize| v[0][(p * h + i * h / height) * w + j * w / width];
                let pixels = (0..6).flat_map(|p| (0..height * width).map(move |pixel| (p, pixel)));
                pixels.map(|(p, pixel)| at(p, pixel / width, pixel % width)).collect()
            };
            let op = |t: &[Tensor]| upsample_nearest(&t[0], height, width);
            check(&[input(&[2, 3, h, w], 1)], reference, op, |t| {
                composed(&t[0], height, width)
            });
        }
    }
}
