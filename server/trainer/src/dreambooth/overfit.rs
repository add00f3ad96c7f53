//! Whether the model learns its photos by heart: its loss on a photo that it is not trained on, beside that on photos that
//! it is, with the same noise at the same timesteps in every round.

use app::event::Overfit;
use app::recipe::Recipe;
use candle_core::Tensor;

use super::error::TrainError;
use super::latents::{HeldOut, Source};
use super::learner::Learner;
use crate::dataset::{self, Framing, Reading};
use crate::models::config::PredictionType;
use crate::noise::{Noise, TorchGenerator};
use crate::schedulers::NoiseSchedule;

/// Middles of as many equal parts of all timesteps: early ones tell detail, late ones form.
const TIMESTEPS: usize = 8;
/// Predicted at once at most; and never more than pictures are drawn at once, so that there is room for them.
const MOST_ROWS: usize = 4;
/// Photos that are trained on and looked at; more make a round longer and say the same.
const TRAINING_PHOTOS: usize = 4;

/// Both sides of the comparison, and where they began.
pub(super) struct Heart {
    pad_tokens: bool,
    /// Predicted at once.
    rows: usize,
    timesteps: Vec<u32>,
    held_out: Question,
    training: Vec<Question>,
    /// Before training.
    before: Overfit,
}

/// A photo with noise in it, at each timestep.
struct Question {
    prompt: String,
    /// `[timesteps, c, h, w]`, and so `target`.
    noisy: Tensor,
    target: Tensor,
}

impl Heart {
    /// `learner` has learned nothing yet.
    pub fn new(recipe: &Recipe, learner: &mut Learner, held_out: &HeldOut, side_px: u32) -> Result<Self, TrainError> {
        let config = learner.base().scheduler_config.clone();
        let (last, parts) = (config.num_train_timesteps, 2 * TIMESTEPS);
        let timesteps: Vec<u32> = (0..TIMESTEPS).map(|at| ((2 * at + 1) * last / parts) as u32).collect();
        let schedule = NoiseSchedule::new(&config)?;
        let mut ask = |photo: &Source| -> Result<Question, TrainError> {
            let latents = middle_of(recipe, learner, photo, side_px)?;
            let latents = Tensor::cat(&vec![latents; TIMESTEPS], 0)?;
            let noise = TorchGenerator::new(0).randn(latents.dims())?;
            Ok(Question {
                prompt: photo.prompt.clone(),
                noisy: schedule.add_noise(&latents, &noise, &timesteps)?,
                target: match config.prediction_type {
                    PredictionType::Epsilon => noise,
                    PredictionType::VPrediction => schedule.velocity(&latents, &noise, &timesteps)?,
                },
            })
        };
        let training = held_out.others.iter().take(TRAINING_PHOTOS).map(&mut ask);
        let mut heart = Self {
            pad_tokens: recipe.pad_tokens,
            rows: (recipe.sample_batch_size as usize).clamp(1, MOST_ROWS),
            training: training.collect::<Result<_, _>>()?,
            held_out: ask(&held_out.photo)?,
            timesteps,
            before: Overfit {
                held_out_loss: 1.0,
                training_loss: 1.0,
            },
        };
        heart.before = heart.read(learner)?;
        Ok(heart)
    }

    /// As the model is now.
    pub fn read(&self, learner: &mut Learner) -> Result<Overfit, TrainError> {
        let mut training = 0.0;
        for question in &self.training {
            training += self.loss(learner, question)? / self.training.len() as f32;
        }
        Ok(Overfit {
            held_out_loss: self.loss(learner, &self.held_out)? / self.before.held_out_loss,
            training_loss: training / self.before.training_loss,
        })
    }

    /// Mean squared error over the timesteps.
    fn loss(&self, learner: &mut Learner, question: &Question) -> Result<f32, TrainError> {
        let ids = learner.tokenizer.encode(&question.prompt, true)?;
        let length = if self.pad_tokens { ids.ids.len() } else { ids.length };
        let context = learner.networks.text(&ids.ids[..length], 1, 1)?;
        let mut sum = 0.0;
        for first in (0..TIMESTEPS).step_by(self.rows) {
            let rows = self.rows.min(TIMESTEPS - first);
            let timesteps: Vec<f32> = self.timesteps[first..first + rows].iter().map(|t| *t as f32).collect();
            let noisy = question.noisy.narrow(0, first, rows)?;
            let context = Tensor::cat(&vec![context.clone(); rows], 0)?;
            let off =
                (learner.networks.predict(&noisy, &timesteps, &context)? - question.target.narrow(0, first, rows)?)?;
            sum += off.sqr()?.mean_all()?.to_scalar::<f32>()? * rows as f32;
        }
        Ok(sum / TIMESTEPS as f32)
    }
}

/// Mean latents of the middle of a photo: chance must not make one of two sides easier.
fn middle_of(recipe: &Recipe, learner: &mut Learner, photo: &Source, side_px: u32) -> Result<Tensor, TrainError> {
    let rgb = dataset::read_photo(&photo.path, Reading::of(recipe))?.rgb;
    let framing = Framing {
        resolution_px: side_px,
        center_crop: true,
        hflip: false,
    };
    let frame = framing.choose(rgb.dimensions(), &Noise::new(recipe.seed), 0);
    let pixels = dataset::to_tensor(&dataset::cut(&rgb, side_px, frame))?;
    learner.mean_latents(&pixels.unsqueeze(0)?)
}
