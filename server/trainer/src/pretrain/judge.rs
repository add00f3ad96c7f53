//! Says which of the evaluation's twenty nouns a picture shows: a small convolutional network of our own engine, trained on
//! the data set's drawings in every style and on every background but the held-out combinations.
//!
//! It learns to answer with a one at the noun's place and zeros elsewhere, by squared error, which the engine has.

use std::collections::BTreeMap;

use super::data::StarterData;
use super::starter::SIDE_PX;
use super::{Diary, OPTIMIZER, PretrainError, captions, cosine};
use crate::device::Device;
use crate::engine::autodiff::{Backward, backward};
use crate::engine::builder::{Bias, Builder, Scope};
use crate::engine::ir::{Group, Kind, ParamId, ParamTable, Shift, ValueId, Window};
use crate::engine::nets::error::NetworkError;
use crate::engine::session::{Data, ProgramId, Session, Update};
use crate::noise::{Noise, Purpose};

/// Side of the pictures that it sees: half of the drawn ones'.
const SEEN_PX: usize = SIDE_PX as usize / 2;
const WIDTHS: [usize; 4] = [32, 64, 96, 128];
const HALVE: Window = Window {
    kernel: 3,
    stride: 2,
    before: 1,
    after: 1,
};
const LEARNING_RATE: f64 = 2e-3;
const ROWS: usize = 64;
/// So that the mean of twenty squared errors has a gradient of size one.
const ONE: f32 = 4.0;

pub struct Judge {
    session: Box<dyn Session>,
    answer: ProgramId,
    nouns: usize,
}

/// `images` `[rows, 64, 64, 3]` in -1 to 1, to an answer `[rows, nouns]`.
fn network(b: &mut Builder, images: ValueId, nouns: usize) -> ValueId {
    // The engine's groups tell learning rates apart, and here there is but one.
    let scope = Scope::new("judge", Group::UNet, true);
    let mut x = images;
    for (level, width) in WIDTHS.into_iter().enumerate() {
        let scope = scope.at(level);
        x = b.conv(x, &scope.at("conv"), width, HALVE, Bias::Own, None);
        x = b.group_norm(x, Shift::default(), &scope.at("norm"), (8, 1e-5), true);
    }
    let rows = b.dims(x)[0];
    let size = b.dims(x)[1..].iter().product();
    let flat = b.reshape(x, &[rows, size]);
    b.linear(flat, &scope.at("out"), nouns, Bias::Own, None)
}

impl Judge {
    /// Trains one on `updates` batches of the data.
    ///
    /// # Errors
    /// What the device answers, or when the loss stops being finite.
    pub fn train(data: &StarterData, updates: u64, seed: u64, device: &Device) -> Result<Self, PretrainError> {
        let nouns = captions::nouns().len();
        let mut table = ParamTable::default();
        let mut b = Builder::new(&mut table);
        let images = b.input("images", &[ROWS, SEEN_PX, SEEN_PX, 3], Kind::F32);
        let images = b.cast(images, Kind::Activation);
        let answer = network(&mut b, images, nouns);
        let target = b.input("target", &[ROWS, nouns], Kind::F32);
        let weights = b.input("weights", &[ROWS], Kind::F32);
        let scale = b.input("scale", &[1], Kind::F32);
        let (losses, danswer) = b.mse(answer, target, weights, scale);
        b.output("losses", losses);
        let forward = b.finish().map_err(NetworkError::from)?;
        let learn = backward(forward, &table, &[(answer, danswer)], Backward::default()).map_err(NetworkError::from)?;
        let mut b = Builder::new(&mut table);
        let images = b.input("images", &[1, SEEN_PX, SEEN_PX, 3], Kind::F32);
        let images = b.cast(images, Kind::Activation);
        let answer = network(&mut b, images, nouns);
        let answer = b.cast(answer, Kind::F32);
        b.output("answer", answer);
        let answer = b.finish().map_err(NetworkError::from)?.program;

        let mut session = device.session(table, OPTIMIZER, app::recipe::Precision::No)?;
        first_weights(&mut *session, seed)?;
        let (learn, answer) = (session.compile(learn)?, session.compile(answer)?);
        let mut diary = Diary::new("judge");
        for at in 0..updates {
            let (pixels, shown) = data.named(at, ROWS);
            let images: Vec<f32> = (pixels.chunks(pixels.len() / ROWS).enumerate())
                .flat_map(|(row, picture)| seen(picture, (at as usize + row).is_multiple_of(2)))
                .collect();
            let mut target = vec![0.0; ROWS * nouns];
            for (row, noun) in shown.into_iter().enumerate() {
                target[row * nouns + noun] = ONE;
            }
            session.write(learn, "images", Data::F32(&images))?;
            session.write(learn, "target", Data::F32(&target))?;
            session.write(learn, "weights", Data::F32(&[1.0 / ROWS as f32; ROWS]))?;
            session.write(learn, "scale", Data::F32(&[1.0]))?;
            let update = Update {
                learning_rates: BTreeMap::from([(Group::UNet, cosine(LEARNING_RATE, at, updates))]),
                max_grad_norm: 1.0,
                loss_scale: 1.0,
                number: at + 1,
            };
            let updated = session.run_and_update(learn, &update)?;
            let loss = session.read(learn, "losses")?.iter().sum::<f32>() / ROWS as f32;
            if updated.skipped || !loss.is_finite() {
                return Err(PretrainError::NotFinite { loss, update: at + 1 });
            }
            diary.note(at + 1, loss, updated.grad_norm);
        }
        Ok(Self { session, answer, nouns })
    }

