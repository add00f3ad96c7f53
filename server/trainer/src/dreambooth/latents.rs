//! Photos and class images as the VAE's distributions of latents, encoded once, drawn from anew in every step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use app::recipe::Recipe;
use candle_core::{DType, Device, IndexOp, Tensor};

use super::batch::Draw;
use super::error::TrainError;
use super::learner::Learner;
use crate::dataset::{self, DatasetError, Frame, Framing};
use crate::noise::{Noise, Purpose};
use crate::tokenizer::TokenIds;

/// Images encoded in one go.
const ENCODE_ROWS: usize = 4;

/// A photo with the prompt it is trained on.
#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    prompt: String,
}

/// What there is to learn from, before it is encoded.
pub struct Pictures {
    instances: Vec<Source>,
    /// Empty without prior preservation.
    classes: Vec<Source>,
    /// Files that were passed over, to be told.
    pub strays: Vec<PathBuf>,
}

impl Pictures {
    /// Finds the photos of each concept and, with prior preservation, its first `num_class_images` class images.
    ///
    /// # Errors
    /// When a folder has no photos or cannot be read.
    pub fn find(recipe: &Recipe, base_folder: &Path) -> Result<Self, TrainError> {
        let mut pictures = Self {
            instances: Vec::new(),
            classes: Vec::new(),
            strays: Vec::new(),
        };
        for concept in &recipe.concepts {
            let folder = base_folder.join(&concept.instance_data_dir);
            let listing = dataset::list(&folder)?;
            if listing.photos.is_empty() {
                return Err(DatasetError::Empty { folder }.into());
            }
            for path in listing.photos {
                let prompt = match recipe.read_prompts_from_txts {
                    true => dataset::read_caption(&path)?,
                    false => concept.instance_prompt.clone(),
                };
                pictures.instances.push(Source { path, prompt });
            }
            pictures.strays.extend(listing.strays);
            if let (Some(prior), Some(folder), Some(prompt)) =
                (&recipe.prior, &concept.class_data_dir, &concept.class_prompt)
            {
                let listing = dataset::list(&base_folder.join(folder))?;
                let wanted = listing.photos.into_iter().take(prior.num_class_images as usize);
                pictures.classes.extend(wanted.map(|path| Source {
                    path,
                    prompt: prompt.clone(),
                }));
                pictures.strays.extend(listing.strays);
            }
        }
        Ok(pictures)
    }

    pub fn photos(&self) -> usize {
        self.instances.len()
    }

    pub fn class_images(&self) -> usize {
        self.classes.len()
    }
}

/// An encoded, framed picture: mean and standard deviation of its latents, `[c, h/8, w/8]` each, on the host; and which
/// prompt goes with it.
struct Entry {
    mean: Vec<f32>,
    std: Vec<f32>,
    tokens: usize,
}

/// The data set as training sees it.
pub struct LatentCache {
    entries: Vec<Entry>,
    /// Instance entry and class entry of each item.
    items: Vec<(usize, Option<usize>)>,
    /// Of each prompt.
    tokens: Vec<TokenIds>,
    /// Channels, height and width of an entry.
    dims: [usize; 3],
    batch_size: usize,
    pad_tokens: bool,
    draws_offsets: bool,
    scaling_factor: f64,
    timesteps: u32,
    noise: Noise,
}

/// What was told or noticed while encoding.
#[derive(Default)]
pub struct Noticed {
    /// Photos whose transparency was dropped.
    pub dropped_alpha: Vec<PathBuf>,
    /// Words of a prompt that found no room.
    pub cut_prompts: Vec<String>,
}

impl LatentCache {
    /// Encodes every frame of every picture. Items are numbered as in the tutorial: item `i` pairs instance
    /// `i % instances` with class image `i % class images`, each with a crop and flip of its own.
    ///
    /// # Errors
    /// A photo that cannot be read, named.
    pub fn encode(
        pictures: &Pictures,
        recipe: &Recipe,
        learner: &Learner,
        resolution_px: u32,
    ) -> Result<(Self, Noticed), TrainError> {
        let mut noticed = Noticed::default();
        let framing = Framing {
            resolution_px,
            center_crop: recipe.center_crop,
            hflip: recipe.hflip,
        };
        let noise = Noise::new(recipe.seed);
        let length = pictures.instances.len().max(pictures.classes.len());
        let mut tokens = Tokens::default();
        let mut encoder = Encoder {
            learner,
            resolution_px,
            entries: Vec::new(),
            dims: [0; 3],
        };
        let mut side = |sources: &[Source], parity: u64, noticed: &mut Noticed| -> Result<Vec<usize>, TrainError> {
            let mut of_item = vec![0; if sources.is_empty() { 0 } else { length }];
            for (index, source) in sources.iter().enumerate() {
                let photo = dataset::read_photo(&source.path)?;
                if photo.dropped_alpha {
                    noticed.dropped_alpha.push(source.path.clone());
                }
                let prompt = tokens.of(&source.prompt, learner, noticed)?;
                // Equal frames share an entry: a square photo of the right size has but one.
                let mut frames: BTreeMap<Frame, Vec<usize>> = BTreeMap::new();
                for item in (index..length).step_by(sources.len()) {
                    let frame = framing.choose(photo.rgb.dimensions(), &noise, 2 * item as u64 + parity);
                    frames.entry(frame).or_default().push(item);
                }
                let all: Vec<Frame> = frames.keys().copied().collect();
                let first = encoder.encode(&photo.rgb, &all, prompt)?;
                for (offset, items) in frames.into_values().enumerate() {
                    for item in items {
                        of_item[item] = first + offset;
                    }
                }
            }
            Ok(of_item)
        };
        let instances = side(&pictures.instances, 0, &mut noticed)?;
        let classes = side(&pictures.classes, 1, &mut noticed)?;
        let items = (0..length).map(|i| (instances[i], classes.get(i).copied())).collect();
        let cache = Self {
            dims: encoder.dims,
            entries: encoder.entries,
            items,
            tokens: tokens.ids,
            batch_size: recipe.train_batch_size as usize,
            pad_tokens: recipe.pad_tokens,
            draws_offsets: recipe.offset_noise > 0.0,
            scaling_factor: learner.vae.config().scaling_factor,
            timesteps: learner.base().scheduler_config.num_train_timesteps as u32,
            noise,
        };
        Ok((cache, noticed))
    }

