//! AdamW with moments in 8 bits, as bitsandbytes' GPU kernels compute it (`kOptimizerStatic8bit2StateBlockwise`): a
//! moment is an entry of a table of 256 numbers times the largest absolute value of its block of 256 elements (Dettmers
//! et al., "8-bit Optimizers via Block-wise Quantization", 2022).
//!
//! ```text
//! m = m * b1 + (1 - b1) * g          v = v * b2 + (1 - b2) * g * g
//! p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps * sqrt(1 - b2^t)),   then p *= 1 - lr * weight_decay
//! ```
//!
//! All in f32, b1 and b2 too, so that 1 - b2 is 0.00099998713 for 0.999. A gradient that is not finite zeroes the moments
//! of its element and leaves the parameter alone. Tensors of fewer than [`SMALL`] elements keep moments in f32.

use super::{OptimizerSettings, Update, bias_corrections};

/// Elements that share a largest value.
pub const BLOCK: usize = 256;
/// Tensors below this many elements keep their moments in f32.
pub const SMALL: usize = 4096;

/// A table of 256 numbers from -1 or 0 to 1, denser towards zero, that codes stand for.
#[derive(Clone, Debug)]
pub struct Code {
    values: [f32; 256],
    /// Halfway between neighbours; the last one is out of reach.
    midpoints: [f32; 256],
}

impl Code {
    /// For first moments: bitsandbytes' `create_dynamic_map(signed=True)`.
    pub fn signed() -> Self {
        Self::dynamic(true)
    }

    /// For second moments: `create_dynamic_map(signed=False)`.
    pub fn unsigned() -> Self {
        Self::dynamic(false)
    }

    /// Seven decades, each cut evenly into twice as many numbers as the one below it; 0 and 1 on top.
    fn dynamic(signed: bool) -> Self {
        let mut values = [0f32; 256];
        values[1] = 1.;
        let mut filled = 2;
        for decade in 0..7 {
            let edges = if signed { 1 << decade } else { 2 << decade } + 1;
            let scale = 10f64.powi(decade - 6) as f32;
            for i in 0..edges - 1 {
                let value = scale * ((edge(i, edges) + edge(i + 1, edges)) / 2.);
                let entries = if signed { &[value, -value][..] } else { &[value] };
                values[filled..filled + entries.len()].copy_from_slice(entries);
                filled += entries.len();
            }
        }
        values.sort_by(f32::total_cmp);
        let mut midpoints = [f32::INFINITY; 256];
        for (midpoint, pair) in midpoints.iter_mut().zip(values.windows(2)) {
            *midpoint = (pair[0] + pair[1]) * 0.5;
        }
        Self { values, midpoints }
    }

    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// Halfway between each entry and the next; the last one is out of reach.
    pub fn midpoints(&self) -> &[f32; 256] {
        &self.midpoints
    }

    /// The code of the entry nearest to `value`.
    #[inline(always)]
    pub fn nearest(&self, value: f32) -> u8 {
        let mut code = 0;
        for step in [128, 64, 32, 16, 8, 4, 2, 1] {
            // Counts midpoints below the value, without a branch.
            code += step * usize::from(self.midpoints[code + step - 1] < value);
        }
        code as u8
    }

    /// Codes of a block and the largest absolute value, by which entries are multiplied.
    pub fn quantize(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (code, value) in codes.iter_mut().zip(values) {
            *code = self.nearest(if largest > 0. { value / largest } else { 0. });
        }
        largest
    }
}

/// Both tables.
#[derive(Clone, Debug)]
pub struct Codes {
    pub first: Code,
    pub second: Code,
}

impl Default for Codes {
    fn default() -> Self {
        Self {
            first: Code::signed(),
            second: Code::unsigned(),
        }
    }
}

/// The numbers of one update, the same for all elements of a group.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Gradients are multiplied by it first: clipping, and the loss scale divided out.
    pub factor: f32,
    beta1: f32,
    beta2: f32,
    step: f32,
    epsilon: f32,
    keep: f32,
}

impl Rates {
    pub fn new(settings: &OptimizerSettings, update: &Update, learning_rate: f64, factor: f64) -> Self {
        let (correction1, correction2) = bias_corrections(settings, update);
        let root2 = correction2.sqrt();
        Self {
            factor: factor as f32,
            beta1: settings.beta1 as f32,
            beta2: settings.beta2 as f32,
            step: (-learning_rate * root2 / correction1) as f32,
            epsilon: (settings.epsilon * root2) as f32,
            keep: (1. - learning_rate * settings.weight_decay) as f32,
        }
    }

