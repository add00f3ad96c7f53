//! Class images of earlier jobs, in a folder for all that they depend on: model, prompt, sampler, steps, guidance, size
//! and seed.

use std::path::{Path, PathBuf};

use candle_core::DType;
use sha2::{Digest, Sha256};

use super::flat;
use crate::dataset::{self, Reading};
use crate::dreambooth::TrainError;
use crate::formats::{ModelWeights, Tensors};
use crate::pipeline::SampleRequest;
use crate::store::{self, StoreError};

/// Values of each tensor that tell models apart: any training moves them all.
const VALUES: usize = 64;

/// A name for what a model draws, by its weights: the same for copies in other places, another for any other training.
///
/// # Errors
/// Those of the tensor operations.
pub fn model_identity(model: &ModelWeights, vae: &ModelWeights) -> Result<String, candle_core::Error> {
    let mut hash = Sha256::new();
    let mut add = |tensors: &Tensors| -> Result<(), candle_core::Error> {
        for (name, tensor) in tensors {
            hash.update(format!("{name}{:?}", tensor.dims()));
            let count = tensor.elem_count().min(VALUES);
            let values = tensor.flatten_all()?.narrow(0, 0, count)?.to_dtype(DType::F32)?;
            for value in values.to_vec1::<f32>()? {
                hash.update(value.to_le_bytes());
            }
        }
        Ok(())
    };
    add(&model.unet)?;
    add(&model.text_encoder)?;
    add(&vae.vae)?;
    Ok(hex::encode(hash.finalize()))
}

pub(super) struct Cache(PathBuf);

impl Cache {
    /// The folder for these images below `root`. `twin` tells subjects of one class apart.
    pub fn open(root: &Path, model: &str, request: &SampleRequest, seed: u64, twin: u64) -> Self {
        // `Debug` of a request names every field, so that a new one cannot be forgotten here.
        let key = Sha256::digest(format!("1 {model} {seed} {twin} {request:?}"));
        Self(root.join(hex::encode(&key[..16])))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.join(format!("class-{number:04}.png"))
    }

    /// An image, if it is there and of use.
    pub fn find(&self, number: u64) -> Option<PathBuf> {
        let path = self.path(number);
        let photo = dataset::read_photo(&path, Reading::SCRIPT).ok()?;
        flat(&photo.rgb).is_none().then_some(path)
    }

    pub fn keep(&self, number: u64, file: &Path) -> Result<(), TrainError> {
        let kept: Result<(), StoreError> = store::link_or_copy(file, &self.path(number));
        Ok(kept?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dreambooth::class_images::testing::dog;
    use crate::formats::{self, Width};

    #[test]
    fn images_are_found_again_by_all_that_they_depend_on() {
        let dir = tempfile::tempdir().expect("folder");
        let request = dog();
        let open = |model: &str, request: &SampleRequest, seed, twin| {
            Cache::open(&dir.path().join("cache"), model, request, seed, twin)
        };
        let drawn = dir.path().join("drawn.png");
        let picture = image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([20 * x as u8, 20 * y as u8, 0]));
        picture.save(&drawn).expect("saves");
        open("m", &request, 1, 0).keep(7, &drawn).expect("keeps");
        assert!(open("m", &request, 1, 0).find(7).is_some());
        assert!(open("m", &request, 1, 0).find(8).is_none());
        let other = SampleRequest {
            num_inference_steps: 21,
            ..request.clone()
        };
        assert!(open("n", &request, 1, 0).find(7).is_none());
        assert!(open("m", &other, 1, 0).find(7).is_none());
        assert!(open("m", &request, 2, 0).find(7).is_none());
        assert!(open("m", &request, 1, 1).find(7).is_none());

        image::RgbImage::new(8, 8).save(&drawn).expect("saves");
        open("m", &request, 1, 0).keep(9, &drawn).expect("keeps");
        assert!(open("m", &request, 1, 0).find(9).is_none(), "black ones are of no use");
    }

    #[test]
    fn a_model_is_known_by_its_weights_wherever_it_lies() {
        let identity = |model: &ModelWeights, vae: &ModelWeights| model_identity(model, vae).expect("has weights");
        let model = formats::load("starter").expect("loads");
        let own = identity(&model, &model);
        let dir = tempfile::tempdir().expect("folder");
        formats::save_diffusers(dir.path(), &model, Width::Full).expect("saves");
        let copy = formats::load(&dir.path().to_string_lossy()).expect("loads");
        assert_eq!(identity(&copy, &copy), own);

        let changed = |tensors: fn(&mut ModelWeights) -> &mut Tensors| {
            let mut other = model.clone();
            let tensor = tensors(&mut other).values_mut().next().expect("has weights");
            *tensor = (&*tensor + 0.5).expect("adds");
            other
        };
        let unet = changed(|model| &mut model.unet);
        let text_encoder = changed(|model| &mut model.text_encoder);
        for other in [unet, text_encoder] {
            assert_ne!(identity(&other, &model), own);
        }
        let vae = changed(|model| &mut model.vae);
        assert_eq!(identity(&vae, &model), own, "its own VAE does not draw");
        assert_ne!(identity(&model, &vae), own);
    }
}