    /// Mean latents of at most `most` photos, `[photos, c, h/8, w/8]`, scaled.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn instance_latents(&self, most: usize, device: &Device) -> Result<Tensor, TrainError> {
        let mut entries: Vec<usize> = self.items.iter().map(|(instance, _)| *instance).collect();
        entries.sort_unstable();
        entries.dedup();
        entries.truncate(most);
        let means: Vec<f32> = entries
            .iter()
            .flat_map(|entry| &self.entries[*entry].mean)
            .copied()
            .collect();
        let [c, h, w] = self.dims;
        Ok((Tensor::from_vec(means, (entries.len(), c, h, w), device)? * self.scaling_factor)?)
    }

    /// What chance gives micro-batch `number`, counted from 0: a function of seed and number alone.
    pub fn draw(&self, number: u64) -> Draw {
        let per_epoch = self.items.len().div_ceil(self.batch_size) as u64;
        let (epoch, place) = (number / per_epoch, (number % per_epoch) as usize * self.batch_size);
        let order = self.noise.permutation(Purpose::Shuffle, epoch, self.items.len());
        let chosen = &order[place..(place + self.batch_size).min(order.len())];
        let instances = chosen.iter().map(|item| self.items[*item].0);
        let classes = chosen.iter().filter_map(|item| self.items[*item].1);
        let rows: Vec<&Entry> = instances.chain(classes).map(|entry| &self.entries[entry]).collect();

        let count = rows.len() * self.dims.iter().product::<usize>();
        let moments = rows.iter().flat_map(|entry| entry.mean.iter().zip(&entry.std));
        let eps = self.noise.normals(Purpose::Latents, number, count);
        let scale = self.scaling_factor as f32;
        let latents = moments
            .zip(eps)
            .map(|((mean, std), eps)| (mean + std * eps) * scale)
            .collect();

        let tokens: Vec<&TokenIds> = rows.iter().map(|e| &self.tokens[e.tokens]).collect();
        let longest = tokens
            .iter()
            .map(|t| if self.pad_tokens { t.ids.len() } else { t.length })
            .max();
        let longest = longest.unwrap_or(0);
        let offsets = match self.draws_offsets {
            true => rows.len() * self.dims[0],
            false => 0,
        };
        Draw {
            dims: self.dims,
            instance_rows: chosen.len(),
            latents,
            noise: self.noise.normals(Purpose::Noise, number, count),
            offsets: self.noise.normals(Purpose::OffsetNoise, number, offsets),
            timesteps: self.noise.timesteps(number, rows.len(), self.timesteps),
            ids: tokens.iter().flat_map(|t| t.ids[..longest].iter().copied()).collect(),
        }
    }
}

struct Encoder<'a> {
    learner: &'a Learner,
    resolution_px: u32,
    entries: Vec<Entry>,
    /// Of every entry alike.
    dims: [usize; 3],
}

impl Encoder<'_> {
    /// Appends an entry a frame; the index of the first.
    fn encode(&mut self, rgb: &image::RgbImage, frames: &[Frame], tokens: usize) -> Result<usize, TrainError> {
        let first = self.entries.len();
        for some in frames.chunks(ENCODE_ROWS) {
            let images: Result<Vec<Tensor>, _> = some
                .iter()
                .map(|frame| dataset::to_tensor(&dataset::cut(rgb, self.resolution_px, *frame), self.learner.device()))
                .collect();
            let moments = self.learner.vae.encode(&Tensor::stack(&images?, 0)?)?;
            let std = moments.std()?;
            for row in 0..some.len() {
                let own = |t: &Tensor| t.i(row)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
                let (_, c, h, w) = moments.mean.dims4()?;
                self.dims = [c, h, w];
                self.entries.push(Entry {
                    mean: own(&moments.mean)?,
                    std: own(&std)?,
                    tokens,
                });
            }
        }
        Ok(first)
    }
}

/// Each prompt's ids once.
#[derive(Default)]
struct Tokens {
    ids: Vec<TokenIds>,
    known: BTreeMap<String, usize>,
}

impl Tokens {
    fn of(&mut self, prompt: &str, learner: &Learner, noticed: &mut Noticed) -> Result<usize, TrainError> {
        if let Some(index) = self.known.get(prompt) {
            return Ok(*index);
        }
        let ids = learner.tokenizer.encode(prompt, true)?;
        noticed.cut_prompts.extend(ids.cut.clone());
        self.ids.push(ids);
        self.known.insert(prompt.to_owned(), self.ids.len() - 1);
        Ok(self.ids.len() - 1)
    }
}