    /// One element with its moments in f32, as in tensors below [`SMALL`].
    #[inline(always)]
    pub fn apply(&self, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        let g = g * self.factor;
        if !g.is_finite() {
            (*m, *v) = (0., 0.);
            return;
        }
        *m = *m * self.beta1 + (1. - self.beta1) * g;
        *v = *v * self.beta2 + (1. - self.beta2) * g * g;
        *p = (*p + self.step * (*m / (v.sqrt() + self.epsilon))) * self.keep;
    }
}

/// A block: at most [`BLOCK`] elements of a tensor.
#[derive(Debug)]
pub struct Block<'a> {
    pub p: &'a mut [f32],
    pub g: &'a [f32],
    pub first: Quantized<'a>,
    pub second: Quantized<'a>,
}

/// A moment of a block.
#[derive(Debug)]
pub struct Quantized<'a> {
    pub codes: &'a mut [u8],
    pub largest: &'a mut f32,
}

/// One update of a block.
pub fn update(block: Block, rates: &Rates, codes: &Codes) {
    let Block { p, g, first, second } = block;
    let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
    let (m, v) = (&mut m[..p.len()], &mut v[..p.len()]);
    for (i, p) in p.iter_mut().enumerate() {
        m[i] = codes.first.values[usize::from(first.codes[i])] * *first.largest;
        v[i] = codes.second.values[usize::from(second.codes[i])] * *second.largest;
        rates.apply(p, g[i], &mut m[i], &mut v[i]);
    }
    *first.largest = codes.first.quantize(m, first.codes);
    *second.largest = codes.second.quantize(v, second.codes);
    for (code, m) in first.codes.iter_mut().zip(m) {
        // Coding must not turn a small negative moment into none at all.
        if m.is_sign_negative() && codes.first.values[usize::from(*code)] == 0. {
            *code -= 1;
        }
    }
}

/// Evenly spaced from 0.1 to 1, point `i` of `count`, as `torch.linspace` rounds it: from the nearer end, in one rounding.
fn edge(i: usize, count: usize) -> f32 {
    let step = (1. - 0.1f32) / (count - 1) as f32;
    if i < count / 2 {
        step.mul_add(i as f32, 0.1)
    } else {
        (-step).mul_add((count - 1 - i) as f32, 1.)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_nearest_to_itself_and_its_surroundings() {
        for code in [Code::signed(), Code::unsigned()] {
            let values = code.values;
            assert!(values.windows(2).all(|pair| pair[0] < pair[1]));
            for (i, &value) in values.iter().enumerate() {
                assert_eq!(usize::from(code.nearest(value)), i);
                if let Some(&next) = values.get(i + 1) {
                    assert_eq!(usize::from(code.nearest(value + 0.49 * (next - value))), i);
                    assert_eq!(usize::from(code.nearest(value + 0.51 * (next - value))), i + 1);
                }
            }
            assert_eq!((code.nearest(-2.), code.nearest(2.)), (0, 255));
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_touches_its_own_element_alone() {
        let settings = OptimizerSettings {
            moments: super::super::super::session::Moments::EightBit,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            epsilon: 1e-8,
            low_memory: None,
        };
        let update_of = Update {
            learning_rates: Default::default(),
            max_grad_norm: 0.,
            loss_scale: 1.,
            number: 1,
        };
        let (rates, codes) = (Rates::new(&settings, &update_of, 0.1, 1.), Codes::default());
        let mut p = [1f32; 3];
        let (mut codes1, mut codes2, mut largest1, mut largest2) = ([255u8; 3], [255u8; 3], 0.5, 0.5);
        let block = Block {
            p: &mut p,
            g: &[f32::NAN, 1., f32::INFINITY],
            first: Quantized {
                codes: &mut codes1,
                largest: &mut largest1,
            },
            second: Quantized {
                codes: &mut codes2,
                largest: &mut largest2,
            },
        };
        update(block, &rates, &codes);
        assert_eq!((p[0], p[2]), (1., 1.));
        assert!(p[1] < 1. && p[1].is_finite());
        let first = |i: usize| codes.first.values()[usize::from(codes1[i])] * largest1;
        assert_eq!((first(0), first(2)), (0., 0.));
        assert!((first(1) - 0.55).abs() < 1e-6);
    }
}
