//! Reading, turning, resizing and cutting photos against PIL and torchvision.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use image::imageops::FilterType;
use serde::Deserialize;
use trainer::dataset::{self, Frame, Reading};

use super::support::{Table, json, part_of, relmax, values};

/// The golden resolution.
const SIDE_PX: u32 = 64;
/// With a float between the two passes, what overshoots at hard edges is not clipped there: the mean of the differences
/// and the share of the values that are more than a level off.
const UNCLIPPED: (f64, f64) = (0.2, 0.01);

/// A picture's size before and after, and where its middle is cut out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    input_wh: (u32, u32),
    resized_wh: (u32, u32),
    crop_left: u32,
    crop_top: u32,
}

fn place(name: &str) -> Place {
    let mut info: BTreeMap<String, serde_json::Value> = json("images/info.json");
    serde_json::from_value(info.remove(name).unwrap()).unwrap()
}

fn pixels(rgb: &RgbImage) -> Tensor {
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Tensor::from_slice(rgb.as_raw(), (height, width, 3), &Device::Cpu).unwrap()
}

fn levels_apart(got: &RgbImage, want: &Tensor) -> Vec<f64> {
    let got = pixels(got);
    assert_eq!(got.dims(), want.dims(), "sizes differ");
    let pairs = values(&got).into_iter().zip(values(want));
    pairs.map(|(a, b)| (a - b).abs()).collect()
}

fn mean(differences: &[f64]) -> f64 {
    differences.iter().sum::<f64>() / differences.len() as f64
}

/// Largest difference in levels, and the mean.
fn levels(got: &RgbImage, want: &Tensor) -> (f64, f64) {
    let differences = levels_apart(got, want);
    (differences.iter().copied().fold(0.0, f64::max), mean(&differences))
}

fn source() -> RgbImage {
    let path = super::dir().join("images/source_700x523.png");
    dataset::read_photo(&path, Reading::SCRIPT).unwrap().rgb
}

#[test]
fn resizing_and_cutting_agree_with_pil() {
    let golden = part_of("images/golden.safetensors", "sizes");
    let landscape = source();
    let portrait = image::imageops::rotate270(&landscape);
    let upscale = image::imageops::crop_imm(&landscape, 300, 180, 40, 30).to_image();
    let frame = |flip, left, top| Frame { flip, left, top };
    let mut table = Table::new("images: levels");
    let check = |table: &mut Table, name: &str, got: &RgbImage| {
        let (most, mean) = levels(got, &golden[name]);
        // Fixed point as in PIL: nothing differs.
        table.check(name, most, 0.0);
        table.check(format!("{name} (mean)"), mean, 0.0);
    };
    check(&mut table, "upscale.source.u8", &upscale);
    for (name, picture) in [
        ("landscape", &landscape),
        ("portrait", &portrait),
        ("upscale", &upscale),
    ] {
        let place = place(name);
        table.equal(format!("{name}, size"), &picture.dimensions(), &place.input_wh);
        let resized = dataset::resize_shorter_side(picture, SIDE_PX);
        table.equal(format!("{name}, size after"), &resized.dimensions(), &place.resized_wh);
        check(&mut table, &format!("{name}.resize.u8"), &resized);
        let middle = frame(false, place.crop_left, place.crop_top);
        check(
            &mut table,
            &format!("{name}.crop.u8"),
            &dataset::cut(picture, SIDE_PX, middle),
        );
        if let Some(want) = golden.get(&format!("{name}.lanczos3.u8")) {
            unclipped(
                &mut table,
                &format!("{name}.lanczos3"),
                &page_resized(picture, want),
                want,
            );
        }
    }
    let bicubic = &golden["landscape.bicubic.u8"];
    let (width, height) = size(bicubic);
    let small = image::imageops::resize(&landscape, width, height, FilterType::CatmullRom);
    unclipped(&mut table, "landscape.bicubic", &small, bicubic);
    // Not rounded to 8 bits there: at most a level, and what f16 rounds.
    let resized = dataset::resize_shorter_side(&landscape, SIDE_PX);
    let exact = golden["landscape.resize_float_antialias"].to_dtype(DType::F64).unwrap();
    let off = levels_apart(&resized, &exact.permute((1, 2, 0)).unwrap());
    table.check(
        "landscape.resize_float_antialias",
        off.iter().copied().fold(0.0, f64::max),
        1.0 + 1.0 / 16.0,
    );
    table.check("landscape.resize_float_antialias (mean)", mean(&off), 0.35);
    check(
        &mut table,
        "landscape.crop_random_3_9.u8",
        &dataset::cut(&landscape, SIDE_PX, frame(false, 9, 0)),
    );
    let flipped = dataset::cut(&landscape, SIDE_PX, frame(true, 10, 0));
    check(&mut table, "landscape.hflip_then_resize_crop.u8", &flipped);
    let cut = dataset::cut(&landscape, SIDE_PX, frame(false, 10, 0));
    let tensor = dataset::to_tensor(&cut).unwrap();
    table.check("landscape.tensor", relmax(&tensor, &golden["landscape.tensor"]), 1e-6);
    table.finish();
}

