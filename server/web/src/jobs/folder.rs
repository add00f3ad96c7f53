//! A job's folder on disk and its event log: the truth about a run, for the server, the trainer and the next server.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use app::event::{Event, EventKind};
use app::recipe::Recipe;
use rustix::fs::{FlockOperation, flock};

use crate::db::now_ms;

/// Largest part of the log that is read at once, and so the longest line.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: byte {offset}: not an event")]
    NotAnEvent {
        path: PathBuf,
        offset: u64,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{path}: the trainer holds the lock")]
    Locked { path: PathBuf },
    #[error("a folder task ended early")]
    Task(#[from] tokio::task::JoinError),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FolderError + '_ {
    move |source| FolderError::Io {
        path: path.to_owned(),
        source,
    }
}

/// `DATA/jobs/<id>/`.
#[derive(Clone, Debug)]
pub struct JobFolder(PathBuf);

impl JobFolder {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn log(&self) -> PathBuf {
        self.0.join("events.jsonl")
    }

    /// Lays a new job's folder out under a scratch name and renames it: it is there whole or not at all.
    /// `photos[concept][position]` are the stored files, in order.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn create(&self, recipe: &Recipe, photos: &[Vec<PathBuf>]) -> Result<(), FolderError> {
        let parent = self.0.parent().unwrap_or_else(|| Path::new("."));
        let scratch = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(parent)
            .map_err(at(parent))?;
        for (concept, files) in photos.iter().enumerate() {
            let dir = scratch.path().join(format!("photos/{concept}"));
            fs::create_dir_all(&dir).map_err(at(&dir))?;
            for (position, file) in files.iter().enumerate() {
                let sha256 = file.file_stem().unwrap_or_default().to_string_lossy();
                let name = format!("{position:03}-{}.png", sha256.get(..8).unwrap_or_default());
                let copy = dir.join(name);
                // A link costs nothing; across file systems it takes a copy.
                if fs::hard_link(file, &copy).is_err() {
                    fs::copy(file, &copy).map_err(at(file))?;
                }
            }
        }
        let json = serde_json::to_vec_pretty(recipe).map_err(|e| at(&self.0)(e.into()))?;
        for (name, bytes) in [("recipe.json", json), ("events.jsonl", line(1, EventKind::Queued))] {
            let path = scratch.path().join(name);
            crate::photos::write_atomic(&path, &bytes).map_err(at(&path))?;
        }
        let scratch = scratch.keep();
        if let Err(source) = fs::rename(&scratch, &self.0) {
            fs::remove_dir_all(&scratch).map_err(at(&scratch))?;
            return Err(at(&self.0)(source));
        }
        sync_dir(parent)
    }

    /// # Errors
    /// When it is missing or not a recipe.
    pub fn recipe(&self) -> Result<Recipe, FolderError> {
        let path = self.0.join("recipe.json");
        let file = File::open(&path).map_err(at(&path))?;
        serde_json::from_reader(io::BufReader::new(file)).map_err(|e| at(&path)(e.into()))
    }

    pub fn reader(&self) -> LogReader {
        LogReader {
            path: self.log(),
            offset: 0,
        }
    }

    /// Is a trainer at work here? Only to be asked when no trainer is about to start: asking takes the lock for a
    /// moment.
    pub fn is_locked(&self) -> bool {
        matches!(self.lock(), Err(FolderError::Locked { .. }))
    }

    fn lock(&self) -> Result<File, FolderError> {
        let path = self.0.join("lock");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(at(&path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::Locked { path }),
            Err(errno) => Err(at(&path)(errno.into())),
        }
    }

    /// Adds an event after the last whole line; on disk when it returns.
    ///
    /// # Errors
    /// When a trainer holds the lock, or the log cannot be read or written.
    pub fn append(&self, kind: EventKind) -> Result<(), FolderError> {
        let _lock = self.lock()?;
        let mut reader = self.reader();
        let mut last_seq = 0;
        loop {
            let events = reader.next_batch(usize::MAX)?;
            let Some(last) = events.last() else { break };
            last_seq = last.seq;
        }
        let path = self.log();
        let write = || {
            let mut file = OpenOptions::new().write(true).open(&path)?;
            // A torn last line is nobody's event.
            file.set_len(reader.offset)?;
            file.seek(SeekFrom::End(0))?;
            file.write_all(&line(last_seq + 1, kind))?;
            file.sync_all()
        };
        write().map_err(at(&path))
    }

    pub fn stop_file(&self) -> PathBuf {
        self.0.join("stop")
    }

    /// Asks the trainer to stop: it looks for this file at every step.
    ///
    /// # Errors
    /// What the file system says.
    pub fn ask_to_stop(&self) -> Result<(), FolderError> {
        let path = self.stop_file();
        File::create(&path).map_err(at(&path))?;
        sync_dir(&self.0)
    }

    /// The end of what the trainer said on stderr, at most `lines` lines.
    pub fn trainer_said(&self, lines: usize) -> Option<String> {
        let mut file = File::open(self.0.join("trainer.log")).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096))).ok()?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).ok()?;
        let text = String::from_utf8_lossy(&tail);
        let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = all[all.len().saturating_sub(lines)..].join("\n");
        (!last.is_empty()).then_some(last)
    }

    /// Renames the folder out of the way, then deletes it: a crash half-way leaves no half job.
    ///
    /// # Errors
    /// What the file system says.
    pub fn delete(&self) -> Result<(), FolderError> {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        let trash = self.0.with_file_name(format!(".trash-{name}"));
        match fs::rename(&self.0, &trash) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => done.map_err(at(&self.0))?,
        }
        fs::remove_dir_all(&trash).map_err(at(&trash))
    }
}

