//! The model that ships with Likeness.

use candle_core::Tensor;
use tests::autoencoder::{mean_psnr_db, middle_of, pixels, reconstruct};
use tests::repository;
use trainer::dataset::{self, Reading};
use trainer::device::Device;
use trainer::dreambooth::learner::Learner;
use trainer::formats;

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
    let photos = reconstruct(&repository().join("tests/fixtures/cat")).expect("reconstructions");
    let mean = mean_psnr_db(&photos);
    println!("PSNR of the fixture's reconstructions: {mean:.1} dB");
    // Grey everywhere would give about 12 dB.
    assert!(mean >= 22.0, "{mean} dB");
}

/// A tile's norms have statistics of their own, so that its tone is a little off.
#[test]
fn a_picture_decoded_in_tiles_is_the_whole_one() {
    let starter = formats::load("starter").expect("the starter");
    let mut networks = Learner::for_drawing(starter, &Device::Cpu).expect("a learner").networks;
    let listing = dataset::list(&repository().join("tests/fixtures/cat")).expect("photos");
    let levels = |x: &Tensor| -> Vec<f32> {
        let values: Vec<f32> = x.flatten_all().and_then(|x| x.to_vec1()).expect("values");
        values.iter().map(|v| (v.clamp(-1.0, 1.0) + 1.0) * 127.5).collect()
    };
    // Side of a tile, and how many levels of 255 it may be off on average and at most.
    let tiles = [(24, 2.5, 12.0), (24, 2.5, 12.0), (16, 4.0, 30.0), (16, 4.0, 30.0)];
    for (path, (side, on_average, at_most)) in listing.photos.iter().zip(tiles) {
        let photo = dataset::read_photo(path, Reading::SCRIPT).expect("a photo").rgb;
        let z = networks
            .encode(&pixels(&middle_of(&photo, 256)).expect("pixels"))
            .expect("latents")
            .mean;
        let whole = levels(&networks.decode(&z).expect("the whole"));
        let tiled = levels(&networks.decode_in_tiles(&z, side).expect("tiles"));
        let off: Vec<f32> = whole.iter().zip(&tiled).map(|(a, b)| (a - b).abs()).collect();
        let mean = off.iter().sum::<f32>() / off.len() as f32;
        let worst = off.iter().fold(0f32, |most, off| most.max(*off));
        println!("tiles of {side} latents of 32: {mean:.2} levels of 255 off on average, {worst:.1} at most");
        assert!(mean <= on_average && worst <= at_most, "{mean} {worst}");
    }
}
