//! The rules' thresholds against real photographs: sharp originals, then blurred, copied, widened by known amounts.
//! Runs where the photos are: `LIKENESS_PHOTOS`, or `../shared/photos` beside the repository.

use std::path::{Path, PathBuf};

use app::api::CropSquare;
use app::crop::{Crop, SUGGEST_PX, suggest};
use app::dataset::{self, ALIKE_BITS, Variety};
use app::photo::{BLURRED_BELOW, PhotoFacts, SOFT_BELOW};
use app::pixels::{Photo, Rgb, hash, sharpness};
use image::RgbImage;
use image::imageops;

struct Real {
    name: String,
    subject: String,
    facts: PhotoFacts,
    /// 512x512.
    pixels: Rgb,
}

fn real_photos() -> Vec<Real> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/photos");
    let root = std::env::var_os("LIKENESS_PHOTOS").map_or(beside, PathBuf::from);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&root)
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    if paths.is_empty() {
        eprintln!("skipped: no photos in {}", root.display());
    }
    paths.iter().map(|path| real(path, &root)).collect()
}

fn real(path: &Path, root: &Path) -> Real {
    let photo = Photo::decode(&std::fs::read(path).expect("readable")).expect("a photo");
    let (width, height) = photo.size_px();
    let crop = Crop::centred(width, height).square();
    let name = path.strip_prefix(root).expect("below root").display().to_string();
    Real {
        subject: name.split('/').next().unwrap_or_default().into(),
        facts: photo.facts(crop).expect("inside"),
        pixels: photo.cropped(crop, 512).expect("inside"),
        name,
    }
}

fn to_image(rgb: &Rgb) -> RgbImage {
    RgbImage::from_raw(rgb.width(), rgb.height(), rgb.pixels().to_vec()).expect("same size")
}

fn to_rgb(image: RgbImage) -> Rgb {
    Rgb::new(image.width(), image.height(), image.into_raw()).expect("not empty")
}

fn blurred(rgb: &Rgb, sigma: f32) -> Rgb {
    to_rgb(imageops::blur(&to_image(rgb), sigma))
}

fn part(rgb: &Rgb, margin: u32) -> Rgb {
    let side = rgb.width() - 2 * margin;
    to_rgb(imageops::crop_imm(&to_image(rgb), margin, margin, side, side).to_image())
}

#[test]
fn sharp_photos_pass_and_blurred_ones_do_not() {
    let photos = real_photos();
    let share = |sigma: f32, below: f32| {
        let hits = photos
            .iter()
            .filter(|p| sharpness(&blurred(&p.pixels, sigma)) < below)
            .count();
        hits as f64 / photos.len().max(1) as f64
    };
    for photo in &photos {
        assert!(
            photo.facts.sharpness >= SOFT_BELOW,
            "{}: {}",
            photo.name,
            photo.facts.sharpness
        );
    }
    if photos.is_empty() {
        return;
    }
    let (soft_at_2, soft_at_3, blurred_at_4) = (
        share(2.0, SOFT_BELOW),
        share(3.0, SOFT_BELOW),
        share(4.0, BLURRED_BELOW),
    );
    assert!(soft_at_2 >= 0.85, "sigma 2: {soft_at_2}");
    assert!(soft_at_3 >= 1.0, "sigma 3: {soft_at_3}");
    assert!(blurred_at_4 >= 0.9, "sigma 4: {blurred_at_4}");
}

#[test]
fn copies_look_alike_and_different_photos_do_not() {
    let photos = real_photos();
    for (i, a) in photos.iter().enumerate() {
        for b in &photos[..i] {
            let distance = a.facts.hash.distance(&b.facts.hash);
            assert!(distance > ALIKE_BITS, "{} and {}: {distance}", a.name, b.name);
        }
        let recompressed = Photo::decode(&a.pixels.to_jpeg(30)).expect("a photo").fitted(512);
        let mirrored = to_rgb(imageops::flip_horizontal(&to_image(&a.pixels)));
        let copies = [
            ("JPEG at quality 30", recompressed),
            ("blurred", blurred(&a.pixels, 2.0)),
            ("the middle 98%", part(&a.pixels, 5)),
            ("the middle 95%", part(&a.pixels, 13)),
            ("mirrored", mirrored),
        ];
        for (how, copy) in copies {
            let distance = a.facts.hash.distance(&hash(&copy));
            assert!(distance <= ALIKE_BITS, "{}, {how}: {distance}", a.name);
        }
    }
}

#[test]
fn each_real_set_has_good_variety_and_no_complaints_about_photos() {
    let photos = real_photos();
    for subject in photos.chunk_by(|a, b| a.subject == b.subject) {
        let facts: Vec<_> = subject.iter().map(|p| Some(&p.facts)).collect();
        let verdict = dataset::judge(&facts, 512);
        assert_eq!(verdict.variety, Some(Variety::Good), "{}", subject[0].subject);
        assert!(
            verdict.photos.iter().all(Vec::is_empty),
            "{}: {:?}",
            subject[0].subject,
            verdict.photos
        );
        assert!(verdict.is_ready());
    }
}

/// A square photo set into a canvas of its own corner colours, softened: as a subject in front of a plain background.
fn widened(square: &Rgb, at: f64, tall: bool) -> Rgb {
    let side = square.width();
    let long = side * 2;
    let (w, h) = if tall { (side, long) } else { (long, side) };
    let stretched = imageops::resize(&to_image(square), w, h, imageops::FilterType::Triangle);
    let mut canvas = imageops::fast_blur(&stretched, 40.0);
    let offset = (at * f64::from(side)) as i64;
    let (x, y) = if tall { (0, offset) } else { (offset, 0) };
    imageops::overlay(&mut canvas, &to_image(square), x, y);
    to_rgb(canvas)
}

#[test]
fn the_first_crop_finds_the_subject_of_a_long_photo() {
    let photos = real_photos();
    let mut overlaps = Vec::new();
    for photo in &photos {
        for (at, tall) in [
            (0.0, false),
            (0.5, false),
            (1.0, false),
            (0.0, true),
            (0.4, true),
            (1.0, true),
        ] {
            let canvas = widened(&photo.pixels.resized(256, 256), at, tall);
            let (width, height) = (canvas.width(), canvas.height());
            let scale = f64::from(SUGGEST_PX) / f64::from(width.max(height));
            let thumb = canvas.resized((f64::from(width) * scale) as u32, (f64::from(height) * scale) as u32);
            let CropSquare { x, y, side } = suggest(&thumb, width, height).square();
            assert_eq!(side, 256.0, "the largest square");
            let off = (if tall { y } else { x } - at * 256.0).abs();
            overlaps.push((1.0 - off / 256.0, photo.name.clone(), at, tall));
        }
    }
    if overlaps.is_empty() {
        return;
    }
    overlaps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mean = overlaps.iter().map(|o| o.0).sum::<f64>() / overlaps.len() as f64;
    let worst = &overlaps[..5];
    assert!(
        mean > 0.9 && overlaps[overlaps.len() / 10].0 > 0.75,
        "mean overlap {mean}; worst: {worst:?}"
    );
}