fn line(seq: u64, kind: EventKind) -> Vec<u8> {
    let at_ms = now_ms();
    let mut line = serde_json::to_vec(&Event { seq, at_ms, kind }).unwrap_or_default();
    line.push(b'\n');
    line
}

fn sync_dir(path: &Path) -> Result<(), FolderError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at(path))
}

/// Reads a log from where it stopped last time, whole lines only. The disk is the buffer: however slow a viewer is,
/// nothing piles up for it.
#[derive(Clone, Debug)]
pub struct LogReader {
    path: PathBuf,
    offset: u64,
}

impl LogReader {
    /// The next events, at most `max` and at most a chunk's worth. Empty: nothing new, for now.
    ///
    /// # Errors
    /// When the log cannot be read or a whole line is not an event.
    pub fn next_batch(&mut self, max: usize) -> Result<Vec<Event>, FolderError> {
        let chunk = self.read_chunk().map_err(at(&self.path))?;
        let mut events = Vec::new();
        for line in chunk.split_inclusive(|byte| *byte == b'\n') {
            if events.len() == max || !line.ends_with(b"\n") {
                break;
            }
            let event = serde_json::from_slice(line).map_err(|e| self.not_an_event(e.into()))?;
            events.push(event);
            self.offset += line.len() as u64;
        }
        if events.is_empty() && chunk.len() == CHUNK_BYTES {
            return Err(self.not_an_event("the line is too long".into()));
        }
        Ok(events)
    }

    fn read_chunk(&self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut chunk = Vec::new();
        file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        Ok(chunk)
    }

    fn not_an_event(&self, source: Box<dyn std::error::Error + Send + Sync>) -> FolderError {
        FolderError::NotAnEvent {
            path: self.path.clone(),
            offset: self.offset,
            source,
        }
    }

    /// Skips the events up to and including `seq`.
    ///
    /// # Errors
    /// As `next_batch`.
    pub fn skip_to(&mut self, seq: u64) -> Result<(), FolderError> {
        loop {
            let before = self.offset;
            let events = self.next_batch(usize::MAX)?;
            let Some(last) = events.last() else { return Ok(()) };
            if last.seq > seq {
                let known = events.iter().take_while(|e| e.seq <= seq).count();
                self.offset = before;
                if known > 0 {
                    self.next_batch(known)?;
                }
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, JobFolder) {
        let dir = tempfile::tempdir().expect("folder");
        let folder = JobFolder::new(dir.path().to_owned());
        (dir, folder)
    }

    fn seqs(events: &[Event]) -> Vec<u64> {
        events.iter().map(|e| e.seq).collect()
    }

    #[test]
    fn a_torn_line_is_not_read_and_the_next_event_takes_its_place() {
        let (_dir, folder) = folder();
        let torn = [&line(1, EventKind::Queued)[..], br#"{"seq":2,"at"#].concat();
        fs::write(folder.log(), torn).expect("written");
        let mut reader = folder.reader();
        assert_eq!(seqs(&reader.next_batch(10).expect("reads")), [1]);
        assert!(reader.next_batch(10).expect("reads").is_empty());
        folder.append(EventKind::Stopped { step: 0 }).expect("appends");
        assert_eq!(seqs(&reader.next_batch(10).expect("reads")), [2]);
    }

    #[test]
    fn a_reader_skips_to_any_place() {
        let (_dir, folder) = folder();
        let lines: Vec<u8> = (1..=9).flat_map(|seq| line(seq, EventKind::Queued)).collect();
        fs::write(folder.log(), lines).expect("written");
        for seq in 0..=9 {
            let mut reader = folder.reader();
            reader.skip_to(seq).expect("skips");
            let wanted: Vec<u64> = (seq + 1..=9).collect();
            assert_eq!(seqs(&reader.next_batch(100).expect("reads")), wanted);
        }
    }

    #[test]
    fn nobody_writes_into_a_log_whose_lock_is_held() {
        let (_dir, folder) = folder();
        fs::write(folder.log(), line(1, EventKind::Queued)).expect("written");
        let held = folder.lock().expect("free");
        assert!(folder.is_locked());
        let refused = folder.append(EventKind::Stopped { step: 0 });
        assert!(matches!(refused, Err(FolderError::Locked { .. })));
        drop(held);
        assert!(!folder.is_locked());
    }

    #[test]
    fn a_line_that_is_no_event_is_an_error_not_a_gap() {
        let (_dir, folder) = folder();
        fs::write(folder.log(), b"{}\n").expect("written");
        assert!(matches!(
            folder.reader().next_batch(9),
            Err(FolderError::NotAnEvent { .. })
        ));
    }
}
