//! Photos and class images as the VAE's distributions of latents, encoded once, drawn from anew in every step; or, with
//! `not_cache_latents`, encoded anew for every step too.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use app::recipe::Recipe;
use candle_core::{Device, IndexOp, Tensor};
use rayon::prelude::*;

use super::batch::Batch;
use super::error::TrainError;
use super::learner::Learner;
use super::order::Order;
use crate::dataset::{self, DatasetError, Frame, Framing, Reading};
use crate::engine::nets::networks::values;
use crate::engine::nets::programs::Part;
use crate::noise::{Noise, Purpose};
use crate::pipeline::LATENT_PX;
use crate::tokenizer::{TokenIds, Tokenizer};

/// Images encoded in one go.
pub(super) const ENCODE_ROWS: usize = 4;

/// Photos read by all cores at a time; large ones take some 100 MB each.
const READ_AT_ONCE: usize = 8;

/// A photo with the prompt it is trained on.
#[derive(Clone, Debug)]
pub struct Source {
    pub path: PathBuf,
    pub prompt: String,
}

/// A photo that is not trained on.
pub struct HeldOut {
    pub photo: Source,
    /// Of the same subject and trained on, in random order.
    pub others: Vec<Source>,
}

/// What there is to learn from, before it is encoded.
pub struct Pictures {
    instances: Vec<Source>,
    /// Empty without prior preservation.
    classes: Vec<Source>,
    pub held_out: Option<HeldOut>,
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
            held_out: None,
        };
        // First and last instance of the subject with most photos.
        let mut largest = 0..0;
        for concept in &recipe.concepts {
            let folder = base_folder.join(&concept.instance_data_dir);
            let listing = dataset::list(&folder)?;
            if listing.photos.is_empty() {
                return Err(DatasetError::Empty { folder }.into());
            }
            let first = pictures.instances.len();
            for path in listing.photos {
                let prompt = match recipe.read_prompts_from_txts {
                    true => dataset::read_caption(&path, recipe.strict_tutorial)?,
                    false => concept.instance_prompt.clone(),
                };
                pictures.instances.push(Source { path, prompt });
            }
            let own = first..pictures.instances.len();
            if own.len() > largest.len() {
                largest = own;
            }
            if let (Some(prior), Some(folder), Some(prompt)) =
                (&recipe.prior, &concept.class_data_dir, &concept.class_prompt)
            {
                let folder = base_folder.join(folder);
                let found = match recipe.strict_tutorial {
                    // The script counts a folder in there, and leaves it out here.
                    true => (dataset::entries(&folder)?.into_iter())
                        .filter(|path| path.is_file())
                        .collect(),
                    false => dataset::list(&folder)?.photos,
                };
                let wanted = found.into_iter().take(prior.num_class_images as usize);
                pictures.classes.extend(wanted.map(|path| Source {
                    path,
                    prompt: prompt.clone(),
                }));
            }
        }
        let noise = Noise::new(recipe.seed);
        if recipe.holds_out(pictures.instances.len()) {
            let chosen = noise.permutation(Purpose::HoldOut, 0, largest.len());
            let mut chosen = chosen.into_iter().map(|at| largest.start + at);
            if let Some(out) = chosen.next() {
                let others = chosen.map(|at| pictures.instances[at].clone()).collect();
                let photo = pictures.instances.remove(out);
                pictures.held_out = Some(HeldOut { photo, others });
            }
        }
        let order = noise.permutation(Purpose::Pairing, 0, pictures.instances.len());
        pictures.instances = order.into_iter().map(|i| pictures.instances[i].clone()).collect();
        Ok(pictures)
    }

    /// Those that are trained on.
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
    order: Order,
    /// Of each prompt.
    tokens: Vec<TokenIds>,
    /// Channels, height and width of an entry.
    dims: [usize; 3],
    pad_tokens: bool,
    scaling_factor: f64,
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
            let framed = |(index, source): (usize, &Source)| -> Result<(Vec<Tensor>, Vec<Vec<usize>>), TrainError> {
                let photo = dataset::read_photo(&source.path, reading)?;
                // Equal frames share an entry: a square photo of the right size has but one.
                let mut frames: BTreeMap<Frame, Vec<usize>> = BTreeMap::new();
                for item in (index..length).step_by(sources.len()) {
                    let frame = framing.choose(photo.rgb.dimensions(), &noise, showing(item as u64, parity));
                    frames.entry(frame).or_default().push(item);
                }
                let (frames, items): (Vec<Frame>, Vec<Vec<usize>>) = frames.into_iter().unzip();
                Ok((cut(&photo.rgb, resolution_px, &frames)?, items))
            };
            let numbered: Vec<(usize, &Source)> = sources.iter().enumerate().collect();
            for some in numbered.chunks(READ_AT_ONCE) {
                let read: Vec<_> = some.par_iter().copied().map(framed).collect::<Result<_, _>>()?;
                for ((_, source), (images, items)) in some.iter().zip(read) {
                    let prompt = tokens.of(&source.prompt, &encoder.learner.tokenizer, noticed)?;
                    let first = encoder.encode(&images, prompt)?;
                    for (offset, items) in items.into_iter().enumerate() {
                        for item in items {
                            of_item[item] = first + offset;
                        }
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
            entries: encoder.entries,
            items,
            live,
            order: Order {
                items: length,
                batch_size: recipe.train_batch_size as usize,
                // Batches of one item are the same either way.
                frozen: recipe.strict_tutorial && !recipe.not_cache_latents && recipe.train_batch_size > 1,
                noise,
            },
            tokens: tokens.ids,
            pad_tokens: recipe.pad_tokens,
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

    /// Entries of a micro-batch: its instances, then its class images. Also how many are instances.
    fn rows(&self, number: u64, learner: &mut Learner) -> Result<(usize, Vec<Cow<'_, Entry>>), TrainError> {
        let (round, chosen) = self.order.batch(number);
        let shown = |item: usize, parity| showing(round * self.items.len() as u64 + item as u64, parity);
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

    /// Micro-batch `number`, counted from 0: a function of seed and number alone.
    ///
    /// # Errors
    /// When a photo is encoded anew and cannot be read any more.
    pub fn batch(&self, number: u64, learner: &mut Learner) -> Result<Batch, TrainError> {
        let (instance_rows, rows) = self.rows(number, learner)?;
        let tokens: Vec<&TokenIds> = rows.iter().map(|e| &self.tokens[e.tokens]).collect();
        let longest = tokens
            .iter()
            .map(|t| if self.pad_tokens { t.ids.len() } else { t.length })
            .max();
        let longest = longest.unwrap_or(0);
        let maps = [
            rows.iter().flat_map(|entry| &entry.mean).copied().collect(),
            rows.iter().flat_map(|entry| &entry.std).copied().collect(),
        ];
        let ids = tokens.iter().flat_map(|t| t.ids[..longest].iter().copied()).collect();
        Ok(Batch::new(self.dims, instance_rows, maps, ids))
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
        let images = cut(&photo.rgb, self.framing.resolution_px, &[frame])?;
        let mut encoder = Encoder {
            learner,
            entries: Vec::new(),
        };
        let first = encoder.encode(&images, *tokens)?;
        Ok(encoder.entries.swap_remove(first))
    }
}

/// Frames of a picture, as the VAE reads them.
fn cut(rgb: &image::RgbImage, resolution_px: u32, frames: &[Frame]) -> candle_core::Result<Vec<Tensor>> {
    let of = |frame: &Frame| dataset::to_tensor(&dataset::cut(rgb, resolution_px, *frame));
    frames.iter().map(of).collect()
}

struct Encoder<'a> {
    learner: &'a mut Learner,
    entries: Vec<Entry>,
}

impl Encoder<'_> {
    /// Appends an entry an image; the index of the first.
    fn encode(&mut self, images: &[Tensor], tokens: usize) -> Result<usize, TrainError> {
        let first = self.entries.len();
        for some in images.chunks(ENCODE_ROWS) {
            let moments = self.learner.networks.encode(&Tensor::stack(some, 0)?)?;
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
