//! 2D convolution with a square kernel, and room for padding that differs before and after the picture.
//!
//! `y[n, o, i, j] = b[o] + sum_{c, a, b} w[o, c, a, b] x[n, c, s i + a - before, s j + b - before]`
//!
//! On the CPU as a matrix product over the unrolled input ([`host`]); elsewhere candle's forward, and gradients made of
//! forwards and matrix products, never candle's own conv2d backward, which is naive ([`composed`]).

mod composed;
mod host;

use candle_core::{Result, Tensor};

use super::node::{Output, attach, on_host};
pub use host::{backward, forward};

/// Shape of a convolution, the same in height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    pub kernel: usize,
    pub stride: usize,
    /// Zeros above and left of the picture.
    pub before: usize,
    /// Zeros below and right of it.
    pub after: usize,
}

impl Conv2dShape {
    /// Keeps the picture's size.
    pub fn same(kernel: usize) -> Self {
        Self {
            kernel,
            stride: 1,
            before: kernel / 2,
            after: kernel / 2,
        }
    }

    /// Side of the output.
    fn output(self, input: usize) -> usize {
        (input + self.before + self.after - self.kernel) / self.stride + 1
    }

    fn check(self, x: &Tensor, weight: &Tensor) -> Result<()> {
        let (_, inputs, height, width) = x.dims4()?;
        let (_, weight_inputs, a, b) = weight.dims4()?;
        let covers = height.min(width) + self.before + self.after >= self.kernel && self.before < self.kernel;
        if inputs != weight_inputs || a != self.kernel || b != self.kernel || !covers {
            candle_core::bail!("conv2d: {:?} with a kernel of {:?}, {self:?}", x.dims(), weight.dims());
        }
        Ok(())
    }
}

