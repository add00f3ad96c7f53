//! The event log of a job folder: `lock` says who may write it, `events.jsonl` holds it.
//!
//! An event is on disk before anyone is told. A thread of its own writes them in groups at most 100 ms apart, so that
//! a step never waits for the disk, and closing the log waits for the last of them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use app::event::{Event, EventKind};
use rustix::fs::{FlockOperation, flock};

/// Longest time an event waits for others to share a flush with.
const GROUP: Duration = Duration::from_millis(100);
/// Events under way to the disk; a sender waits when there are more.
const WAITING: usize = 256;
/// How long another holder gets to let go of the lock: a server that just looked holds it for an instant.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("another trainer (process {holder}) is at work in {}", .folder.display())]
    Locked { folder: PathBuf, holder: String },
    #[error("cannot use the event log {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("line {line} of {} is not an event", .path.display())]
    Foreign {
        path: PathBuf,
        line: usize,
        #[source]
        source: serde_json::Error,
    },
    #[error("the event log stopped: {0}")]
    Stopped(String),
}

/// Who is told about each event once it is on disk.
pub trait Listener: Send {
    fn heard(&mut self, event: &Event, json: &str);
}

/// Prints the JSON lines on standard output, for whoever started the program. That nobody reads is no error.
pub struct JsonLines;

impl Listener for JsonLines {
    fn heard(&mut self, _event: &Event, json: &str) {
        let mut out = io::stdout().lock();
        // A closed pipe must not end a training run.
        let _told = out.write_all(format!("{json}\n").as_bytes()).and_then(|()| out.flush());
    }
}

enum Message {
    Event(Event),
    /// Answered when everything before it is on disk.
    Flush(SyncSender<()>),
}

/// The right to write in a job folder, held by one process at a time and given back when this is dropped.
pub struct Lock {
    folder: PathBuf,
    _file: File,
}

impl Lock {
    /// # Errors
    /// `Locked` when another process has it.
    pub fn take(folder: &Path) -> Result<Self, EventError> {
        Ok(Self {
            folder: folder.into(),
            _file: take_lock(folder)?,
        })
    }
}

/// The log of one job, held exclusively while this lives.
pub struct EventLog {
    sender: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
    /// Why the writer gave up.
    trouble: Arc<Mutex<Option<String>>>,
    /// `seq` of the next event.
    next: Mutex<u64>,
    /// A trainer was at work here before.
    continues: bool,
    /// Dropped last: the lock goes with it.
    _lock: Lock,
}

impl EventLog {
    /// Takes the job folder's lock and continues its log.
    ///
    /// # Errors
    /// When another process holds the lock, or the log cannot be read or written.
    pub fn open(folder: &Path, listener: Box<dyn Listener>) -> Result<Self, EventError> {
        Self::continue_in(Lock::take(folder)?, listener)
    }

    /// Continues the log of a locked folder after its last whole line.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub fn continue_in(lock: Lock, listener: Box<dyn Listener>) -> Result<Self, EventError> {
        let path = lock.folder.join("events.jsonl");
        let (file, last_seq, continues) = open_log(&path)?;
        let trouble = Arc::new(Mutex::new(None));
        let (sender, receiver) = sync_channel(WAITING);
        let writer = Writer {
            file,
            listener,
            trouble: trouble.clone(),
        };
        let writer = std::thread::Builder::new()
            .name("event-log".into())
            .spawn(move || writer.run(&receiver))
            .map_err(|source| EventError::Io { path, source })?;
        Ok(Self {
            sender: Some(sender),
            writer: Some(writer),
            trouble,
            next: Mutex::new(last_seq + 1),
            continues,
            _lock: lock,
        })
    }

    /// Whether a run started in this log before, and this one takes it up.
    pub fn continues(&self) -> bool {
        self.continues
    }

    /// Hands an event to the writer.
    ///
    /// # Errors
    /// When an earlier event could not be written: a run nobody can follow must not go on.
    pub fn emit(&self, kind: EventKind) -> Result<(), EventError> {
        // Held over the sending, so that the log's order is that of `seq`.
        let mut next = self.next.lock().map_err(|_poisoned| self.stopped())?;
        let event = Event {
            seq: *next,
            at_ms: now_ms(),
            kind,
        };
        self.send(Message::Event(event))?;
        *next += 1;
        Ok(())
    }

    /// Returns when everything emitted so far is on disk.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn flush(&self) -> Result<(), EventError> {
        let (done, wait) = sync_channel(1);
        self.send(Message::Flush(done))?;
        wait.recv().map_err(|_gone| self.stopped())
    }

    fn send(&self, message: Message) -> Result<(), EventError> {
        let sender = self.sender.as_ref().ok_or_else(|| self.stopped())?;
        sender.send(message).map_err(|_gone| self.stopped())
    }

    fn stopped(&self) -> EventError {
        let trouble = self.trouble.lock().ok().and_then(|t| t.clone());
        EventError::Stopped(trouble.unwrap_or_else(|| "its writer ended".into()))
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        // The channel closes; the writer empties it, flushes and ends.
        drop(self.sender.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the event log's writer panicked");
        }
    }
}

