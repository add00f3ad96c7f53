//! How like the subject its samples are, how far the class has drifted towards it, how diverse the class is still, and
//! (`overfit`) whether photos are learned by heart.
//!
//! The first three look through the untrained model's own eye: the features that its U-Net has at the deepest level for a picture
//! with a fixed noise at a fixed timestep (diffusion features: Tang et al. 2023, "Emergent Correspondence from Image
//! Diffusion"), averaged over the picture. What all pictures share is taken out by subtracting the mean over pictures
//! of the class; what is left is compared by its cosine. No other network is needed, and the meters read alike for
//! every base model.

use std::ops::ControlFlow;

use app::event::EventKind;
use app::recipe::Recipe;
use candle_core::Tensor;

use super::Run;
use super::error::TrainError;
use super::latents::{LatentCache, Pictures};
use super::learner::Learner;
use super::overfit::Heart;
use crate::dataset::{self, Reading};
use crate::noise::TorchGenerator;
use crate::pipeline::{Picture, SampleRequest};
use crate::schedulers::{NoiseSchedule, SamplerKind};

/// Late enough for form and early enough for detail; the paper's choice for Stable Diffusion.
const TIMESTEP: u32 = 261;
/// Pictures of the class in each reading. With four, drift of the same weights read 0.2 apart from one seed to another.
const CLASS_PICTURES: u64 = 8;
/// They are looked at by a network, not by a person.
const CLASS_STEPS: usize = 10;
/// Photos beyond these add nothing to their mean.
const MOST_PHOTOS: usize = 24;
/// Far from the seeds of samples, so that class pictures are not the samples' twins.
const SEED_OFFSET: u64 = 1 << 32;

type Feature = Vec<f32>;

/// How the untrained U-Net looks at latents.
struct Eye {
    schedule: NoiseSchedule,
    /// Of the empty prompt, by the untrained text encoder, `[1, tokens, width]`.
    context: Tensor,
    /// The same for every picture, `[1, c, h, w]`.
    noise: Tensor,
}

impl Eye {
    /// A feature for each row of `latents` `[rows, c, h, w]`.
    fn look(&self, learner: &mut Learner, latents: &Tensor) -> Result<Vec<Feature>, TrainError> {
        let mut features = Vec::new();
        for row in latents.chunk(latents.dim(0)?, 0)? {
            let noisy = self.schedule.add_noise(&row, &self.noise, &[TIMESTEP])?;
            let seen = learner.networks.look(&noisy, &[TIMESTEP as f32], &self.context)?;
            features.push(seen.flatten_all()?.to_vec1()?);
        }
        Ok(features)
    }
}

/// What the readings of a run are measured against.
pub(super) struct Meters {
    eye: Eye,
    side_px: u32,
    class_prompt: Option<String>,
    /// Mean over the photos, less `centre`.
    subject: Feature,
    /// Mean over the untrained model's pictures of the class.
    centre: Feature,
    /// Of the untrained model's pictures of the class.
    spread: f32,
    /// Where a photo is held out.
    heart: Option<Heart>,
}

impl Meters {
    /// Looks at the photos and at what the model draws of the class before it learns. `Break` when asked to stop.
    pub fn new(
        run: &Run,
        learner: &mut Learner,
        pictures: &Pictures,
        cache: &LatentCache,
        side_px: u32,
    ) -> Result<ControlFlow<(), Self>, TrainError> {
        let photos = cache.instance_latents(MOST_PHOTOS, learner)?;
        let (_, c, h, w) = photos.dims4()?;
        let ids = learner.tokenizer.encode("", true)?.ids;
        let eye = Eye {
            schedule: NoiseSchedule::new(&learner.base().scheduler_config)?,
            context: learner.networks.text(&ids, 1, 1)?,
            noise: TorchGenerator::new(0).randn((1, c, h, w))?,
        };
        let mut meters = Self {
            side_px,
            class_prompt: class_prompt(&run.recipe),
            subject: mean(&eye.look(learner, &photos)?),
            centre: Vec::new(),
            spread: 0.0,
            eye,
            heart: match &pictures.held_out {
                Some(held_out) => Some(Heart::new(&run.recipe, learner, held_out, side_px)?),
                None => None,
            },
        };
        match meters.draw_class(run, learner)? {
            ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
            // Without a class there is nothing to compare with: the bare cosine is then what there is.
            ControlFlow::Continue(None) => meters.centre = vec![0.0; meters.subject.len()],
            ControlFlow::Continue(Some(features)) => {
                meters.centre = mean(&features);
                meters.spread = spread(&features);
            }
        }
        meters.subject = less(&meters.subject, &meters.centre);
        Ok(ControlFlow::Continue(meters))
    }