/// `x` `[rows, inputs, h, w]`, `weight` `[outputs, inputs, kernel, kernel]` to `[rows, outputs, h', w']`.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, shape: Conv2dShape) -> Result<Tensor> {
    shape.check(x, weight)?;
    if !on_host(&[x, weight]) {
        return composed::conv2d(x, weight, bias, shape);
    }
    let (rows, _, height, width) = x.dims4()?;
    let size = (rows, weight.dim(0)?, shape.output(height), shape.output(width));
    let y = Output::host(forward(x, weight, bias, shape)?, size);
    let (input, kernel) = (x.detach(), weight.detach());
    let wanted = [x.track_op(), weight.track_op(), bias.is_some_and(Tensor::track_op)];
    let of = move |grad: &Tensor| backward(grad, &input, &kernel, shape, wanted);
    match bias {
        Some(bias) => attach("conv2d", y, &[x, weight, bias], of),
        None => attach("conv2d", y, &[x, weight], of),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::{
        super::testing::{check, input, noise},
        *,
    };

    fn reference(
        v: &[Vec<f64>],
        (inputs, h, w): (usize, usize, usize),
        outputs: usize,
        shape: Conv2dShape,
    ) -> Vec<f64> {
        let Conv2dShape {
            kernel, stride, before, ..
        } = shape;
        let (out_h, out_w) = (shape.output(h), shape.output(w));
        let rows = v[0].len() / (inputs * h * w);
        let mut y = Vec::new();
        for i in 0..rows * outputs * out_h * out_w {
            let (n, o) = (i / (outputs * out_h * out_w), i / (out_h * out_w) % outputs);
            let (oy, ox) = (i / out_w % out_h, i % out_w);
            let mut sum = v.get(2).map_or(0., |bias| bias[o]);
            for (c, a, b) in
                (0..inputs * kernel * kernel).map(|t| (t / kernel / kernel, t / kernel % kernel, t % kernel))
            {
                let (iy, ix) = (oy * stride + a, ox * stride + b);
                if (before..before + h).contains(&iy) && (before..before + w).contains(&ix) {
                    let x = v[0][((n * inputs + c) * h + iy - before) * w + ix - before];
                    sum += x * v[1][((o * inputs + c) * kernel + a) * kernel + b];
                }
            }
            y.push(sum);
        }
        y
    }

    fn check_shape(rows: usize, (inputs, h, w): (usize, usize, usize), outputs: usize, shape: Conv2dShape) {
        let k = shape.kernel;
        let parts = [
            input(&[rows, inputs, h, w], 1),
            input(&[outputs, inputs, k, k], 2),
            input(&[outputs], 3),
        ];
        let of = |v: &[Vec<f64>]| reference(v, (inputs, h, w), outputs, shape);
        let own = |t: &[Tensor]| conv2d(&t[0], &t[1], t.get(2), shape);
        let slow = |t: &[Tensor]| composed::conv2d(&t[0], &t[1], t.get(2), shape);
        check(&parts, of, own, slow);
        check(&parts[..2], of, own, slow);
    }

    #[test]
    fn three_by_three() {
        check_shape(2, (3, 5, 7), 4, Conv2dShape::same(3));
        check_shape(3, (2, 1, 1), 5, Conv2dShape::same(3));
        check_shape(1, (2, 9, 10), 3, Conv2dShape::same(3));
    }

    #[test]
    fn one_by_one() {
        check_shape(2, (5, 3, 4), 3, Conv2dShape::same(1));
        check_shape(2, (2, 9, 9), 3, Conv2dShape::same(1));
    }

    #[test]
    fn halving_with_even_and_with_lopsided_padding() {
        let halve = Conv2dShape {
            stride: 2,
            ..Conv2dShape::same(3)
        };
        check_shape(2, (3, 6, 4), 2, halve);
        check_shape(2, (2, 5, 7), 3, halve);
        let lopsided = Conv2dShape {
            before: 0,
            after: 1,
            ..halve
        };
        check_shape(2, (3, 6, 4), 2, lopsided);
        check_shape(1, (2, 5, 7), 3, lopsided);
    }

    /// Large enough for several bands, in rows of the batch and across them.
    #[test]
    fn many_bands_give_what_one_gives_on_any_number_of_threads() {
        let halve = Conv2dShape {
            stride: 2,
            ..Conv2dShape::same(3)
        };
        let cases = [
            ((3, 40, 31, 47), 20, Conv2dShape::same(3)),
            ((30, 500, 2, 3), 6, Conv2dShape::same(3)),
            ((2, 300, 40, 40), 7, Conv2dShape::same(1)),
            ((2, 70, 60, 55), 9, halve),
        ];
        for (size, outputs, shape) in cases {
            let (rows, inputs, height, width) = size;
            let var = |shape: &[usize], seed| {
                let values = noise(shape.iter().product(), seed);
                candle_core::Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
            };
            let x = var(&[rows, inputs, height, width], 1);
            let weight = var(&[outputs, inputs, shape.kernel, shape.kernel], 2);
            let bias = var(&[outputs], 3);
            let run = |op: fn(&Tensor, &Tensor, Option<&Tensor>, Conv2dShape) -> Result<Tensor>| {
                let y = op(&x, &weight, Some(&bias), shape).unwrap();
                let upstream = var(y.dims(), 4);
                let grads = (&y * upstream.as_tensor())
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .backward()
                    .unwrap();
                let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let of = |var: &Tensor| flat(grads.get(var).unwrap());
                [flat(&y), of(&x), of(&weight), of(&bias)]
            };
            let threads = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
            let own = threads(1).install(|| run(conv2d));
            assert_eq!(own, threads(3).install(|| run(conv2d)), "{shape:?}");
            for (own, slow) in own.iter().zip(&run(composed::conv2d)) {
                let most = slow.iter().fold(0f32, |most, value| most.max(value.abs()));
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * most;
                assert!(own.iter().zip(slow).all(close), "{size:?} {shape:?}");
            }
        }
    }
}
