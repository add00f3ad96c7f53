//! For devices and types without own kernels.

use candle_core::{Result, Tensor};

use super::{
    super::node::{Output, attach, needs},
    Conv2dShape,
};

pub(super) fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, shape: Conv2dShape) -> Result<Tensor> {
    let y = pad(&x.detach(), shape)?.conv2d(&weight.detach(), 0, shape.stride, 1, 1)?;
    let (input, kernel) = (x.detach(), weight.detach());
    let [of_x, of_weight] = needs([x, weight]);
    let y = attach("conv2d", Output::Tensor(y), &[x, weight], move |grad| {
        let of_x = of_x
            .then(|| data_gradient(grad, &kernel, input.dims4()?, shape))
            .transpose()?;
        let of_weight = of_weight
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
    let (padded_h, padded_w) = (
        height + before + after + kernel - 1,
        width + before + after + kernel - 1,
    );
    let padded = spread
        .pad_with_zeros(2, kernel - 1, padded_h - spread_h - (kernel - 1))?
        .pad_with_zeros(3, kernel - 1, padded_w - spread_w - (kernel - 1))?
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
