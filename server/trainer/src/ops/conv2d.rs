//! 2D convolution with a square kernel, and room for padding that differs before and after the picture.
//!
//! `y[n, o, i, j] = b[o] + sum_{c, a, b} w[o, c, a, b] x[n, c, s i + a - before, s j + b - before]`

use candle_core::{Result, Tensor};

use super::node::{Output, attach, needs};

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

    fn output(self, input: usize) -> usize {
        (input + self.before + self.after - self.kernel) / self.stride + 1
    }
}

/// `x` `[rows, inputs, h, w]`, `weight` `[outputs, inputs, kernel, kernel]` to `[rows, outputs, h', w']`.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, shape: Conv2dShape) -> Result<Tensor> {
    composed(x, weight, bias, shape)
}

/// For devices without own kernels: candle's forward, and gradients made of forwards and matmuls.
fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, shape: Conv2dShape) -> Result<Tensor> {
    let y = pad(&x.detach(), shape)?.conv2d(&weight.detach(), 0, shape.stride, 1, 1)?;
    let (input, kernel) = (x.detach(), weight.detach());
    let [x_needs, weight_needs] = needs([x, weight]);
    let y = attach("conv2d", Output::Tensor(y), &[x, weight], move |grad| {
        let of_x = x_needs
            .then(|| data_gradient(grad, &kernel, input.dims4()?, shape))
            .transpose()?;
        let of_weight = weight_needs
            .then(|| weight_gradient(grad, &input, kernel.dims4()?, shape))
            .transpose()?;
        Ok(vec![of_x, of_weight])
    })?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

fn pad(x: &Tensor, shape: Conv2dShape) -> Result<Tensor> {
    let Conv2dShape { before, after, .. } = shape;
    x.pad_with_zeros(2, before, after)?
        .pad_with_zeros(3, before, after)?
        .contiguous()
}

/// The transposed convolution, as a convolution of the gradient (spread out by the stride) with the flipped kernel.
fn data_gradient(
    grad: &Tensor,
    weight: &Tensor,
    (_, _, height, width): (usize, usize, usize, usize),
    shape: Conv2dShape,
) -> Result<Tensor> {
    let Conv2dShape {
        kernel,
        stride,
        before,
        after,
    } = shape;
    let flipped = if kernel == 1 {
        weight.clone()
    } else {
        weight.flip(&[2, 3])?
    };
    let flipped = flipped.transpose(0, 1)?.contiguous()?;
    let spread = spread(grad, stride)?;
    let (_, _, spread_h, spread_w) = spread.dims4()?;
    // Padded so that the result covers the padded input, of which the middle is cut out.
    let (missing_h, missing_w) = (
        height + before + after + kernel - 1,
        width + before + after + kernel - 1,
    );
    let padded = spread
        .pad_with_zeros(2, kernel - 1, missing_h - spread_h - (kernel - 1))?
        .pad_with_zeros(3, kernel - 1, missing_w - spread_w - (kernel - 1))?
        .contiguous()?;
    padded
        .conv2d(&flipped, 0, 1, 1, 1)?
        .narrow(2, before, height)?
        .narrow(3, before, width)?
        .contiguous()
}

/// Zeros between the values, `stride - 1` of them.
fn spread(x: &Tensor, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let (rows, channels, height, width) = x.dims4()?;
    x.reshape((rows, channels, height, 1, width, 1))?
        .pad_with_zeros(3, 0, stride - 1)?
        .pad_with_zeros(5, 0, stride - 1)?
        .reshape((rows, channels, stride * height, stride * width))?
        .narrow(2, 0, stride * (height - 1) + 1)?
        .narrow(3, 0, stride * (width - 1) + 1)
}

/// One matmul a tap: gradient `[outputs, pixels]` times the shifted input `[pixels, inputs]`.
fn weight_gradient(
    grad: &Tensor,
    x: &Tensor,
    (outputs, inputs, kernel, _): (usize, usize, usize, usize),
    shape: Conv2dShape,
) -> Result<Tensor> {
    let (_, _, out_h, out_w) = grad.dims4()?;
    let padded = pad(x, shape)?;
    let grad = grad.transpose(0, 1)?.contiguous()?.reshape((outputs, ()))?;
    let mut taps = Vec::with_capacity(kernel * kernel);
    for (a, b) in (0..kernel * kernel).map(|tap| (tap / kernel, tap % kernel)) {
        let shifted = every(&every(&padded, 2, a, out_h, shape.stride)?, 3, b, out_w, shape.stride)?;
        let shifted = shifted.transpose(0, 1)?.contiguous()?.reshape((inputs, ()))?;
        taps.push(grad.matmul(&shifted.t()?)?);
    }
    Tensor::stack(&taps, 2)?.reshape((outputs, inputs, kernel, kernel))
}

/// `count` values of dimension `dim`, from `start`, `stride` apart.
fn every(x: &Tensor, dim: usize, start: usize, count: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return x.narrow(dim, start, count);
    }
    let indexes: Vec<u32> = (0..count).map(|i| (start + i * stride) as u32).collect();
    x.contiguous()?.index_select(&Tensor::new(indexes, x.device())?, dim)
}
