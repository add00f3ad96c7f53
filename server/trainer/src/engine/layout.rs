//! The two orders of memory: channels first, as checkpoints and candle's tensors lie, and channels last, as the engine's.

use rayon::prelude::*;

/// Blocks of `[channels, places]` to blocks of `[places, channels]`: maps `[rows, channels, h, w]` with `h * w` places,
/// or convolutions' weights `[outputs, inputs, kernel, kernel]` with the kernel's.
pub fn channels_last(values: &[f32], channels: usize, places: usize) -> Vec<f32> {
    transpose(values, channels, places)
}

/// The way back.
pub fn channels_first(values: &[f32], channels: usize, places: usize) -> Vec<f32> {
    transpose(values, places, channels)
}

/// Waking other threads costs more than to turn this many values.
const FEW: usize = 1 << 18;

/// Blocks of `[a, b]` to blocks of `[b, a]`.
fn transpose(values: &[f32], a: usize, b: usize) -> Vec<f32> {
    if a <= 1 || b <= 1 {
        return values.to_vec();
    }
    let mut out = vec![0.; values.len()];
    let turn = |(out, block): (&mut [f32], &[f32])| {
        for (j, out) in out.chunks_exact_mut(a).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                *out = block[i * b + j];
            }
        }
    };
    if values.len() < FEW {
        out.chunks_exact_mut(a * b)
            .zip(values.chunks_exact(a * b))
            .for_each(turn);
    } else {
        let blocks = values.par_chunks_exact(a * b);
        out.par_chunks_exact_mut(a * b).zip(blocks).for_each(turn);
    }
    out
}

/// A weight's shape in the engine for its shape in a checkpoint: a convolution's inputs come last.
pub fn engine_dims(checkpoint: &[usize]) -> Vec<usize> {
    match *checkpoint {
        [outputs, inputs, height, width] => vec![outputs, height, width, inputs],
        _ => checkpoint.to_vec(),
    }
}

/// The way back.
pub fn checkpoint_dims(engine: &[usize]) -> Vec<usize> {
    match *engine {
        [outputs, height, width, inputs] => vec![outputs, inputs, height, width],
        _ => engine.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_go_last_and_come_back() {
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let last = channels_last(&values, 2, 3);
        assert_eq!(last, [0., 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.]);
        assert_eq!(channels_first(&last, 2, 3), values);
        let many: Vec<f32> = (0..2 * FEW).map(|v| v as f32).collect();
        let last = channels_last(&many, 4, FEW / 4);
        assert_eq!((last[1], last[FEW + 4]), ((FEW / 4) as f32, FEW as f32 + 1.));
        assert_eq!(channels_first(&last, 4, FEW / 4), many);
        assert_eq!(checkpoint_dims(&engine_dims(&[8, 4, 3, 3])), [8, 4, 3, 3]);
        assert_eq!(engine_dims(&[8, 4, 3, 3]), [8, 3, 3, 4]);
    }
}
