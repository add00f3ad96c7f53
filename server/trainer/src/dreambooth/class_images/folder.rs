//! A folder of class images: those that we drew, known by their names, and those that were put there.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use sha1::{Digest, Sha1};

use super::drawn_by::DrawnBy;
use crate::dataset::{self, DatasetError, Listing, Stray};
use crate::dreambooth::TrainError;
use crate::pipeline::{self, PipelineError};
use crate::store::{self, StoreError};

/// PIL's default, which the tutorial's script saves with.
const JPEG_QUALITY: u8 = 75;

/// How files are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// `class-0003.png`
    Numbered,
    /// `3-{SHA-1 of the pixels}.jpg`, as in the tutorial's script.
    Hashed,
}

impl Naming {
    /// The number of an image that we named.
    fn number(self, path: &Path) -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        match self {
            Self::Numbered => name.strip_prefix("class-")?.strip_suffix(".png")?.parse().ok(),
            Self::Hashed => {
                let (number, hash) = name.strip_suffix(".jpg")?.split_once('-')?;
                let is_hash = hash.len() == 40 && hash.bytes().all(|b| b.is_ascii_hexdigit());
                number.parse().ok().filter(|_| is_hash)
            }
        }
    }
}

pub(super) struct ClassFolder {
    path: PathBuf,
    naming: Naming,
    own: BTreeMap<u64, PathBuf>,
    others: Vec<PathBuf>,
    strays: Vec<Stray>,
}

impl ClassFolder {
    /// `any_entry` counts whatever lies there as an image, as the tutorial's script does.
    pub fn open(path: &Path, naming: Naming, any_entry: bool) -> Result<Self, DatasetError> {
        let found = match any_entry {
            true => Listing {
                photos: dataset::entries(path)?,
                strays: Vec::new(),
            },
            false => dataset::list(path)?,
        };
        let mut folder = Self {
            path: path.into(),
            naming,
            own: BTreeMap::new(),
            others: Vec::new(),
            strays: found.strays,
        };
        for path in found.photos {
            match naming.number(&path) {
                Some(number) => {
                    folder.own.insert(number, path);
                }
                None => folder.others.push(path),
            }
        }
        Ok(folder)
    }

    pub fn images(&self) -> impl Iterator<Item = &PathBuf> {
        self.others.iter().chain(self.own.values())
    }

    pub fn own(&self) -> Vec<(u64, PathBuf)> {
        self.own.iter().map(|(number, path)| (*number, path.clone())).collect()
    }

    pub fn others(&self) -> &[PathBuf] {
        &self.others
    }

    /// What is no image.
    pub fn strays(&self) -> &[Stray] {
        &self.strays
    }

    pub fn has(&self, number: u64) -> bool {
        self.own.contains_key(&number)
    }

    /// Numbers of the images to draw until `wanted` are there, with those between and beside them that are there
    /// already: whole batches, the same ones for a run that was cut off. They count from the images that were put
    /// there, as the script's do.
    pub fn numbers(&self, wanted: usize, batch: usize) -> Vec<u64> {
        let mut missing = wanted.saturating_sub(self.own.len() + self.others.len());
        let mut numbers = Vec::new();
        for number in self.others.len() as u64.. {
            let there = self.has(number);
            if missing == 0 && (!there || numbers.len() % batch == 0) {
                break;
            }
            missing -= usize::from(!there);
            numbers.push(number);
        }
        numbers
    }

