//! Writing a file so that under its name there is the whole of it or nothing.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::ModelError;

/// What a file is written to: buffered, seekable.
pub(super) type Out = BufWriter<File>;

/// Lets `write` fill a scratch file beside `path`, flushes it to disk, lets `check` look at it, then names it `path`.
///
/// # Errors
/// Those of `write` and `check`, and of the file system; `path` is then as it was.
pub(super) fn write(
    path: &Path,
    write: impl FnOnce(&mut Out) -> Result<(), ModelError>,
    check: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let failed = |source| ModelError::Write {
        path: path.into(),
        source,
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let scratch = tempfile::Builder::new()
        .prefix(".likeness-")
        // The extension says how it is read for the check.
        .suffix(&format!(".{extension}"))
        // As any file; the umask takes from it.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, scratch.as_file().try_clone().map_err(failed)?);
    write(&mut out)?;
    out.flush().map_err(failed)?;
    scratch.as_file().sync_all().map_err(failed)?;
    check(scratch.path())?;
    scratch.persist(path).map_err(|e| failed(e.error))?;
    // The name itself is on disk once its folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}