    /// The likeliest of [`captions::nouns`] for each picture of `[rows, 3, 128, 128]` in -1 to 1.
    ///
    /// # Errors
    /// What the device answers.
    pub fn nouns(&mut self, pixels: &[f32]) -> Result<Vec<usize>, PretrainError> {
        let size = 3 * (SIDE_PX * SIDE_PX) as usize;
        let mut nouns = Vec::new();
        for picture in pixels.chunks(size) {
            self.session
                .write(self.answer, "images", Data::F32(&seen(picture, false)))?;
            self.session.run(self.answer)?;
            let answer = self.session.read(self.answer, "answer")?;
            let best = (0..self.nouns).max_by(|a, b| answer[*a].total_cmp(&answer[*b]));
            nouns.push(best.unwrap_or_default());
        }
        Ok(nouns)
    }
}

/// Convolutions after He et al. 2015, the last layer smaller, norms that change nothing.
fn first_weights(session: &mut dyn Session, seed: u64) -> Result<(), PretrainError> {
    let noise = Noise::new(seed);
    for (param, index) in session.params().params.clone().into_iter().zip(0u32..) {
        let inputs = param.len() / param.dims.first().copied().unwrap_or(1).max(1);
        let values = match (param.name.ends_with("norm.weight"), param.dims.len()) {
            (true, _) => vec![1.0; param.len()],
            (false, 1) => vec![0.0; param.len()],
            (false, _) => {
                let spread = (2.0 / inputs as f32).sqrt();
                let normals = noise.normals(Purpose::Weights, index.into(), param.len());
                normals.into_iter().map(|value| spread * value).collect()
            }
        };
        session.set_weight(ParamId(index), &values)?;
    }
    Ok(())
}

/// A picture `[3, 128, 128]` as `[64, 64, 3]`; `blurred` as it would be at a quarter of the side, so that the judge does
/// not lean on edges that the autoencoder softens.
fn seen(picture: &[f32], blurred: bool) -> Vec<f32> {
    let side = SIDE_PX as usize;
    let block = if blurred { 4 } else { 2 };
    let mut seen = Vec::with_capacity(SEEN_PX * SEEN_PX * 3);
    for y in 0..SEEN_PX {
        for x in 0..SEEN_PX {
            let (top, left) = (2 * y / block * block, 2 * x / block * block);
            for plane in picture.chunks(side * side) {
                let rows = (top..top + block).map(|y| plane[y * side + left..][..block].iter().sum::<f32>());
                seen.push(rows.sum::<f32>() / (block * block) as f32);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_seen_at_half_its_side() {
        let side = SIDE_PX as usize;
        let picture: Vec<f32> = (0..3 * side * side)
            .map(|at| (at / (side * side)) as f32 + (at % side) as f32 / 1e3)
            .collect();
        let sharp = seen(&picture, false);
        assert_eq!(sharp.len(), SEEN_PX * SEEN_PX * 3);
        // Second pixel: columns 2 and 3 of each plane.
        for (channel, value) in sharp[3..6].iter().enumerate() {
            assert!((value - (channel as f32 + 0.0025)).abs() < 1e-6);
        }
        // Blurred: columns 0 to 3.
        assert!((seen(&picture, true)[3] - 0.0015).abs() < 1e-6);
    }
}
