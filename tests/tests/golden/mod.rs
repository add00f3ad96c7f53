//! Comparison with the reference numbers of `tests/golden/` (see its MANIFEST.md), or of `$GOLDEN_DIR` when set.

mod bnb;
mod convert;
pub mod engine;
mod forward;
mod gradients;
mod images;
mod lr;
mod rng;
mod samplers;
pub mod support;
mod tokenizer;
mod train;
mod txt2img;

use std::path::PathBuf;

/// Root of the reference data.
pub fn dir() -> PathBuf {
    std::env::var_os("GOLDEN_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden"),
        PathBuf::from,
    )
}

#[test]
fn the_reference_data_is_there() {
    assert!(dir().join("tiny-sd/model_index.json").is_file(), "{}", dir().display());
}
