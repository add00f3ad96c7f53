//! Files that are either whole or not there: written to a scratch name, flushed, renamed, the folder flushed.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// A file could not be written, or not read back.
#[derive(Debug, thiserror::Error)]
#[error("cannot read or write {}", .path.display())]
pub struct StoreError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl StoreError {
    /// The disk or the quota is full, which only the person can change.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    |source| StoreError {
        path: path.into(),
        source,
    }
}

/// Puts `bytes` at `path`; the folder is made when it is missing.
///
/// # Errors
/// When anything of it fails; what was at `path` before is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_atomic_with(path, |out| out.write_all(bytes))
}

/// As `write_atomic`, with the content written piece by piece.
///
/// # Errors
/// When anything of it fails; what was at `path` before is then still there.
pub fn write_atomic_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), StoreError> {
    let folder = parent(path);
    make_folder(&folder)?;
    let scratch = scratch_name(path);
    let filled = File::create(&scratch).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()
    });
    if let Err(source) = filled.and_then(|()| std::fs::rename(&scratch, path)) {
        // The scratch file is of no use; that it may stay behind is no second error.
        let _removed = std::fs::remove_file(&scratch);
        return Err(failed(path)(source));
    }
    sync_folder(&folder)
}

/// Puts the content of the file `from` at `to` too: as a second name where the file system can, else as a copy.
///
/// # Errors
/// When neither can be done; what was at `to` before is then still there.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let folder = parent(to);
    make_folder(&folder)?;
    let scratch = scratch_name(to);
    match std::fs::remove_file(&scratch) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(&scratch)(source)),
        _ => {}
    }
    if std::fs::hard_link(from, &scratch).is_err() {
        let bytes = std::fs::read(from).map_err(failed(from))?;
        return write_atomic(to, &bytes);
    }
    std::fs::rename(&scratch, to).map_err(failed(to))?;
    // Renaming one name of a file to another name of the same file does nothing, and leaves the scratch name.
    match std::fs::remove_file(&scratch) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(&scratch)(source)),
        _ => {}
    }
    sync_folder(&folder)
}

/// Makes a folder and its parents.
///
/// # Errors
/// When that fails.
pub fn make_folder(folder: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(folder).map_err(failed(folder))
}

/// Flushes the names in a folder, so that a rename survives a power cut.
///
/// # Errors
/// When that fails.
pub fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|opened| opened.sync_all())
        .map_err(failed(folder))
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.into(),
        _ => PathBuf::from("."),
    }
}

/// Starts with a dot, so that data set folders skip it, and is the same each time, so that leftovers don't pile up.
fn scratch_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parent(path).join(format!(".{name}.writing"))
}

/// Length and lower-case hex SHA-256.
///
/// # Errors
/// When the file cannot be read.
pub fn hash_file(path: &Path) -> Result<(u64, String), StoreError> {
    hash_growing(path, || true)
}

/// The same of a file that is still written, always at its end, until it `is_whole`.
///
/// # Errors
/// When the file cannot be read.
pub fn hash_growing(path: &Path, is_whole: impl Fn() -> bool) -> Result<(u64, String), StoreError> {
    let failed = |source: io::Error| StoreError {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        // Asked before reading: what is written in between is read by the next turn.
        let whole = is_whole();
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 && whole {
            return Ok((bytes, hex::encode(hash.finalize())));
        }
        if read == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_file_gets_a_second_name_which_outlives_the_first() {
        let folder = tempfile::tempdir().expect("folder");
        let (from, to) = (folder.path().join("a"), folder.path().join("deep/b"));
        std::fs::write(&from, b"content").expect("writes");
        for _again in 0..2 {
            link_or_copy(&from, &to).expect("links");
        }
        std::fs::remove_file(&from).expect("removes");
        assert_eq!(std::fs::read(&to).expect("is there"), b"content");
        assert_eq!(
            std::fs::read_dir(parent(&to)).expect("lists").count(),
            1,
            "no scratch file"
        );
    }

    #[test]
    fn a_file_is_hashed_while_it_grows_to_its_end() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("grows");
        let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let mut file = File::create(&path).expect("makes");
        let whole = AtomicBool::new(false);
        let hashed = std::thread::scope(|scope| {
            let hashing = scope.spawn(|| hash_growing(&path, || whole.load(Ordering::SeqCst)));
            for part in content.chunks(700_000) {
                file.write_all(part).expect("writes");
                std::thread::sleep(Duration::from_millis(10));
            }
            whole.store(true, Ordering::SeqCst);
            hashing.join().expect("no panic").expect("reads")
        });
        assert_eq!(hashed, (3_000_000, hex::encode(Sha256::digest(&content))));
        assert_eq!(hash_file(&path).expect("reads"), hashed);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_scratch() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("deep/state");
        write_atomic(&path, b"old").expect("first");
        let torn = write_atomic_with(&path, |out| {
            out.write_all(b"half of the n")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(torn.expect_err("fails").is_full());
        assert_eq!(std::fs::read(&path).expect("still there"), b"old");
        assert_eq!(std::fs::read_dir(parent(&path)).expect("lists").count(), 1);
    }
}
