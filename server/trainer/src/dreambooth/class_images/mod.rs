//! Pictures of the class, drawn by the base model, so that training does not make it forget the class.
//!
//! Each has a number and a seed of its own, so a run that was cut off goes on where it was, and ends with the same
//! images. Those of jobs are kept in a cache too, where the next job of the same class and model finds them.

mod cache;
mod drawn_by;
mod folder;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use app::event::EventKind;
use app::recipe::{Concept, PriorPreservation};
use image::RgbImage;
use rayon::prelude::*;

use super::error::TrainError;
use super::learner::Learner;
use super::{Results, Run};
use crate::dataset::{self, Reading, Stray};
use crate::noise::{Noise, Purpose};
use crate::pipeline::{Picture, SampleRequest};
use crate::schedulers::SamplerKind;
use crate::store;

pub use cache::model_identity;

use cache::Cache;
use drawn_by::DrawnBy;
use folder::{ClassFolder, Naming};

/// How often an unusable image is drawn again with another seed.
const ATTEMPTS: u64 = 4;
/// An image whose levels differ by less than this is of a single colour, or as good as.
const FLAT_LEVELS: u8 = 4;

/// Fills every concept's folder up to `num_class_images`. `model` is `model_identity` of what draws. `Break` when asked
/// to stop.
///
/// # Errors
/// When the model draws nothing usable, or a folder cannot be written.
pub fn fill(run: &Run, learner: &mut Learner, model: &str, side_px: u32) -> Result<ControlFlow<()>, TrainError> {
    let Some(prior) = &run.recipe.prior else {
        return Ok(ControlFlow::Continue(()));
    };
    let concepts = &run.recipe.concepts;
    let total = prior.num_class_images * concepts.len() as u32;
    let mut done = 0;
    for (index, concept) in concepts.iter().enumerate() {
        let (Some(below), Some(prompt)) = (&concept.class_data_dir, &concept.class_prompt) else {
            continue;
        };
        // Two subjects of one class get different images.
        let is_twin = |other: &&Concept| other.class_prompt == concept.class_prompt;
        let mut drawing = ConceptImages {
            run,
            learner,
            index,
            twin: concepts[..index].iter().filter(is_twin).count() as u64,
            prompt,
            below: Path::new(below),
            side_px,
            total,
            done,
        };
        if drawing.fill(prior, model)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        done = drawing.done;
    }
    Ok(ControlFlow::Continue(()))
}

struct ConceptImages<'a> {
    run: &'a Run,
    learner: &'a mut Learner,
    /// Of the concept.
    index: usize,
    /// How many concepts before it have its class prompt.
    twin: u64,
    prompt: &'a str,
    /// Folder of the images as the recipe names it.
    below: &'a Path,
    side_px: u32,
    total: u32,
    /// Images on disk, of all concepts so far.
    done: u32,
}