fn size(picture: &Tensor) -> (u32, u32) {
    let (height, width, _) = picture.dims3().unwrap();
    (width as u32, height as u32)
}

/// As the page cuts photos out, to the size of `want`.
fn page_resized(picture: &RgbImage, want: &Tensor) -> RgbImage {
    let whole = app::pixels::Rgb::new(picture.width(), picture.height(), picture.as_raw().clone()).unwrap();
    let (width, height) = size(want);
    let resized = whole.resized(width, height);
    RgbImage::from_raw(width, height, resized.pixels().to_vec()).unwrap()
}

fn unclipped(table: &mut Table, name: &str, got: &RgbImage, want: &Tensor) {
    let off = levels_apart(got, want);
    let more = off.iter().filter(|difference| **difference > 1.0).count();
    table.check(format!("{name} (mean)"), mean(&off), UNCLIPPED.0);
    table.check(format!("{name} (share)"), more as f64 / off.len() as f64, UNCLIPPED.1);
}

#[test]
fn the_centre_crop_rounds_as_torchvision() {
    let framing = dataset::Framing {
        resolution_px: SIDE_PX,
        center_crop: true,
        hflip: false,
    };
    let noise = trainer::noise::Noise::new(0);
    for name in ["landscape", "portrait", "upscale"] {
        let place = place(name);
        let frame = framing.choose(place.input_wh, &noise, 0);
        assert_eq!((frame.left, frame.top), (place.crop_left, place.crop_top), "{name}");
    }
}

#[test]
fn photos_stand_upright_unless_the_script_is_followed() {
    let golden = part_of("images/golden.safetensors", "turned");
    let mut table = Table::new("EXIF orientation: levels");
    for orientation in 1..=8 {
        let path = super::dir().join(format!("images/exif_{orientation}.jpg"));
        for (kind, upright) in [("upright", true), ("raw", false)] {
            let reading = Reading {
                upright,
                ..Reading::SCRIPT
            };
            let photo = dataset::read_photo(&path, reading).unwrap();
            let (most, _) = levels(&photo.rgb, &golden[format!("exif.{orientation}.{kind}.u8").as_str()]);
            // JPEG decoders differ.
            table.check(format!("orientation {orientation}, {kind}"), most, 3.0);
            if upright {
                let (most, _) = levels(&photo.rgb, &golden["exif.upright.u8"]);
                table.check(format!("orientation {orientation} against all"), most, 3.0);
            }
        }
    }
    table.finish();
}

#[test]
fn every_kind_of_pixel_becomes_rgb_as_in_pil() {
    let golden = part_of("images/golden.safetensors", "kinds of pixel");
    let mut table = Table::new("pixel formats: levels");
    for (mode, ending, tolerance) in [
        ("rgba", "png", 0.0),
        ("l", "png", 0.0),
        ("la", "png", 0.0),
        ("p", "png", 0.0),
        ("one", "png", 0.0),
        ("i16", "png", 0.0),
        ("cmyk", "jpg", 3.0),
    ] {
        let path = super::dir().join(format!("images/mode_{mode}.{ending}"));
        let photo = dataset::read_photo(&path, Reading::SCRIPT).unwrap();
        let (most, _) = levels(&photo.rgb, &golden[format!("mode_{mode}.rgb.u8").as_str()]);
        table.check(mode, most, tolerance);
    }
    table.finish();
}
