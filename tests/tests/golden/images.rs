//! Reading, turning, resizing and cutting photos against PIL and torchvision.

use candle_core::{Device, Tensor};
use image::RgbImage;
use trainer::dataset::{self, Frame, Reading};

use super::support::{Table, load, relmax, values};

/// The golden resolution.
const SIDE_PX: u32 = 64;

fn pixels(rgb: &RgbImage) -> Tensor {
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Tensor::from_slice(rgb.as_raw(), (height, width, 3), &Device::Cpu).unwrap()
}

/// Largest difference in levels, and the mean.
fn levels(got: &RgbImage, want: &Tensor) -> (f64, f64) {
    let got = pixels(got);
    assert_eq!(got.dims(), want.dims(), "sizes differ");
    let differences: Vec<f64> = values(&got)
        .iter()
        .zip(values(want))
        .map(|(a, b)| (a - b).abs())
        .collect();
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    (differences.into_iter().fold(0.0, f64::max), mean)
}

fn source() -> RgbImage {
    let path = super::dir().join("images/source_700x523.png");
    dataset::read_photo(&path, Reading::SCRIPT).unwrap().rgb
}

#[test]
fn resizing_and_cutting_agree_with_pil() {
    let golden = load("images/golden.safetensors");
    let landscape = source();
    let portrait = image::imageops::rotate270(&landscape);
    let upscale = image::imageops::crop_imm(&landscape, 300, 180, 40, 30).to_image();
    let frame = |flip, left, top| Frame { flip, left, top };
    let mut table = Table::new("images: levels");
    let mut check = |name: &str, got: &RgbImage| {
        let (most, mean) = levels(got, &golden[name]);
        // Fixed point as in PIL: nothing differs.
        table.check(name, most, 0.0);
        table.check(format!("{name} (mean)"), mean, 0.0);
    };
    check("upscale.source.u8", &upscale);
    for (name, picture) in [
        ("landscape", &landscape),
        ("portrait", &portrait),
        ("upscale", &upscale),
    ] {
        let resized = dataset::resize_shorter_side(picture, SIDE_PX);
        check(&format!("{name}.resize.u8"), &resized);
        let (left, top) = if name == "portrait" { (0, 10) } else { (10, 0) };
        check(
            &format!("{name}.crop.u8"),
            &dataset::cut(picture, SIDE_PX, frame(false, left, top)),
        );
    }
    check(
        "landscape.crop_random_3_9.u8",
        &dataset::cut(&landscape, SIDE_PX, frame(false, 9, 0)),
    );
    let flipped = dataset::cut(&landscape, SIDE_PX, frame(true, 10, 0));
    check("landscape.hflip_then_resize_crop.u8", &flipped);
    table.finish();

    let cut = dataset::cut(&landscape, SIDE_PX, frame(false, 10, 0));
    let tensor = dataset::to_tensor(&cut).unwrap();
    assert!(relmax(&tensor, &golden["landscape.tensor"]) < 1e-6);
}

#[test]
fn the_centre_crop_rounds_as_torchvision() {
    let framing = dataset::Framing {
        resolution_px: SIDE_PX,
        center_crop: true,
        hflip: false,
    };
    let noise = trainer::noise::Noise::new(0);
    let frame = framing.choose((700, 523), &noise, 0);
    assert_eq!((frame.left, frame.top), (10, 0));
    let frame = framing.choose((523, 700), &noise, 0);
    assert_eq!((frame.left, frame.top), (0, 10));
}

#[test]
fn photos_stand_upright_unless_the_script_is_followed() {
    let golden = load("images/golden.safetensors");
    let mut table = Table::new("EXIF orientation: levels");
    for orientation in 1..=8 {
        let path = super::dir().join(format!("images/exif_{orientation}.jpg"));
        for (kind, upright) in [("upright", true), ("raw", false)] {
            let reading = Reading {
                upright,
                ..Reading::SCRIPT
            };
            let photo = dataset::read_photo(&path, reading).unwrap();
            let (most, _) = levels(&photo.rgb, &golden[&format!("exif.{orientation}.{kind}.u8")]);
            // JPEG decoders differ.
            table.check(format!("orientation {orientation}, {kind}"), most, 3.0);
        }
    }
    table.finish();
}

#[test]
fn every_kind_of_pixel_becomes_rgb_as_in_pil() {
    let golden = load("images/golden.safetensors");
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
        let (most, _) = levels(&photo.rgb, &golden[&format!("mode_{mode}.rgb.u8")]);
        table.check(mode, most, tolerance);
    }
    table.finish();
}
