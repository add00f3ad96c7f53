//! The model that ships with Likeness.

use candle_core::{Device, Tensor};
use tests::repository;
use trainer::dreambooth::learner::Learner;
use trainer::formats;
use trainer::pretrain::autoencoder::reconstruction_psnr_db;

/// Most that its files may take in the repository, in bytes.
const MOST_BYTES: u64 = 24_000_000;

#[test]
fn the_starter_is_small_and_its_autoencoder_gives_a_photograph_back() {
    let folder = repository().join("server/trainer/starter");
    let files = ["unet", "vae", "text_encoder"].into_iter().flat_map(|part| {
        let entries = std::fs::read_dir(folder.join(part)).expect("the starter's folder");
        entries.map(|entry| entry.and_then(|e| e.metadata()).expect("a file").len())
    });
    let bytes: u64 = files.sum();
    assert!(bytes <= MOST_BYTES, "{bytes}");

    let starter = formats::load("starter").expect("the starter");
    assert_eq!(starter.text_encoder_config.vocab_size, 49408);
    let mut learner = Learner::for_drawing(starter, &trainer::device::Device::Cpu).expect("a model");
    let photo = image::open(repository().join("tests/fixtures/cat/00.jpg")).expect("a fixture");
    let side = photo.height();
    let crop = photo.crop_imm((photo.width() - side) / 2, 0, side, side);
    let small = crop
        .resize_exact(128, 128, image::imageops::FilterType::Lanczos3)
        .to_rgb8();
    let pixels: Vec<f32> = small
        .into_raw()
        .into_iter()
        .map(|v| f32::from(v) / 127.5 - 1.0)
        .collect();
    let x =
        Tensor::from_vec(pixels, (1, 128, 128, 3), &Device::Cpu).and_then(|x| x.permute((0, 3, 1, 2))?.contiguous());
    let (_, db) = reconstruction_psnr_db(&mut learner.networks, &x.expect("pixels")).expect("a reconstruction");
    println!("PSNR of the fixture's reconstruction: {:.1} dB", db[0]);
    // Grey everywhere would give about 12 dB.
    assert!(db[0] >= 20.0, "{} dB", db[0]);
}
