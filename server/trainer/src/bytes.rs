//! Numbers as they lie in files and on devices, little-endian, written by all cores.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

/// Values that a thread takes at a time. Waking another one costs as much as writing fewer.
pub const RUN: usize = 1 << 18;

/// `bytes` has room for all values, `N` bytes each.
pub fn write<T: Copy + Sync, const N: usize>(values: &[T], bytes: &mut [u8], little_endian: fn(T) -> [u8; N]) {
    let parts = bytes.par_chunks_mut(RUN * N).zip(values.par_chunks(RUN));
    parts.for_each(|(bytes, values)| {
        for (slot, value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
            *slot = little_endian(*value);
        }
    });
}

/// The nearest f16 of each.
pub fn write_as_f16(values: &[f32], bytes: &mut [u8]) {
    write_words(values, bytes, |values, words| {
        words.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
    });
}

/// The nearest bf16 of each.
pub fn write_as_bf16(values: &[f32], bytes: &mut [u8]) {
    write_words(values, bytes, |values, words| {
        words.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values);
    });
}

fn write_words(values: &[f32], bytes: &mut [u8], round: impl Fn(&[f32], &mut [u16]) + Sync) {
    let parts = bytes.par_chunks_mut(RUN * 2).zip(values.par_chunks(RUN));
    parts.for_each(|(bytes, values)| {
        let mut words = vec![0u16; values.len()];
        round(values, &mut words);
        for (slot, word) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(&words) {
            *slot = word.to_le_bytes();
        }
    });
}
