//! Comparison with the reference numbers of `tests/golden/` (see its MANIFEST.md), or of `$GOLDEN_DIR` when set.

mod bnb;
pub mod convert;
mod coverage;
mod eight_bit;
pub mod engine;
mod forward;
mod gradients;
mod images;
mod low_memory;
mod lr;
mod properties;
mod rng;
mod samplers;
mod sd21;
pub mod support;
mod tokenizer;
mod train;
mod txt2img;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Root of the reference data.
pub fn dir() -> PathBuf {
    std::env::var_os("GOLDEN_DIR").map_or_else(own_dir, PathBuf::from)
}

/// The set in the repository, for tests whose limits were measured on it.
pub fn own_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The folder that holds `item`: a set named by `$GOLDEN_DIR` may be without what was made here.
pub fn dir_of(item: &str) -> PathBuf {
    let named = dir().join(item);
    match item == "tiny-sd21" && !named.exists() {
        true => own_dir().join(item),
        false => named,
    }
}

/// A comparison of this very program with other reference data.
fn compared_with(folder: &Path) -> (bool, String) {
    let test = "golden::bnb::one_update_from_a_stored_state";
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("GOLDEN_DIR", folder)
        .output()
        .unwrap();
    (ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned())
}

#[test]
fn reference_data_of_another_folder_is_compared_with_in_a_table() {
    let (same, printed) = compared_with(&dir());
    assert!(same, "{printed}");
    let head = printed.lines().find(|line| line.starts_with("item"));
    let head: Vec<&str> = head.expect("a table").split_whitespace().collect();
    assert_eq!(head, ["item", "error", "tolerance"]);

    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(other.path().join("bnb")).unwrap();
    let file = "bnb/bnb.safetensors";
    let mut bytes = std::fs::read(dir().join(file)).unwrap();
    std::fs::write(other.path().join(file), &bytes).unwrap();
    assert!(
        !compared_with(other.path()).0,
        "what is missing there comes from nowhere else"
    );
    let settings = "bnb/bnb.json";
    std::fs::copy(dir().join(settings), other.path().join(settings)).unwrap();
    assert!(compared_with(other.path()).0, "the same data in another folder");
    // Numbers begin after the header, whose length comes first.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for byte in bytes[8 + header..].iter_mut().step_by(64) {
        *byte ^= 0x10;
    }
    std::fs::write(other.path().join(file), &bytes).unwrap();
    assert!(!compared_with(other.path()).0, "wrong numbers are not noticed");
}

#[test]
fn the_reference_data_is_there() {
    assert!(dir().join("tiny-sd/model_index.json").is_file(), "{}", dir().display());
}
