//! Numbers between the host's f32 and the types of the GPU. Both ends are little-endian.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

use super::call::Element;

/// Values that a thread takes at a time. Waking another one costs as much as converting fewer.
const RUN: usize = 1 << 18;

/// `bytes` has room for all values.
pub(super) fn to_bytes(values: &[f32], element: Element, bytes: &mut [u8]) {
    let width = element.bytes();
    let parts = bytes.par_chunks_mut(RUN * width).zip(values.par_chunks(RUN));
    parts.for_each(|(bytes, values)| match element {
        Element::F32 => {
            for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        Element::F16 | Element::Bf16 => {
            let mut words = vec![0u16; values.len()];
            match element {
                Element::F16 => words.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values),
                _ => words.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values),
            }
            for (bytes, word) in bytes.chunks_exact_mut(2).zip(&words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    });
}

pub(super) fn from_bytes(bytes: &[u8], element: Element) -> Vec<f32> {
    let mut values = vec![0f32; bytes.len() / element.bytes()];
    read_bytes(bytes, element, &mut values);
    values
}

/// As many of them as `values` has room for.
pub(super) fn read_bytes(bytes: &[u8], element: Element, values: &mut [f32]) {
    let width = element.bytes();
    let parts = values.par_chunks_mut(RUN).zip(bytes.par_chunks(RUN * width));
    parts.for_each(|(values, bytes)| match element {
        Element::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Element::F16 | Element::Bf16 => {
            let words: Vec<u16> = bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|word| u16::from_le_bytes(*word))
                .collect();
            match element {
                Element::F16 => words.reinterpret_cast::<f16>().convert_to_f32_slice(values),
                _ => words.reinterpret_cast::<bf16>().convert_to_f32_slice(values),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_and_come_back_rounded() {
        let values: Vec<f32> = (0..RUN + 5)
            .map(|i| ((i % 8192) as f32 - 3000.) * 0.37)
            .chain([f32::NAN])
            .collect();
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let mut bytes = vec![0; values.len() * element.bytes()];
            to_bytes(&values, element, &mut bytes);
            let back = from_bytes(&bytes, element);
            let unit = match element {
                Element::F32 => 0.,
                Element::F16 => 2f32.powi(-11),
                Element::Bf16 => 2f32.powi(-8),
            };
            assert_eq!(back.len(), values.len());
            assert!(back.last().unwrap().is_nan());
            for (value, back) in values.iter().zip(&back).take(RUN + 5) {
                assert!((value - back).abs() <= unit * value.abs(), "{value} {back}");
            }
        }
    }
}
