//! The model that ships with Likeness.

use tests::autoencoder::{mean_psnr_db, reconstruct};
use tests::repository;
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
