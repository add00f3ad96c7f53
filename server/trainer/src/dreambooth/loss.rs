//! The DreamBooth loss (Ruiz et al. 2022): noise asked back from noisy latents of the subject, and of its class.

use candle_core::{DType, Tensor};

use crate::models::config::PredictionType;
use crate::models::unet::UNet2DConditionModel;
use crate::ops;
use crate::schedulers::{NoiseSchedule, SchedulerError};

/// What one step learns from. Rows are all instances, then, with prior preservation, as many class images.
#[derive(Debug)]
pub struct Batch {
    /// [rows, 4, h/8, w/8], times the VAE's scaling factor.
    pub latents: Tensor,
    /// Of the same shape, standard normal.
    pub noise: Tensor,
    /// One a row.
    pub timesteps: Vec<u32>,
    /// The prompts' token ids [rows, tokens].
    pub ids: Tensor,
    /// How many of the rows are instances.
    pub instance_rows: usize,
}

/// What the U-Net is asked for.
pub struct Objective<'a> {
    pub schedule: &'a NoiseSchedule,
    pub prediction: PredictionType,
    pub prior_loss_weight: f64,
}

/// Scalars in f32; `total` carries the gradient.
pub struct Losses {
    pub total: Tensor,
    pub instance: Tensor,
    pub prior: Option<Tensor>,
}

impl Objective<'_> {
    /// `mse(instances) + weight * mse(class images)`, each a mean over all elements of its rows.
    ///
    /// # Errors
    /// A batch whose parts do not fit each other or the model.
    pub fn loss(&self, unet: &UNet2DConditionModel, context: &Tensor, batch: &Batch) -> Result<Losses, SchedulerError> {
        let Batch {
            latents,
            noise,
            timesteps,
            ..
        } = batch;
        let noisy = self.schedule.add_noise(latents, noise, timesteps)?;
        let as_f32: Vec<f32> = timesteps.iter().map(|t| *t as f32).collect();
        let t = Tensor::from_vec(as_f32, timesteps.len(), latents.device())?;
        let predicted = unet.forward(&noisy, &t, context)?.to_dtype(DType::F32)?;
        let target = match self.prediction {
            PredictionType::Epsilon => noise.clone(),
            PredictionType::VPrediction => self.schedule.velocity(latents, noise, timesteps)?,
        };
        let mse =
            |start: usize, rows: usize| ops::mse(&predicted.narrow(0, start, rows)?, &target.narrow(0, start, rows)?);
        let rows = timesteps.len();
        let instances = batch.instance_rows;
        let instance = mse(0, instances)?;
        if rows == instances {
            return Ok(Losses {
                total: instance.clone(),
                instance,
                prior: None,
            });
        }
        let prior = mse(instances, rows - instances)?;
        Ok(Losses {
            total: (&instance + (&prior * self.prior_loss_weight)?)?,
            instance,
            prior: Some(prior),
        })
    }
}
