//! Golden pictures: `tests/golden/images`, made with PIL and torchvision.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::*;

fn golden_dir() -> PathBuf {
    std::env::var_os("GOLDEN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden"),
        PathBuf::from,
    )
}

fn file(name: &str) -> Vec<u8> {
    let path = golden_dir().join("images").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn golden(name: &str) -> Rgb {
    let bytes = file("golden.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = tensors.tensor(name).expect(name);
    let [height, width, 3] = *tensor.shape() else {
        panic!("{name} is not [h, w, 3]");
    };
    Rgb::new(width as u32, height as u32, tensor.data().to_vec()).expect("not empty")
}

fn decode(name: &str) -> Photo {
    Photo::decode(&file(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Mean and largest difference in levels, and the share of values that differ by more than one.
fn differences(a: &Rgb, b: &Rgb) -> (f64, u8, f64) {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let all: Vec<u8> = a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b)).collect();
    let count = all.len() as f64;
    (
        all.iter().map(|&d| f64::from(d)).sum::<f64>() / count,
        all.iter().copied().max().unwrap_or(0),
        all.iter().filter(|&&d| d > 1).count() as f64 / count,
    )
}

fn whole(photo: &Photo) -> Rgb {
    let (width, height) = photo.size_px();
    photo.fitted(width.max(height))
}

#[test]
fn lanczos3_agrees_with_pil() {
    let source = whole(&decode("source_700x523.png"));
    for (name, source) in [
        ("landscape.lanczos3.u8", source),
        ("upscale.lanczos3.u8", golden("upscale.source.u8")),
    ] {
        let (mean, _, beyond_one) = differences(&source.resized(85, 64), &golden(name));
        assert!(
            mean < 0.2 && beyond_one < 0.01,
            "{name}: mean {mean}, {beyond_one} beyond 1"
        );
    }
}

#[test]
fn every_exif_orientation_is_applied_exactly_once() {
    let upright = golden("exif.upright.u8");
    for orientation in 1..=8 {
        let photo = decode(&format!("exif_{orientation}.jpg"));
        assert_eq!(
            photo.size_px(),
            (upright.width, upright.height),
            "orientation {orientation}"
        );
        let (_, most, _) = differences(&whole(&photo), &upright);
        assert!(most <= 3, "orientation {orientation}: {most} levels");
    }
}

#[test]
fn a_crop_is_given_in_upright_pixels_for_every_orientation() {
    let upright = golden("exif.upright.u8");
    let reference = Photo {
        raw: upright,
        orientation: Orientation::NoTransforms,
        has_alpha: false,
    };
    // Off the middle both ways, so that a flip or a turn the wrong way shows.
    let crop = CropSquare {
        x: 14.0,
        y: 2.0,
        side: 9.0,
    };
    let wanted = reference.cropped(crop, 9).expect("inside");
    for orientation in 1..=8 {
        let got = decode(&format!("exif_{orientation}.jpg"))
            .cropped(crop, 9)
            .expect("inside");
        let (_, most, _) = differences(&got, &wanted);
        assert!(most <= 3, "orientation {orientation}: {most} levels");
    }
}

#[test]
fn grey_palette_and_cmyk_become_rgb() {
    for (name, tolerance) in [
        ("mode_l.png", 0),
        ("mode_p.png", 0),
        ("mode_one.png", 0),
        ("mode_cmyk.jpg", 3),
    ] {
        let stem = name.split('.').next().expect("a stem");
        let (_, most, _) = differences(&whole(&decode(name)), &golden(&format!("{stem}.rgb.u8")));
        assert!(most <= tolerance, "{name}: {most} levels");
    }
}

#[test]
fn sixteen_bits_are_scaled_to_eight() {
    // PIL clips to 255, which makes nearly all of a 16-bit picture white; here the picture is kept.
    let ramp: Vec<u8> = (0..256_u16).flat_map(|level| (level * 257).to_ne_bytes()).collect();
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&ramp, 16, 16, ExtendedColorType::L16)
        .expect("encodes");
    let photo = Photo::decode(&png).expect("decodes");
    let wanted: Vec<u8> = (0..=255).flat_map(|level| [level; 3]).collect();
    assert_eq!(photo.raw.pixels, wanted);
    assert!(
        whole(&decode("mode_i16.png")).pixels.iter().all(|&value| value < 8),
        "dark stays dark"
    );
}

#[test]
fn transparent_parts_are_laid_on_white() {
    let pixels = [[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128], [9, 9, 9, 255]].concat();
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&pixels, 2, 2, ExtendedColorType::Rgba8)
        .expect("encodes");
    let photo = Photo::decode(&png).expect("decodes");
    assert!(photo.has_alpha());
    assert_eq!(photo.raw.pixels, [[200, 0, 0], [255; 3], [127; 3], [9; 3]].concat());

    let opaque = [[1, 2, 3, 255]; 4].concat();
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&opaque, 2, 2, ExtendedColorType::Rgba8)
        .expect("encodes");
    assert!(
        !Photo::decode(&png).expect("decodes").has_alpha(),
        "no part is transparent"
    );
}