impl ConceptImages<'_> {
    fn fill(&mut self, prior: &PriorPreservation, model: &str) -> Result<ControlFlow<()>, TrainError> {
        let wanted = prior.num_class_images as usize;
        let naming = match self.run.results {
            Results::SingleFiles => Naming::Numbered,
            Results::Tutorial(_) => Naming::Hashed,
        };
        let path = self.run.data_folder.join(self.below);
        store::make_folder(&path)?;
        let strict = self.run.recipe.strict_tutorial;
        let mut folder = ClassFolder::open(&path, naming, strict)?;
        for Stray { path, why } in folder.strays() {
            let message = format!("{} {why}; it is left out", path.display());
            self.run.warn("not_a_photo", message)?;
        }
        if !strict {
            self.look_through(&mut folder)?;
        }
        let request = self.request(prior.class_guidance_scale);
        let drawn_by = DrawnBy::of(model, &request);
        self.tell_other_images(&folder, &path, &drawn_by)?;
        let there: Vec<PathBuf> = folder.images().take(wanted).cloned().collect();
        for path in &there {
            self.told(path)?;
        }
        let cache = self.run.class_image_cache.as_deref();
        let cache = cache.map(|root| Cache::open(root, model, &request, self.run.recipe.seed, self.twin));
        let batch = self.run.recipe.sample_batch_size as usize;
        for group in folder.numbers(wanted, batch).chunks(batch) {
            for number in group
                .iter()
                .filter(|number| !folder.has(**number))
                .copied()
                .collect::<Vec<_>>()
            {
                if let Some(cached) = cache.as_ref().and_then(|cache| cache.find(number)) {
                    let path = folder.link(number, &cached)?;
                    self.told(&path)?;
                }
            }
            if group.iter().all(|number| folder.has(*number)) {
                continue;
            }
            // A picture's last bits depend on the batch it is drawn in, so a run that was cut off draws the same batch, and the last
            // ones are drawn in a full one, whose programs are made already.
            let rows = batch.min(wanted);
            let Some(pictures) = self.draw(&request, group, rows)? else {
                return Ok(ControlFlow::Break(()));
            };
            let new: Vec<(u64, Picture)> = (group.iter().copied().zip(pictures))
                .filter(|(number, _)| !folder.has(*number))
                .collect();
            let written = new
                .par_iter()
                .map(|(number, picture)| folder.write(*number, &picture.rgb, &drawn_by));
            let paths: Vec<PathBuf> = written.collect::<Result<_, _>>()?;
            for ((number, _), path) in new.iter().zip(paths) {
                folder.adopt(*number, path.clone());
                if let Some(cache) = &cache {
                    cache.keep(*number, &path)?;
                }
                self.told(&path)?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Images that teach nothing: our own are removed, to be drawn again, others are only told.
    fn look_through(&self, folder: &mut ClassFolder) -> Result<(), TrainError> {
        for (number, path) in folder.own() {
            let fault = match dataset::read_photo(&path, Reading::SCRIPT) {
                Ok(photo) => flat(&photo.rgb),
                Err(_damaged) => Some("is damaged"),
            };
            if let Some(fault) = fault {
                let message = format!("the class image {} {fault}; it is made again", path.display());
                self.run.warn("class_image_again", message)?;
                folder.remove(number)?;
            }
        }
        for path in folder.others() {
            if let Some(fault) = flat(&dataset::read_photo(path, Reading::of(&self.run.recipe))?.rgb) {
                let message = format!(
                    "the class image {} {fault}, which teaches the model nothing",
                    path.display()
                );
                self.run.warn("flat_class_image", message)?;
            }
        }
        Ok(())
    }

    /// Images that an earlier run drew otherwise than this one would: they count as the user's own, as in the script.
    fn tell_other_images(&self, folder: &ClassFolder, path: &Path, drawn_by: &DrawnBy) -> Result<(), TrainError> {
        let mut otherwise: BTreeMap<String, usize> = BTreeMap::new();
        for (_, image) in folder.own() {
            let unlike = DrawnBy::read(&image).map_or_else(String::new, |other| other.unlike(drawn_by));
            if !unlike.is_empty() {
                *otherwise.entry(unlike).or_default() += 1;
            }
        }
        for (unlike, count) in otherwise {
            let message = format!(
                "class images in {} that an earlier run drew {unlike}: {count}; they are used as they are, and another \
                 class_data_dir gets new ones",
                path.display()
            );
            self.run.warn("other_class_images", message)?;
        }
        Ok(())
    }

    fn request(&self, guidance_scale: f64) -> SampleRequest {
        SampleRequest {
            prompt: self.prompt.to_owned(),
            negative_prompt: String::new(),
            guidance_scale,
            num_inference_steps: self.run.recipe.samples.save_infer_steps as usize,
            sampler: SamplerKind::Ddim,
            karras: false,
            width_px: self.side_px as usize,
            height_px: self.side_px as usize,
            clip_skip: 1,
        }
    }

    /// One picture a number, drawn `rows` at a time with some that nobody wants where there are fewer. `None` when asked to stop.
    fn draw(
        &mut self,
        request: &SampleRequest,
        numbers: &[u64],
        rows: usize,
    ) -> Result<Option<Vec<Picture>>, TrainError> {
        let run = self.run;
        let draw = |wanted: &[(u64, u64)]| {
            let next = numbers.iter().max().map_or(0, |last| last + 1);
            let unwanted = (next..).map(|number| (number, 0));
            let seeds: Vec<u64> = (wanted.iter().copied().chain(unwanted))
                .take(rows.max(wanted.len()))
                .map(|(number, attempt)| self.seed(number, attempt))
                .collect();
            let mut progress = |_done: usize, _of: usize| run.go_on();
            Ok(self.learner.pipeline().draw(request, &seeds, &mut progress)?)
        };
        let tell = |number: u64, fault: &str| {
            let message = format!("class image {number} {fault}; it is drawn again with another seed");
            run.warn("class_image_again", message)
        };
        match draw_until_good(numbers, draw, tell)? {
            Drawn::Stopped => Ok(None),
            Drawn::All(pictures) => Ok(Some(pictures)),
            Drawn::Hopeless => Err(TrainError::BlackClassImages {
                prompt: self.prompt.to_owned(),
            }),
        }
    }

    fn seed(&self, number: u64, attempt: u64) -> u64 {
        let place = (self.twin << 40) | (attempt << 32) | number;
        let drawn = Noise::new(self.run.recipe.seed).uniform(Purpose::Sampling, place, 1)[0];
        // torch's generator looks at 32 bits of a seed.
        (drawn * f64::from(u32::MAX)) as u64
    }

    /// One more image is on disk.
    fn told(&mut self, path: &Path) -> Result<(), TrainError> {
        self.done += 1;
        let file = self.below.join(path.file_name().unwrap_or_default());
        self.run.emit(EventKind::ClassImage {
            concept: self.index,
            done: self.done,
            total: self.total,
            file: file.to_string_lossy().into_owned(),
        })
    }
}

enum Drawn {
    All(Vec<Picture>),
    Stopped,
    /// Some stayed unusable whatever their seed.
    Hopeless,
}

/// Draws (number, attempt) pairs until each number has a usable picture.
fn draw_until_good(
    numbers: &[u64],
    mut draw: impl FnMut(&[(u64, u64)]) -> Result<Option<Vec<Picture>>, TrainError>,
    tell: impl Fn(u64, &str) -> Result<(), TrainError>,
) -> Result<Drawn, TrainError> {
    let mut good: Vec<Option<Picture>> = numbers.iter().map(|_| None).collect();
    for attempt in 0..ATTEMPTS {
        let missing: Vec<usize> = (0..numbers.len()).filter(|i| good[*i].is_none()).collect();
        if missing.is_empty() {
            break;
        }
        let wanted: Vec<(u64, u64)> = missing.iter().map(|i| (numbers[*i], attempt)).collect();
        let Some(pictures) = draw(&wanted)? else {
            return Ok(Drawn::Stopped);
        };
        for (i, picture) in missing.into_iter().zip(pictures) {
            match fault(&picture) {
                None => good[i] = Some(picture),
                Some(_) if attempt + 1 == ATTEMPTS => {}
                Some(fault) => tell(numbers[i], fault)?,
            }
        }
    }
    let all: Option<Vec<Picture>> = good.into_iter().collect();
    Ok(all.map_or(Drawn::Hopeless, Drawn::All))
}

/// Why a picture is of no use.
fn fault(picture: &Picture) -> Option<&'static str> {
    if picture.finite {
        flat(&picture.rgb)
    } else {
        Some("is black because the model gave no numbers")
    }
}

fn flat(rgb: &RgbImage) -> Option<&'static str> {
    let range = |channel: usize| {
        let levels = rgb.pixels().map(|pixel| pixel.0[channel]);
        levels.fold((u8::MAX, 0), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ranges = [0, 1, 2].map(range);
    if ranges.iter().all(|(_, high)| *high < FLAT_LEVELS) {
        Some("is black")
    } else if ranges.iter().all(|(low, high)| high.saturating_sub(*low) < FLAT_LEVELS) {
        Some("is a single colour")
    } else {
        None
    }
}

#[cfg(test)]
mod testing {
    use super::{SampleRequest, SamplerKind};

    pub fn dog() -> SampleRequest {
        SampleRequest {
            prompt: "photo of a dog".into(),
            negative_prompt: String::new(),
            guidance_scale: 7.5,
            num_inference_steps: 20,
            sampler: SamplerKind::Ddim,
            karras: false,
            width_px: 64,
            height_px: 64,
            clip_skip: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn picture(kind: &str) -> Picture {
        let rgb = RgbImage::from_fn(4, 4, |x, _| match kind {
            "good" => image::Rgb([60 * x as u8, 0, 0]),
            "red" => image::Rgb([200, 0, x as u8 % 2]),
            _ => image::Rgb([0; 3]),
        });
        Picture {
            rgb,
            finite: kind != "nan",
        }
    }

    #[test]
    fn unusable_pictures_are_drawn_again_with_a_word_about_each() {
        let (calls, told) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let draw = |wanted: &[(u64, u64)]| {
            calls.borrow_mut().push(wanted.to_vec());
            let drawn = wanted.iter().map(|wanted| match wanted {
                (6, 0) => picture("nan"),
                (7, 0) => picture("red"),
                (7, 1) => picture("black"),
                _ => picture("good"),
            });
            Ok(Some(drawn.collect()))
        };
        let tell = |number: u64, fault: &str| {
            told.borrow_mut().push(format!("{number} {fault}"));
            Ok(())
        };
        let Ok(Drawn::All(pictures)) = draw_until_good(&[5, 6, 7], draw, tell) else {
            panic!("all are good in the end")
        };
        assert!(pictures.iter().all(|picture| fault(picture).is_none()));
        assert_eq!(
            *calls.borrow(),
            [vec![(5, 0), (6, 0), (7, 0)], vec![(6, 1), (7, 1)], vec![(7, 2)]]
        );
        let words = [
            "6 is black because the model gave no numbers",
            "7 is a single colour",
            "7 is black",
        ];
        assert_eq!(*told.borrow(), words);
    }

    #[test]
    fn a_model_that_draws_only_black_is_given_up() {
        let draw = |wanted: &[(u64, u64)]| Ok(Some(wanted.iter().map(|_| picture("black")).collect()));
        assert!(matches!(
            draw_until_good(&[0], draw, |_, _| Ok(())),
            Ok(Drawn::Hopeless)
        ));
    }
}
