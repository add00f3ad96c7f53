//! What the starter's autoencoder makes of photographs.

use std::path::Path;

use anyhow::Context;
use candle_core::{Device, Tensor};
use image::RgbImage;
use image::imageops::FilterType;
use trainer::dataset::{self, Reading};
use trainer::dreambooth::learner::Learner;
use trainer::pretrain::autoencoder::reconstruction_psnr_db;

/// Side of what the starter draws.
pub const SIDE_PX: u32 = 128;

/// A photograph's middle, and what came back of it.
pub struct Reconstruction {
    pub photo: RgbImage,
    pub picture: RgbImage,
    pub psnr_db: f32,
}

/// Every photo of a folder, encoded and decoded by the starter.
///
/// # Errors
/// When the folder holds none, or one cannot be read.
pub fn reconstruct(folder: &Path) -> anyhow::Result<Vec<Reconstruction>> {
    let starter = trainer::formats::load(app::recipe::STARTER)?;
    let mut learner = Learner::for_drawing(starter, &trainer::device::Device::Cpu)?;
    let listing = dataset::list(folder)?;
    anyhow::ensure!(!listing.photos.is_empty(), "no photos in {}", folder.display());
    let through = |path: &std::path::PathBuf| {
        let photo = middle(&dataset::read_photo(path, Reading::SCRIPT)?.rgb);
        let (y, db) = reconstruction_psnr_db(&mut learner.networks, &pixels(&photo)?)?;
        anyhow::Ok(Reconstruction {
            picture: picture(&y)?,
            psnr_db: *db.first().context("no picture came back")?,
            photo,
        })
    };
    listing.photos.iter().map(through).collect()
}

pub fn mean_psnr_db(photos: &[Reconstruction]) -> f32 {
    photos.iter().map(|photo| photo.psnr_db).sum::<f32>() / photos.len() as f32
}

/// The middle square at the starter's size.
fn middle(photo: &RgbImage) -> RgbImage {
    middle_of(photo, SIDE_PX)
}

/// The middle square, `to_px` wide.
pub fn middle_of(photo: &RgbImage, to_px: u32) -> RgbImage {
    let side = photo.width().min(photo.height());
    let (left, top) = ((photo.width() - side) / 2, (photo.height() - side) / 2);
    let square = image::imageops::crop_imm(photo, left, top, side, side).to_image();
    image::imageops::resize(&square, to_px, to_px, FilterType::Lanczos3)
}

/// `[1, 3, side, side]` in -1 to 1.
pub fn pixels(picture: &RgbImage) -> anyhow::Result<Tensor> {
    let side = picture.width() as usize;
    let values: Vec<f32> = picture.iter().map(|v| f32::from(*v) / 127.5 - 1.0).collect();
    Ok(Tensor::from_vec(values, (1, side, side, 3), &Device::Cpu)?
        .permute((0, 3, 1, 2))?
        .contiguous()?)
}

fn picture(x: &Tensor) -> anyhow::Result<RgbImage> {
    let values: Vec<f32> = x.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1()?;
    let bytes = values
        .into_iter()
        .map(|v| (f32::midpoint(v, 1.0) * 255.0).round() as u8);
    RgbImage::from_raw(SIDE_PX, SIDE_PX, bytes.collect()).context("a picture of another size")
}