    /// Reads the samples of `step` from disk, draws the class anew, and tells both.
    pub fn read(&self, run: &Run, learner: &mut Learner, step: u32) -> Result<ControlFlow<()>, TrainError> {
        let mut samples = Vec::new();
        for index in 0..run.recipe.samples.n_save_sample {
            let path = run.folder.join(format!("samples/{step}/{index}.png"));
            samples.push(dataset::read_photo(&path, Reading::SCRIPT)?.rgb);
        }
        let samples = self.features(learner, &samples)?;
        let ControlFlow::Continue(class) = self.draw_class(run, learner)? else {
            return Ok(ControlFlow::Break(()));
        };
        let overfit = match &self.heart {
            Some(heart) => Some(heart.read(learner)?),
            None => None,
        };
        run.emit(EventKind::Meters {
            step,
            likeness: self.likeness(&samples),
            drift: class.as_ref().map(|class| self.drift(class)),
            diversity: class.map(|class| share(spread(&class), self.spread)),
            overfit,
        })?;
        Ok(ControlFlow::Continue(()))
    }

    /// Cosine between samples and photos, each less what pictures of the class share.
    fn likeness(&self, samples: &[Feature]) -> f32 {
        let (toward, subject) = (less(&mean(samples), &self.centre), &self.subject);
        let norms = (dot(&toward, &toward) * dot(subject, subject)).sqrt();
        share(dot(&toward, subject), norms)
    }

    /// How far pictures of the class have moved from where they were, as a share of the way to the subject: a cosine
    /// would say 1 of the smallest step in that direction.
    fn drift(&self, class: &[Feature]) -> f32 {
        let moved = less(&mean(class), &self.centre);
        share(dot(&moved, &self.subject), dot(&self.subject, &self.subject))
    }

    fn features(&self, learner: &mut Learner, pictures: &[image::RgbImage]) -> Result<Vec<Feature>, TrainError> {
        let mut features = Vec::new();
        for picture in pictures {
            let pixels = dataset::to_tensor(picture)?.unsqueeze(0)?;
            let latents = learner.mean_latents(&pixels)?;
            features.extend(self.eye.look(learner, &latents)?);
        }
        Ok(features)
    }

    /// Features of the class as the model draws it now; none without a class prompt.
    fn draw_class(
        &self,
        run: &Run,
        learner: &mut Learner,
    ) -> Result<ControlFlow<(), Option<Vec<Feature>>>, TrainError> {
        let Some(prompt) = &self.class_prompt else {
            return Ok(ControlFlow::Continue(None));
        };
        let request = SampleRequest {
            prompt: prompt.clone(),
            negative_prompt: String::new(),
            guidance_scale: run.recipe.samples.save_guidance_scale,
            num_inference_steps: CLASS_STEPS,
            sampler: SamplerKind::Ddim,
            karras: false,
            width_px: self.side_px as usize,
            height_px: self.side_px as usize,
            clip_skip: 1,
        };
        let first = run.recipe.seed.wrapping_add(SEED_OFFSET);
        let seeds: Vec<u64> = (0..CLASS_PICTURES).map(|n| first.wrapping_add(n)).collect();
        let mut drawn = Vec::new();
        for group in seeds.chunks(run.recipe.sample_batch_size as usize) {
            let mut progress = |_done: usize, _of: usize| run.go_on();
            match learner.pipeline().draw(&request, group, &mut progress)? {
                Some(pictures) => drawn.extend(pictures),
                None => return Ok(ControlFlow::Break(())),
            }
        }
        let drawn: Vec<_> = drawn.into_iter().map(|picture: Picture| picture.rgb).collect();
        Ok(ControlFlow::Continue(Some(self.features(learner, &drawn)?)))
    }
}

fn class_prompt(recipe: &Recipe) -> Option<String> {
    recipe.concepts.first()?.class_prompt.clone()
}

fn mean(features: &[Feature]) -> Feature {
    let mut sum = vec![0.0; features.first().map_or(0, Vec::len)];
    for feature in features {
        for (sum, value) in sum.iter_mut().zip(feature) {
            *sum += value / features.len() as f32;
        }
    }
    sum
}

/// Root mean square distance of features from their mean.
fn spread(features: &[Feature]) -> f32 {
    let middle = mean(features);
    let squares = features.iter().map(|feature| {
        let off = less(feature, &middle);
        dot(&off, &off)
    });
    (squares.sum::<f32>() / features.len().max(1) as f32).sqrt()
}

fn less(a: &[f32], b: &[f32]) -> Feature {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// 0 of nothing.
fn share(part: f32, whole: f32) -> f32 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_shares() {
        assert_eq!(mean(&[vec![1.0, 2.0], vec![3.0, 4.0]]), [2.0, 3.0]);
        assert_eq!(spread(&[vec![0.0, 3.0], vec![8.0, 3.0]]), 4.0);
        assert_eq!(less(&[3.0, 1.0], &[1.0, 2.0]), [2.0, -1.0]);
        assert_eq!(share(1.0, 0.0), 0.0, "nothing to compare with");
    }
}