struct Writer {
    file: File,
    listener: Box<dyn Listener>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Message>) {
        let mut flushed_at: Option<Instant> = None;
        // Ends when the log is closed and everything is written.
        while let Ok(first) = receiver.recv() {
            let until = flushed_at.map_or_else(Instant::now, |at| at + GROUP);
            let (group, waiting) = gather(first, until, receiver);
            if let Err(source) = self.write(&group) {
                tracing::error!("the event log cannot be written: {source}");
                if let Ok(mut trouble) = self.trouble.lock() {
                    *trouble = Some(source.to_string());
                }
                return;
            }
            flushed_at = Some(Instant::now());
            for done in waiting {
                // Whoever asked may have gone.
                let _told = done.send(());
            }
        }
    }

    fn write(&mut self, group: &[Event]) -> io::Result<()> {
        let lines: Vec<String> = group
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        if lines.is_empty() {
            return Ok(());
        }
        self.file.write_all((lines.join("\n") + "\n").as_bytes())?;
        self.file.sync_data()?;
        for (event, json) in group.iter().zip(&lines) {
            self.listener.heard(event, json);
        }
        Ok(())
    }
}

/// What came until then; at once when somebody waits for a flush or the log is closed.
fn gather(first: Message, until: Instant, receiver: &Receiver<Message>) -> (Vec<Event>, Vec<SyncSender<()>>) {
    let (mut events, mut waiting) = (Vec::new(), Vec::new());
    let mut message = Some(first);
    while let Some(next) = message.take() {
        match next {
            Message::Event(event) => events.push(event),
            Message::Flush(done) => waiting.push(done),
        }
        let patience = if waiting.is_empty() {
            until.saturating_duration_since(Instant::now())
        } else {
            Duration::ZERO
        };
        message = match receiver.recv_timeout(patience) {
            Ok(next) if events.len() < WAITING => Some(next),
            Ok(Message::Event(event)) => {
                events.push(event);
                None
            }
            Ok(Message::Flush(done)) => {
                waiting.push(done);
                None
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        };
    }
    (events, waiting)
}

fn take_lock(folder: &Path) -> Result<File, EventError> {
    let path = folder.join("lock");
    let failed = |source| EventError::Io {
        path: path.clone(),
        source,
    };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    let since = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                lock.read_to_string(&mut holder).map_err(failed)?;
                return Err(EventError::Locked {
                    folder: folder.into(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    lock.set_len(0).map_err(failed)?;
    lock.write_all(format!("{}\n", std::process::id()).as_bytes())
        .map_err(failed)?;
    Ok(lock)
}

/// Opens the log for appending, without a torn last line; finds its last `seq`, and whether a run started in it.
fn open_log(path: &Path) -> Result<(File, u64, bool), EventError> {
    let failed = |source| EventError::Io {
        path: path.into(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        tracing::warn!("{}: dropped a torn last line", path.display());
        file.set_len(whole as u64).map_err(failed)?;
    }
    let mut last_seq = 0;
    if let Some((line, json)) = bytes[..whole]
        .trim_ascii_end()
        .split(|b| *b == b'\n')
        .enumerate()
        .last()
        && !json.is_empty()
    {
        let event: Event = serde_json::from_slice(json).map_err(|source| EventError::Foreign {
            path: path.into(),
            line: line + 1,
            source,
        })?;
        last_seq = event.seq;
    }
    file.seek(SeekFrom::End(0)).map_err(failed)?;
    let started = br#""type":"started""#;
    let continues = bytes[..whole].windows(started.len()).any(|w| w == started);
    Ok((file, last_seq, continues))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Deaf;
    impl Listener for Deaf {
        fn heard(&mut self, _event: &Event, _json: &str) {}
    }

    fn seqs(folder: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(folder.join("events.jsonl")).expect("log");
        text.lines()
            .map(|line| serde_json::from_str::<Event>(line).expect("an event").seq)
            .collect()
    }

    #[test]
    fn a_torn_line_is_dropped_and_seq_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let log = EventLog::open(folder.path(), Box::new(Deaf)).expect("opens");
        for _ in 0..3 {
            log.emit(EventKind::Queued).expect("emits");
        }
        drop(log);
        let path = folder.path().join("events.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).expect("opens");
        file.write_all(br#"{"seq":4,"at_"#).expect("tears");
        drop(file);
        let log = EventLog::open(folder.path(), Box::new(Deaf)).expect("opens");
        log.emit(EventKind::Done { step: 1 }).expect("emits");
        log.flush().expect("flushes");
        assert_eq!(seqs(folder.path()), [1, 2, 3, 4]);
    }

    #[test]
    fn a_second_writer_is_refused_and_told_who_holds_the_lock() {
        let folder = tempfile::tempdir().expect("folder");
        let _log = EventLog::open(folder.path(), Box::new(Deaf)).expect("opens");
        let refused = EventLog::open(folder.path(), Box::new(Deaf)).err().expect("refused");
        let EventError::Locked { holder, .. } = refused else {
            panic!("{refused}")
        };
        assert_eq!(holder, std::process::id().to_string());
    }

    #[test]
    fn many_events_are_all_written_in_order() {
        let folder = tempfile::tempdir().expect("folder");
        let log = EventLog::open(folder.path(), Box::new(Deaf)).expect("opens");
        for step in 0..2000 {
            log.emit(EventKind::StateSaved { step }).expect("emits");
        }
        drop(log);
        assert_eq!(seqs(folder.path()), (1..=2000).collect::<Vec<u64>>());
    }
}
