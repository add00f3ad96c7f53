//! Writing a file so that under its name there is the whole of it or nothing.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;

use super::error::ModelError;

/// What a file is written to: buffered, seekable.
pub(super) type Out = BufWriter<File>;

/// Between two times that what was written so far is sent to disk.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Whether a file on its way is whole.
pub(super) struct Written(Receiver<()>);

impl Written {
    pub fn is_whole(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Until it is, or never will be.
    pub fn wait(&self) {
        // Nothing is ever sent: the other end goes.
        let _ = self.0.recv();
    }
}

/// Lets `write` fill a scratch file beside `path`, flushes it to disk, lets `check` look at it, then names it `path`.
///
/// # Errors
/// Those of `write` and `check`, and of the file system; `path` is then as it was.
pub(super) fn write(
    path: &Path,
    write: impl FnOnce(&mut Out) -> Result<(), ModelError>,
    check: impl FnOnce(&Path) -> Result<(), ModelError> + Send,
) -> Result<(), ModelError> {
    write_beside(path, write, |_, _| Ok(()), check)
}

/// As [`write`], with `beside` looking at the scratch file while it grows. Answers what it found.
///
/// # Errors
/// Those of `write`, `beside` and `check`, and of the file system; `path` is then as it was.
pub(super) fn write_beside<T: Send>(
    path: &Path,
    write: impl FnOnce(&mut Out) -> Result<(), ModelError>,
    beside: impl FnOnce(&Path, &Written) -> Result<T, ModelError> + Send,
    check: impl FnOnce(&Path) -> Result<(), ModelError> + Send,
) -> Result<T, ModelError> {
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
        // A name in .safetensors says how it is read for the check; other files say it themselves.
        .suffix(&format!(".{extension}"))
        // As any file; the umask takes from it.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, scratch.as_file().try_clone().map_err(failed)?);
    let found = std::thread::scope(|scope| {
        let (whole, written) = channel();
        let found = scope.spawn(|| {
            let written = Written(written);
            beside(scratch.path(), &written)
        });
        flushing(scratch.as_file(), || write(&mut out))?;
        out.flush().map_err(failed)?;
        drop(whole);
        let (synced, checked) = rayon::join(|| scratch.as_file().sync_all(), || check(scratch.path()));
        synced.map_err(failed)?;
        checked?;
        found.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    scratch.persist(path).map_err(|e| failed(e.error))?;
    // The name itself is on disk once its folder is.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    Ok(found)
}

/// While `work` writes, what it wrote goes to disk, so that in the end there is little to wait for.
fn flushing<T>(file: &File, work: impl FnOnce() -> T) -> T {
    let (done, more) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while more.recv_timeout(FLUSH_EVERY) == Err(RecvTimeoutError::Timeout) {
                // Whether it succeeds is seen at the end.
                let _ = file.sync_data();
            }
        });
        let worked = work();
        drop(done);
        worked
    })
}
