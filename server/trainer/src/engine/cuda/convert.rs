//! Numbers between the host's f32 and the types of the GPU. Both ends are little-endian.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

use super::call::Element;
use crate::bytes::{self, RUN};

/// `bytes` has room for all values.
pub(super) fn to_bytes(values: &[f32], element: Element, bytes: &mut [u8]) {
    match element {
        Element::F32 => bytes::write(values, bytes, f32::to_le_bytes),
        Element::F16 => bytes::write_as_f16(values, bytes),
        Element::Bf16 => bytes::write_as_bf16(values, bytes),
    }
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
