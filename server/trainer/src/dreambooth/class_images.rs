//! Pictures of the class, drawn by the base model, so that training does not make it forget the class.
//!
//! Each has a number and a seed of its own, so a run that was cut off goes on where it was, and ends with the same images.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use app::event::EventKind;
use app::recipe::Concept;

use super::Run;
use super::error::TrainError;
use super::learner::Learner;
use crate::dataset;
use crate::noise::{Noise, Purpose};
use crate::pipeline::{self, Picture, SampleRequest};
use crate::schedulers::SamplerKind;
use crate::store;

/// The tutorial's script draws them with its pipeline's default, whatever the samples' guidance is.
const GUIDANCE_SCALE: f64 = 7.5;
/// How often a black image is drawn again with another seed.
const ATTEMPTS: u64 = 4;
/// An image whose levels differ by less than this is black, or as good as.
const FLAT_LEVELS: u8 = 4;

/// Fills every concept's folder up to `num_class_images`. `Break` when asked to stop.
///
/// # Errors
/// When the model draws nothing but black, or a folder cannot be written.
pub fn fill(run: &Run, learner: &mut Learner, side_px: u32) -> Result<ControlFlow<()>, TrainError> {
    let Some(prior) = &run.recipe.prior else {
        return Ok(ControlFlow::Continue(()));
    };
    let total = prior.num_class_images * run.recipe.concepts.len() as u32;
    let mut done = 0;
    for (index, concept) in run.recipe.concepts.iter().enumerate() {
        let mut drawing = ConceptImages {
            run,
            learner,
            index,
            concept,
            side_px,
            total,
            done,
        };
        if drawing.fill(prior.num_class_images)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        done = drawing.done;
    }
    Ok(ControlFlow::Continue(()))
}

/// Numbers and paths of the images up to the last of the `missing`, those that are there already included: a picture's
/// last bits depend on the batch it is drawn in, so a run that was cut off draws in the same batches again.
fn numbers(folder: &Path, mut missing: usize, batch: usize) -> Vec<(u64, PathBuf)> {
    let mut numbers = Vec::new();
    for number in 0u64.. {
        let path = folder.join(format!("class-{number:04}.png"));
        let there = path.exists();
        if missing == 0 && (!there || numbers.len() % batch == 0) {
            break;
        }
        missing -= usize::from(!there);
        numbers.push((number, path));
    }
    numbers
}

struct ConceptImages<'a> {
    run: &'a Run,
    learner: &'a mut Learner,
    index: usize,
    concept: &'a Concept,
    side_px: u32,
    total: u32,
    /// Images on disk, of all concepts so far.
    done: u32,
}

impl ConceptImages<'_> {
    fn fill(&mut self, wanted: u32) -> Result<ControlFlow<()>, TrainError> {
        let (Some(below), Some(_)) = (&self.concept.class_data_dir, &self.concept.class_prompt) else {
            return Ok(ControlFlow::Continue(()));
        };
        let below = Path::new(below);
        let folder = self.run.data_folder.join(below);
        store::make_folder(&folder)?;
        let there = dataset::list(&folder)?.photos;
        let here = there.len().min(wanted as usize);
        for path in there.iter().take(here) {
            self.done += 1;
            self.tell(&below.join(path.file_name().unwrap_or_default()))?;
        }
        let batch = self.run.recipe.sample_batch_size as usize;
        for group in numbers(&folder, wanted as usize - here, batch).chunks(batch) {
            if group.iter().all(|(_, path)| path.exists()) {
                continue;
            }
            let drawn: Vec<u64> = group.iter().map(|(number, _)| *number).collect();
            let Some(pictures) = self.draw(&drawn)? else {
                return Ok(ControlFlow::Break(()));
            };
            for ((_, path), picture) in group.iter().zip(pictures).filter(|((_, path), _)| !path.exists()) {
                pipeline::save_png(&picture.rgb, path)?;
                self.done += 1;
                self.tell(&below.join(path.file_name().unwrap_or_default()))?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// One picture a number; black ones are drawn again.
    fn draw(&mut self, numbers: &[u64]) -> Result<Option<Vec<Picture>>, TrainError> {
        let prompt = self.concept.class_prompt.clone().unwrap_or_default();
        let request = SampleRequest {
            prompt: prompt.clone(),
            negative_prompt: String::new(),
            guidance_scale: GUIDANCE_SCALE,
            num_inference_steps: self.run.recipe.samples.save_infer_steps as usize,
            sampler: SamplerKind::Ddim,
            karras: false,
            width_px: self.side_px as usize,
            height_px: self.side_px as usize,
            clip_skip: 1,
        };
        let mut good: Vec<Option<Picture>> = numbers.iter().map(|_| None).collect();
        for attempt in 0..ATTEMPTS {
            let missing: Vec<usize> = (0..numbers.len()).filter(|i| good[*i].is_none()).collect();
            if missing.is_empty() {
                break;
            }
            let seeds: Vec<u64> = missing.iter().map(|i| self.seed(numbers[*i], attempt)).collect();
            let mut progress = |_done: usize, _of: usize| self.run.go_on();
            let Some(pictures) = self.learner.pipeline().draw(&request, &seeds, &mut progress)? else {
                return Ok(None);
            };
            for (i, picture) in missing.into_iter().zip(pictures) {
                if picture.finite && !is_flat(&picture) {
                    good[i] = Some(picture);
                }
            }
        }
        let all: Option<Vec<Picture>> = good.into_iter().collect();
        all.map(Some).ok_or(TrainError::BlackClassImages { prompt })
    }

    fn seed(&self, number: u64, attempt: u64) -> u64 {
        let place = ((self.index as u64) << 40) | (attempt << 32) | number;
        let drawn = Noise::new(self.run.recipe.seed).uniform(Purpose::Sampling, place, 1)[0];
        // torch's generator looks at 32 bits of a seed.
        (drawn * f64::from(u32::MAX)) as u64
    }

    fn tell(&self, file: &Path) -> Result<(), TrainError> {
        self.run.emit(EventKind::ClassImage {
            concept: self.index,
            done: self.done,
            total: self.total,
            file: file.to_string_lossy().into_owned(),
        })
    }
}

fn is_flat(picture: &Picture) -> bool {
    let levels = picture.rgb.as_raw();
    let (low, high) = levels
        .iter()
        .fold((u8::MAX, 0), |(low, high), v| (low.min(*v), high.max(*v)));
    high.saturating_sub(low) < FLAT_LEVELS
}