    /// Writes an image's file, to be counted by [`Self::adopt`]: several may be written at once.
    pub fn write(&self, number: u64, rgb: &RgbImage, drawn_by: &DrawnBy) -> Result<PathBuf, TrainError> {
        let path = match self.naming {
            Naming::Numbered => {
                let path = self.numbered(number);
                pipeline::save_png(rgb, &path)?;
                path
            }
            Naming::Hashed => {
                let hash = hex::encode(Sha1::digest(rgb.as_raw()));
                let path = self.path.join(format!("{number}-{hash}.jpg"));
                let mut bytes = Cursor::new(Vec::new());
                rgb.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))
                    .map_err(PipelineError::from)?;
                store::write_atomic(&path, &drawn_by.sign(bytes.into_inner()))?;
                path
            }
        };
        Ok(path)
    }

    /// From now on `path` is image `number`.
    pub fn adopt(&mut self, number: u64, path: PathBuf) {
        self.own.insert(number, path);
    }

    /// Puts a file of the cache here, without a copy where that can be.
    pub fn link(&mut self, number: u64, file: &Path) -> Result<PathBuf, TrainError> {
        let path = self.numbered(number);
        store::link_or_copy(file, &path)?;
        self.own.insert(number, path.clone());
        Ok(path)
    }

    pub fn remove(&mut self, number: u64) -> Result<(), TrainError> {
        if let Some(path) = self.own.remove(&number) {
            std::fs::remove_file(&path).map_err(|source| StoreError { path, source })?;
        }
        Ok(())
    }

    fn numbered(&self, number: u64) -> PathBuf {
        self.path.join(format!("class-{number:04}.png"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dreambooth::class_images::testing::dog;

    fn save(folder: &mut ClassFolder, number: u64, rgb: &RgbImage) -> PathBuf {
        let path = folder.write(number, rgb, &drawn_by()).expect("saves");
        folder.adopt(number, path.clone());
        path
    }

    fn drawn_by() -> DrawnBy {
        DrawnBy::of("m", &dog())
    }

    fn stripes(seed: u32) -> RgbImage {
        RgbImage::from_fn(9, 7, |x, y| image::Rgb([(x * seed % 256) as u8, y as u8 * 30, 9]))
    }

    #[test]
    fn images_are_named_as_the_script_names_them_and_known_again() {
        let dir = tempfile::tempdir().expect("folder");
        let mut folder = ClassFolder::open(dir.path(), Naming::Hashed, false).expect("opens");
        let path = save(&mut folder, 3, &stripes(20));
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let hash = hex::encode(Sha1::digest(stripes(20).as_raw()));
        assert_eq!(name, format!("3-{hash}.jpg"));
        stripes(5).save(dir.path().join("3-own.png")).expect("saves");
        let again = ClassFolder::open(dir.path(), Naming::Hashed, false).expect("opens");
        assert!(again.has(3));
        assert_eq!(again.others(), [dir.path().join("3-own.png")]);
    }

    #[test]
    fn only_pictures_count_unless_any_entry_does() {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("notes.txt"), "no picture").expect("writes");
        std::fs::create_dir(dir.path().join(".ipynb_checkpoints")).expect("makes");
        let numbers = |any_entry| {
            let folder = ClassFolder::open(dir.path(), Naming::Hashed, any_entry).expect("opens");
            folder.numbers(5, 4)
        };
        assert_eq!(numbers(false), [0, 1, 2, 3, 4]);
        assert_eq!(numbers(true), [2, 3, 4]);
    }

    #[test]
    fn a_cut_off_run_draws_the_same_batches() {
        let dir = tempfile::tempdir().expect("folder");
        let mut folder = ClassFolder::open(dir.path(), Naming::Numbered, false).expect("opens");
        assert_eq!(folder.numbers(6, 4), [0, 1, 2, 3, 4, 5]);
        for number in [0, 1, 2, 3, 4] {
            save(&mut folder, number, &stripes(number as u32 + 1));
        }
        folder.remove(1).expect("removes");
        // Whole batches from the first, so that 1 is drawn among 0 to 3 again, and 5 with 4.
        assert_eq!(folder.numbers(6, 4), [0, 1, 2, 3, 4, 5]);
        save(&mut folder, 1, &stripes(2));
        save(&mut folder, 5, &stripes(6));
        assert!(folder.numbers(6, 4).is_empty());
    }
}
