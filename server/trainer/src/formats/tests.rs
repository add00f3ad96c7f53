//! Torch's files that are made here for the purpose.

mod evil;
mod torch_folder;

use std::path::{Path, PathBuf};

use super::{Width, save_diffusers};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(path)
}

/// A copy of the small reference model without its text encoder's weights, and the folder where these were.
fn without_text_encoder() -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let model = super::load(&repository("golden/tiny-sd").to_string_lossy())?;
    save_diffusers(folder.path(), &model, Width::Full)?;
    let text_encoder = folder.path().join("text_encoder");
    std::fs::remove_file(text_encoder.join("model.safetensors"))?;
    Ok((folder, text_encoder))
}

/// A zip as `torch.save` lays it out: everything in one folder, nothing compressed.
fn zip(path: &Path, members: &[(&str, &[u8])]) -> anyhow::Result<()> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path)?);
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in members {
        zip.start_file(format!("archive/{name}"), stored)?;
        zip.write_all(bytes)?;
    }
    zip.finish()?;
    Ok(())
}
