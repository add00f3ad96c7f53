//! Photos and class images as the VAE's distributions of latents, encoded once, drawn from anew in every step; or, with
//! `not_cache_latents`, encoded anew for every step too.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use app::recipe::Recipe;
use candle_core::{Device, IndexOp, Tensor};

use super::batch::Draw;
use super::error::TrainError;
use super::learner::Learner;
use crate::dataset::{self, DatasetError, Frame, Framing, Reading};
use crate::engine::nets::networks::values;
use crate::engine::nets::programs::Part;
use crate::noise::{Noise, Purpose};
use crate::pipeline::LATENT_PX;
use crate::tokenizer::{TokenIds, Tokenizer};

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
}

impl Pictures {
    /// Finds the photos of each concept and, with prior preservation, its first `num_class_images` class images. As in
    /// the tutorial's script, the photos of all concepts are shuffled and class images stay in their order.
    ///
    /// # Errors
    /// When a folder has no photos or cannot be read.
    pub fn find(recipe: &Recipe, base_folder: &Path) -> Result<Self, TrainError> {
        let mut pictures = Self {
            instances: Vec::new(),
            classes: Vec::new(),
        };
        for concept in &recipe.concepts {
            let folder = base_folder.join(&concept.instance_data_dir);
            let listing = dataset::list(&folder)?;
            if listing.photos.is_empty() {
                return Err(DatasetError::Empty { folder }.into());
            }
            for path in listing.photos {
                let prompt = match recipe.read_prompts_from_txts {
                    true => dataset::read_caption(&path, recipe.strict_tutorial)?,
                    false => concept.instance_prompt.clone(),
                };
                pictures.instances.push(Source { path, prompt });
            }
            if let (Some(prior), Some(folder), Some(prompt)) =
                (&recipe.prior, &concept.class_data_dir, &concept.class_prompt)
            {
                let folder = base_folder.join(folder);
                let found = match recipe.strict_tutorial {
                    true => dataset::entries(&folder)?,
                    false => dataset::list(&folder)?.photos,
                };
                let wanted = found.into_iter().take(prior.num_class_images as usize);
                pictures.classes.extend(wanted.map(|path| Source {
                    path,
                    prompt: prompt.clone(),
                }));
            }
        }
        let order = Noise::new(recipe.seed).permutation(Purpose::Pairing, 0, pictures.instances.len());
        pictures.instances = order.into_iter().map(|i| pictures.instances[i].clone()).collect();
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
#[derive(Clone)]
struct Entry {
    mean: Vec<f32>,
    std: Vec<f32>,
    tokens: usize,
}

/// The data set as training sees it.
pub struct LatentCache {
    entries: Vec<Entry>,
    /// Instance entry and class entry of each item; with `live` their sources.
    items: Vec<(usize, Option<usize>)>,
    /// Encodes anew for every step; there are no entries then.
    live: Option<Live>,
    /// Batches are put together once and stay so, as in the tutorial's script when it caches.
    frozen_batches: bool,
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
        learner: &mut Learner,
        resolution_px: u32,
    ) -> Result<(Self, Noticed), TrainError> {
        let reading = Reading::of(recipe);
        let mut noticed = Noticed::default();
        let framing = Framing {
            resolution_px,
            center_crop: recipe.center_crop,
            hflip: recipe.hflip,
        };
        let noise = Noise::new(recipe.seed);
        let length = pictures.instances.len().max(pictures.classes.len());
        let mut tokens = Tokens::default();
        let dims = latent_dims(learner, resolution_px)?;
        let mut encoder = Encoder {
            learner,
            resolution_px,
            entries: Vec::new(),
        };
        let mut live = recipe.not_cache_latents.then(|| Live {
            framing,
            reading,
            noise,
            sources: Vec::new(),
        });
        let mut side = |sources: &[Source], parity: u64, noticed: &mut Noticed| -> Result<Vec<usize>, TrainError> {
            if let Some(live) = &mut live {
                let first = live.sources.len();
                for source in sources {
                    let prompt = tokens.of(&source.prompt, &encoder.learner.tokenizer, noticed)?;
                    live.sources.push((source.path.clone(), prompt));
                }
                return Ok((first..live.sources.len()).cycle().take(length).collect());
            }
            let mut of_item = vec![0; if sources.is_empty() { 0 } else { length }];
            for (index, source) in sources.iter().enumerate() {
                let photo = dataset::read_photo(&source.path, reading)?;
                let prompt = tokens.of(&source.prompt, &encoder.learner.tokenizer, noticed)?;
                // Equal frames share an entry: a square photo of the right size has but one.
                let mut frames: BTreeMap<Frame, Vec<usize>> = BTreeMap::new();
                for item in (index..length).step_by(sources.len()) {
                    let frame = framing.choose(photo.rgb.dimensions(), &noise, showing(item as u64, parity));
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
            dims,
            scaling_factor: encoder.learner.latents_scale,
            timesteps: encoder.learner.base().scheduler_config.num_train_timesteps as u32,
            entries: encoder.entries,
            items,
            live,
            frozen_batches: recipe.strict_tutorial && !recipe.not_cache_latents,
            tokens: tokens.ids,
            batch_size: recipe.train_batch_size as usize,
            pad_tokens: recipe.pad_tokens,
            draws_offsets: recipe.offset_noise > 0.0,
            noise,
        };
        Ok((cache, noticed))
    }

    /// Mean latents of at most `most` photos, `[photos, c, h/8, w/8]`, scaled.
    ///
    /// # Errors
    /// A photo that cannot be read any more, or no room on the device.
    pub fn instance_latents(&self, most: usize, learner: &mut Learner) -> Result<Tensor, TrainError> {
        let mut entries: Vec<usize> = self.items.iter().map(|(instance, _)| *instance).collect();
        entries.sort_unstable();
        entries.dedup();
        entries.truncate(most);
        let mut means: Vec<f32> = Vec::new();
        for entry in &entries {
            means.extend(&self.entry(*entry, showing(*entry as u64, 0), learner)?.mean);
        }
        let [c, h, w] = self.dims;
        Ok((Tensor::from_vec(means, (entries.len(), c, h, w), &Device::Cpu)? * self.scaling_factor)?)
    }

    /// An entry, encoded now when it is not kept.
    fn entry(&self, index: usize, showing: u64, learner: &mut Learner) -> Result<Cow<'_, Entry>, TrainError> {
        match &self.live {
            Some(live) => Ok(Cow::Owned(live.encode(index, showing, learner)?)),
            None => Ok(Cow::Borrowed(&self.entries[index])),
        }
    }

    /// The items of a micro-batch, counted from 0, and the epoch it is in.
    fn chosen(&self, number: u64) -> (u64, Vec<usize>) {
        let (count, size) = (self.items.len(), self.batch_size);
        let per_epoch = count.div_ceil(size) as u64;
        let (epoch, mut batch) = (number / per_epoch, (number % per_epoch) as usize);
        let order = if self.frozen_batches {
            batch = self.noise.permutation(Purpose::Shuffle, epoch + 1, per_epoch as usize)[batch];
            self.noise.permutation(Purpose::Shuffle, 0, count)
        } else {
            self.noise.permutation(Purpose::Shuffle, epoch, count)
        };
        let end = ((batch + 1) * size).min(count);
        (epoch, order[batch * size..end].to_vec())
    }

    /// Entries of a micro-batch: its instances, then its class images. Also how many are instances.
    fn rows(&self, number: u64, learner: &mut Learner) -> Result<(usize, Vec<Cow<'_, Entry>>), TrainError> {
        let (epoch, chosen) = self.chosen(number);
        let shown = |item: usize, parity| showing(epoch * self.items.len() as u64 + item as u64, parity);
        let mut rows = Vec::new();
        for item in &chosen {
            rows.push(self.entry(self.items[*item].0, shown(*item, 0), learner)?);
        }
        for item in &chosen {
            if let Some(class) = self.items[*item].1 {
                rows.push(self.entry(class, shown(*item, 1), learner)?);
            }
        }
        Ok((chosen.len(), rows))
    }

    /// What chance gives micro-batch `number`, counted from 0: a function of seed and number alone.
    ///
    /// # Errors
    /// When a photo is encoded anew and cannot be read any more.
    pub fn draw(&self, number: u64, learner: &mut Learner) -> Result<Draw, TrainError> {
        let (instance_rows, rows) = self.rows(number, learner)?;
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
        Ok(Draw {
            dims: self.dims,
            instance_rows,
            latents,
            noise: self.noise.normals(Purpose::Noise, number, count),
            offsets: self.noise.normals(Purpose::OffsetNoise, number, offsets),
            timesteps: self.noise.timesteps(number, rows.len(), self.timesteps),
            ids: tokens.iter().flat_map(|t| t.ids[..longest].iter().copied()).collect(),
        })
    }
}

/// Channels, height and width of a picture's latents.
fn latent_dims(learner: &Learner, resolution_px: u32) -> Result<[usize; 3], TrainError> {
    let side = resolution_px as usize / LATENT_PX;
    Ok([learner.networks.plan().vae(Part::Vae)?.latent_channels, side, side])
}

/// Number of a showing of an item, for its frame: instances are even, class images odd. Items of later epochs count on
/// from those of the first.
fn showing(item: u64, parity: u64) -> u64 {
    2 * item + parity
}

/// Encodes a picture whenever it is asked for.
struct Live {
    framing: Framing,
    reading: Reading,
    noise: Noise,
    /// File and prompt of each picture.
    sources: Vec<(PathBuf, usize)>,
}

impl Live {
    fn encode(&self, source: usize, showing: u64, learner: &mut Learner) -> Result<Entry, TrainError> {
        let (path, tokens) = &self.sources[source];
        let photo = dataset::read_photo(path, self.reading)?;
        let frame = self.framing.choose(photo.rgb.dimensions(), &self.noise, showing);
        let mut encoder = Encoder {
            learner,
            resolution_px: self.framing.resolution_px,
            entries: Vec::new(),
        };
        let first = encoder.encode(&photo.rgb, &[frame], *tokens)?;
        Ok(encoder.entries.swap_remove(first))
    }
}

struct Encoder<'a> {
    learner: &'a mut Learner,
    resolution_px: u32,
    entries: Vec<Entry>,
}

impl Encoder<'_> {
    /// Appends an entry a frame; the index of the first.
    fn encode(&mut self, rgb: &image::RgbImage, frames: &[Frame], tokens: usize) -> Result<usize, TrainError> {
        let first = self.entries.len();
        for some in frames.chunks(ENCODE_ROWS) {
            let images: Result<Vec<Tensor>, _> = some
                .iter()
                .map(|frame| dataset::to_tensor(&dataset::cut(rgb, self.resolution_px, *frame)))
                .collect();
            let moments = self.learner.networks.encode(&Tensor::stack(&images?, 0)?)?;
            let std = moments.std()?;
            for row in 0..some.len() {
                let own = |t: &Tensor| values(&t.i(row)?);
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
    fn of(&mut self, prompt: &str, tokenizer: &Tokenizer, noticed: &mut Noticed) -> Result<usize, TrainError> {
        if let Some(index) = self.known.get(prompt) {
            return Ok(*index);
        }
        let ids = tokenizer.encode(prompt, true)?;
        noticed.cut_prompts.extend(ids.cut.clone());
        self.ids.push(ids);
        self.known.insert(prompt.to_owned(), self.ids.len() - 1);
        Ok(self.ids.len() - 1)
    }
}
