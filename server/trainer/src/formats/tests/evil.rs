//! Files that would run a command when Python loads them.

use std::path::Path;

use super::{without_text_encoder, zip};
use crate::formats;

/// `posix.system("id")`
const EVIL: &[u8] = b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.";

#[track_caller]
fn refused(model: &Path, file: &Path) {
    let error = formats::load(&model.to_string_lossy())
        .map(drop)
        .expect_err("it is evil");
    let words = error.to_string();
    assert!(words.contains("refused") && words.contains("posix.system"), "{words}");
    assert!(words.contains(&*file.to_string_lossy()), "{words}");
}

#[test]
fn an_evil_file_is_refused_in_every_form() -> anyhow::Result<()> {
    let (model, text_encoder) = without_text_encoder()?;
    let folder = tempfile::tempdir()?;
    let zipped = folder.path().join("zipped.ckpt");
    zip(&zipped, &[("data.pkl", EVIL), ("version", b"3\n")])?;
    refused(&zipped, &zipped);

    // Before torch 1.6: its magic number, the protocol's version and the system's come first.
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let legacy = [magic, &b"\x80\x02M\xe9\x03."[..], b"\x80\x02}.", EVIL].concat();
    let old = folder.path().join("old.ckpt");
    std::fs::write(&old, &legacy)?;
    refused(&old, &old);

    let weights = text_encoder.join("pytorch_model.bin");
    zip(&weights, &[("data.pkl", EVIL), ("version", b"3\n")])?;
    refused(model.path(), &weights);
    std::fs::write(&weights, &legacy)?;
    refused(model.path(), &weights);
    Ok(())
}
