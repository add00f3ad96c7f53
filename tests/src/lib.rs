//! What the whole-system tests share: where the executables are, and a server to talk to.

pub mod autoencoder;
pub mod browser;
pub mod dreambooth;
pub mod hub;
pub mod server;
pub mod sheet;

use std::path::{Path, PathBuf};

/// Root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").components().collect()
}

/// A built executable, such as `likeness`. Tests of the whole product run what was built before them:
/// `cargo build --release` first.
pub fn executable(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let path = repository().join(target).join("release").join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --release` first",
        path.display()
    );
    path
}
