//! What lies in a folder of photos: photos by their content, captions by their names, and the rest.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use image::ImageFormat;

use super::DatasetError;

/// What a folder holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// Photos, by name.
    pub photos: Vec<PathBuf>,
    /// Everything that is neither a photo nor a photo's caption, and is left out.
    pub strays: Vec<Stray>,
}

/// Something in a folder of photos that is none.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    pub path: PathBuf,
    /// Such as `is hidden`.
    pub why: &'static str,
}

/// Looks at each file's first bytes, not at its name.
///
/// # Errors
/// When the folder or a file in it cannot be read.
pub fn list(folder: &Path) -> Result<Listing, DatasetError> {
    let (mut photos, mut texts, mut strays) = (Vec::new(), Vec::new(), Vec::new());
    for path in entries(folder)? {
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let text = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt"));
        let mut stray = |why| {
            strays.push(Stray {
                path: path.clone(),
                why,
            });
        };
        if hidden {
            stray("is hidden");
        } else if path.is_dir() {
            stray("is a folder");
        } else if text {
            texts.push(path);
        } else if is_photo(&path)? {
            photos.push(path);
        } else {
            stray("is not a JPEG, PNG or WebP picture");
        }
    }
    let captions: BTreeSet<PathBuf> = photos.iter().flat_map(|photo| caption_paths(photo)).collect();
    let lonely = texts.into_iter().filter(|text| !captions.contains(text));
    strays.extend(lonely.map(|path| Stray {
        path,
        why: "is the caption of no photo",
    }));
    strays.sort();
    Ok(Listing { photos, strays })
}

/// Everything in a folder, by name: what the tutorial's script takes for class images.
///
/// # Errors
/// When the folder cannot be read.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let failed = |source| DatasetError::Folder {
        folder: folder.into(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn is_photo(path: &Path) -> Result<bool, DatasetError> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut head))
        .map_err(|source| DatasetError::Open {
            path: path.into(),
            source,
        })?;
    let known = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP];
    Ok(image::guess_format(&head).is_ok_and(|format| known.contains(&format)))
}

/// Where a photo's caption may be: `image.png.txt`, as the tutorial's script has it, or `image.txt`, as everyone else.
pub(super) fn caption_paths(photo: &Path) -> [PathBuf; 2] {
    let mut name = photo.as_os_str().to_owned();
    name.push(".txt");
    [PathBuf::from(name), photo.with_extension("txt")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    #[test]
    fn strays_are_told_apart_by_content_each_with_a_reason() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["b.dat", "c.png"] {
            RgbImage::new(2, 2)
                .save_with_format(at(name), ImageFormat::Png)
                .expect("saves");
        }
        let others = [
            "Thumbs.db",
            "a.jpg",
            ".hidden.png",
            "b.dat.txt",
            "c.txt",
            "README.txt",
            "empty.png",
        ];
        for name in others {
            let content: &[u8] = if name == "empty.png" { b"" } else { b"not a picture" };
            std::fs::write(at(name), content).expect("writes");
        }
        for name in ["folder.png", ".ipynb_checkpoints"] {
            std::fs::create_dir(at(name)).expect("makes");
        }
        let listing = list(folder.path()).expect("lists");
        assert_eq!(listing.photos, [at("b.dat"), at("c.png")]);
        let strays: Vec<(PathBuf, &str)> = listing.strays.into_iter().map(|s| (s.path, s.why)).collect();
        let no_picture = "is not a JPEG, PNG or WebP picture";
        let wanted = [
            (at(".hidden.png"), "is hidden"),
            (at(".ipynb_checkpoints"), "is hidden"),
            (at("README.txt"), "is the caption of no photo"),
            (at("Thumbs.db"), no_picture),
            (at("a.jpg"), no_picture),
            (at("empty.png"), no_picture),
            (at("folder.png"), "is a folder"),
        ];
        assert_eq!(strays, wanted);
        assert_eq!(entries(folder.path()).expect("lists").len(), 11);
    }
}