#[test]
fn an_upload_holds_pixels_and_nothing_else_and_is_the_same_every_time() {
    let crop = CropSquare {
        x: 100.0,
        y: 10.0,
        side: 500.0,
    };
    let pixels = decode("source_700x523.png").cropped(crop, 128).expect("inside");
    let png = pixels.to_png();
    assert_eq!(png, pixels.to_png());
    let mut chunks = Vec::new();
    let mut at = 8;
    while let Some(head) = png.get(at..at + 8) {
        chunks.push(String::from_utf8_lossy(&head[4..]).into_owned());
        at += 12 + u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    }
    chunks.dedup();
    assert_eq!(chunks, ["IHDR", "IDAT", "IEND"]);
    assert_eq!(whole(&Photo::decode(&png).expect("decodes")), pixels);
    // The name of a known crop: a change here uploads everyone's photos again and is worth a second thought.
    assert_eq!(sha256_hex(b"abc")[..16], *"ba7816bf8f01cfea");
}

#[test]
fn what_is_no_photo_says_so_and_what_to_do() {
    let error = |bytes: &[u8]| Photo::decode(bytes).err().map(|e| e.to_string()).unwrap_or_default();
    assert_eq!(
        error(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        "This file is not a photo we can read (HEIC, as iPhones store photos). Export it as JPEG and drop it again."
    );
    assert_eq!(
        error(b"PK\x03\x04"),
        "This file is not a photo we can read (a zip archive). Unpack it and drop the photos inside."
    );
    assert!(error(b"").starts_with("This file is empty."));
}

#[test]
fn a_photo_cut_short_is_refused_and_one_with_a_trailer_is_not() {
    let jpeg = whole(&decode("source_700x523.png")).to_jpeg(85);
    assert!(Photo::decode(&jpeg).is_ok());
    for kept in [jpeg.len() - 2, jpeg.len() / 2, 700, 30, 5] {
        let error = Photo::decode(&jpeg[..kept]).err();
        assert_eq!(error, Some(PhotoError::CutShort), "{kept} of {} bytes", jpeg.len());
    }
    let motion_photo = [&jpeg[..], b"\0\0\0\x18ftypmp42"].concat();
    assert!(Photo::decode(&motion_photo).is_ok());
    let png = file("source_700x523.png");
    assert!(Photo::decode(&png[..png.len() / 2]).is_err());
}

#[test]
fn a_photo_beyond_the_limit_is_refused_before_it_is_decoded() {
    // A PNG header that promises 20,000 x 20,000 pixels.
    let mut png = file("source_700x523.png");
    png[16..24].copy_from_slice(&[0, 0, 0x4e, 0x20, 0, 0, 0x4e, 0x20]);
    let crc = png_crc(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let error = Photo::decode(&png).err();
    assert_eq!(
        error,
        Some(PhotoError::TooLarge {
            megapixels: 400,
            max: 100
        })
    );
}

fn png_crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn a_crop_outside_is_refused() {
    let photo = decode("source_700x523.png");
    let crop = CropSquare {
        x: 300.0,
        y: 0.0,
        side: 523.0,
    };
    assert_eq!(photo.cropped(crop, 64).err().map(|e| e.code()), Some("bad_crop"));
}

#[test]
fn hashes_know_a_mirror_image_and_survive_text() {
    let image = whole(&decode("source_700x523.png"));
    let mirrored = image.clone().oriented(Orientation::FlipHorizontal);
    assert!(hash(&image).distance(&hash(&mirrored)) <= 4);
    let tent = |up: bool| {
        let level = |x: u32| (x.min(63 - x) * 8) as u8;
        let row = (0..64).flat_map(|x| [if up { level(x) } else { 255 - level(x) }; 3]);
        Rgb::new(64, 64, row.collect::<Vec<u8>>().repeat(64)).expect("not empty")
    };
    assert!(hash(&tent(true)).distance(&hash(&tent(false))) > 200);
    let text = String::from(hash(&image));
    assert_eq!(PhotoHash::try_from(text), Ok(hash(&image)));
    assert!(PhotoHash::try_from("é".repeat(64)).is_err());
}
