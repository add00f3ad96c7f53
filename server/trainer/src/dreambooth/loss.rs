//! The DreamBooth loss (Ruiz et al. 2022): noise asked back from noisy latents of the subject, and of its class.

use candle_core::{DType, Device, Tensor};

use super::batch::{Batch, Losses};
use crate::models::unet::UNet2DConditionModel;
use crate::ops;

/// The loss of a batch, which carries the gradient, and what it consists of. `context` is the text encoder's states
/// `[rows, tokens, width]`.
///
/// # Errors
/// A batch whose parts do not fit each other or the model.
pub fn loss(unet: &UNet2DConditionModel, context: &Tensor, batch: &Batch) -> candle_core::Result<(Tensor, Losses)> {
    let device = context.device();
    let [channels, height, width] = batch.dims;
    let on_device = |values: &[f32]| Tensor::from_slice(values, (batch.rows(), channels, height, width), device);
    let timesteps: Vec<f32> = batch.timesteps.iter().map(|t| *t as f32).collect();
    let timesteps = Tensor::from_vec(timesteps, batch.rows(), device)?;
    let predicted = unet
        .forward(&on_device(&batch.noisy)?, &timesteps, context)?
        .to_dtype(DType::F32)?;
    let target = on_device(&batch.target)?;
    let rows: candle_core::Result<Vec<Tensor>> = (0..batch.rows())
        .map(|row| ops::mse(&predicted.narrow(0, row, 1)?, &target.narrow(0, row, 1)?))
        .collect();
    let mse = Tensor::stack(&rows?, 0)?;
    let weights = Tensor::from_vec(batch.weights(), batch.rows(), device)?;
    let total = (&mse * weights)?.sum_all()?;
    Ok((total, batch.losses(&mse.to_vec1()?)))
}

/// The prompts' ids `[rows, tokens]`.
///
/// # Errors
/// When the device has no room.
pub fn ids(batch: &Batch, device: &Device) -> candle_core::Result<Tensor> {
    Tensor::from_slice(&batch.ids, (batch.rows(), batch.tokens()), device)
}
