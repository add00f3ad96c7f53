//! Pictures that the autoencoder has encoded ahead: a step of diffusion then reads 4 KiB a row in place of composing and
//! encoding 192 KiB of pixels, and a GPU trains several times as fast.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::PretrainError;
use super::data::{Mix, StarterData};
use super::feed::feed;
use super::starter::SIDE_PX;
use crate::engine::nets::networks::{Networks, values};
use crate::noise::{Noise, Purpose};
use crate::tokenizer::Tokenizer;

/// Pictures that are encoded at once.
const ENCODED_ROWS: usize = 256;
/// Encoded pictures with their captions.
pub(super) struct Pool {
    /// `[pictures, 4, h / 8, w / 8]`, times the scaling factor.
    latents: Vec<f32>,
    /// `[pictures, tokens]`
    ids: Vec<u32>,
    pictures: usize,
}

/// What a step of training reads; see [`Step`](crate::engine::nets::networks::Step).
pub(super) struct Rows {
    pub latents: Vec<f32>,
    pub ids: Vec<u32>,
}

impl Pool {
    /// At least `pictures` of them; those of another `generation` are others.
    ///
    /// # Errors
    /// What the device or the tokenizer answers.
    pub(super) fn fill(
        networks: &mut Networks,
        data: &Arc<StarterData>,
        tokenizer: &Tokenizer,
        noise: &Noise,
        scale: f64,
        (generation, pictures): (u64, usize),
    ) -> Result<Self, PretrainError> {
        let side = SIDE_PX as usize;
        let batches = pictures.div_ceil(ENCODED_ROWS) as u64;
        let first = generation * batches;
        let mut pool = Self {
            latents: Vec::new(),
            ids: Vec::new(),
            pictures: batches as usize * ENCODED_ROWS,
        };
        let composed = Arc::clone(data);
        let composed = feed(first..first + batches, move |at| {
            composed.batch(at, ENCODED_ROWS, Mix::Drawings)
        })?;
        for (at, batch) in (first..).zip(composed) {
            let x = Tensor::from_vec(batch.pixels, (ENCODED_ROWS, 3, side, side), &Device::Cpu)?;
            let distribution = networks.encode(&x)?;
            let eps = noise.normal(Purpose::Latents, at, distribution.mean.shape())?;
            let latents = distribution.sample_with(&eps)?.affine(scale, 0.0)?;
            pool.latents.extend(values(&latents)?);
            for caption in &batch.captions {
                pool.ids.extend(tokenizer.encode(caption, true)?.ids);
            }
        }
        Ok(pool)
    }

    /// The rows of an update: pictures are drawn anew, a function of seed and update alone.
    pub(super) fn rows(&self, seed: u64, update: u64, rows: usize) -> Rows {
        let (size, tokens) = (self.latents.len() / self.pictures, self.ids.len() / self.pictures);
        let pictures = Noise::new(seed).uniform(Purpose::Shuffle, update, rows);
        let pictures = pictures.into_iter().map(|at| (at * self.pictures as f64) as usize);
        let mut made = Rows {
            latents: Vec::with_capacity(rows * size),
            ids: Vec::with_capacity(rows * tokens),
        };
        for picture in pictures {
            made.latents.extend(&self.latents[picture * size..][..size]);
            made.ids.extend(&self.ids[picture * tokens..][..tokens]);
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_a_function_of_seed_and_update_and_each_is_one_picture() {
        // Picture 0 is all 3 and says 7; picture 1 is all -3 and says 8.
        let pool = Pool {
            latents: [[3f32; 8], [-3.0; 8]].concat(),
            ids: vec![7, 7, 8, 8],
            pictures: 2,
        };
        let (rows, again, next) = (pool.rows(5, 9, 64), pool.rows(5, 9, 64), pool.rows(5, 10, 64));
        assert_eq!((&rows.latents, &rows.ids), (&again.latents, &again.ids));
        assert_ne!(rows.ids, next.ids);
        assert!(rows.ids.contains(&7) && rows.ids.contains(&8));
        for (latents, ids) in rows.latents.chunks(8).zip(rows.ids.chunks(2)) {
            let clean = if ids[0] == 7 { 3.0 } else { -3.0 };
            assert!(latents.iter().all(|value| *value == clean) && ids[0] == ids[1]);
        }
    }
}
