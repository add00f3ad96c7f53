//! One file, from the Hub to its place in the cache.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::cache;
use super::client::{Client, Listing, RemoteFile};
use super::error::HubError;

/// Breaks in a row, without a byte in between, before it is given up.
const MAX_BREAKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(400);
const CHUNK_BYTES: usize = 256 << 10;

/// Told how many bytes came, and whether those before them were in vain; says whether to go on.
pub type Came<'a> = dyn FnMut(u64, bool) -> ControlFlow<()> + 'a;

/// Downloads a file, or the rest of it, checks it, and links it into the snapshot.
///
/// # Errors
/// Why it is not here. What has come is kept, unless it is wrong.
pub fn file(client: &Client, listing: &Listing, file: &RemoteFile, came: &mut Came) -> Result<(), HubError> {
    let blob = cache::blob(client, listing, file);
    let mut scratch = blob.clone().into_os_string();
    scratch.push(".incomplete");
    let scratch = Path::new(&scratch);
    let disk = |source| HubError::Disk {
        path: scratch.into(),
        source,
    };
    if let Some(parent) = blob.parent() {
        std::fs::create_dir_all(parent).map_err(disk)?;
    }
    let folder = cache::snapshot(client, listing);
    // Two that want the same file: the second waits, and finds it.
    let mut out = locked(scratch).map_err(disk)?;
    let is_whole = std::fs::metadata(&blob).is_ok_and(|found| found.len() == file.bytes);
    if is_whole {
        std::fs::remove_file(scratch).map_err(disk)?;
        stopped_if(came(file.bytes, false))?;
        return cache::link(&folder, file);
    }
    receive(client, listing, file, &mut out, came, &disk)?;
    out.sync_all().map_err(disk)?;
    check(scratch, file).map_err(disk)?.map_or(Ok(()), |reason| {
        std::fs::remove_file(scratch).map_err(disk)?;
        Err(HubError::Broken {
            file: file.name.clone(),
            reason,
        })
    })?;
    std::fs::rename(scratch, &blob).map_err(disk)?;
    cache::link(&folder, file)
}

/// Opens `scratch` for this process alone, to write at its end.
fn locked(scratch: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().create(true).append(true).open(scratch)?;
        flock(&file, FlockOperation::LockExclusive)?;
        // Whoever had it before has given it the blob's name, or thrown it away: then it is no longer the scratch file.
        let of_file = file.metadata()?;
        match std::fs::metadata(scratch) {
            Ok(named) if (named.dev(), named.ino()) == (of_file.dev(), of_file.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

fn stopped_if(answer: ControlFlow<()>) -> Result<(), HubError> {
    match answer {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(HubError::Stopped),
    }
}

/// Appends what is missing, taking up broken connections where they broke.
fn receive(
    client: &Client,
    listing: &Listing,
    file: &RemoteFile,
    out: &mut File,
    came: &mut Came,
    disk: &dyn Fn(io::Error) -> HubError,
) -> Result<(), HubError> {
    let url = client.url(listing, &file.name);
    let mut have = out.metadata().map_err(disk)?.len();
    if have > file.bytes {
        out.set_len(0).map_err(disk)?;
        have = 0;
    }
    stopped_if(came(have, false))?;
    let mut breaks = 0;
    while have < file.bytes {
        let before = have;
        let reason = match client.get(listing, &file.name, have) {
            Err(error) => error.to_string(),
            Ok(answer) if !answer.status().is_success() && answer.status().as_u16() < 500 => {
                return Err(client.refusal(&answer, &listing.repo.id, &listing.repo.revision, listing.gated));
            }
            Ok(answer) if !answer.status().is_success() => format!("status {}", answer.status()),
            Ok(answer) => {
                // Whoever ignores the range begins again.
                if have > 0 && answer.status() != 206 {
                    out.set_len(0).map_err(disk)?;
                    have = 0;
                    stopped_if(came(0, true))?;
                }
                match pour(
                    answer.into_body().into_reader(),
                    file.bytes - have,
                    out,
                    &mut have,
                    came,
                ) {
                    Ok(()) => continue,
                    Err(Broken::Stopped) => return Err(HubError::Stopped),
                    Err(Broken::Disk(source)) => return Err(disk(source)),
                    Err(Broken::Network(reason)) => reason,
                }
            }
        };
        breaks = if have > before { 1 } else { breaks + 1 };
        if breaks >= MAX_BREAKS {
            return Err(HubError::BrokeOff { url, reason });
        }
        tracing::debug!("{url}: {reason}; going on at byte {have}");
        std::thread::sleep(PAUSE * breaks);
    }
    Ok(())
}

enum Broken {
    Network(String),
    Disk(io::Error),
    Stopped,
}

/// Copies until `most` bytes came. An answer that ends early is a break.
fn pour(mut from: impl Read, most: u64, out: &mut File, have: &mut u64, came: &mut Came) -> Result<(), Broken> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut left = most;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = from
            .read(&mut buffer[..want])
            .map_err(|e| Broken::Network(e.to_string()))?;
        if read == 0 {
            return Err(Broken::Network("the answer ended early".into()));
        }
        out.write_all(&buffer[..read]).map_err(Broken::Disk)?;
        left -= read as u64;
        *have += read as u64;
        if came(read as u64, false).is_break() {
            return Err(Broken::Stopped);
        }
    }
    Ok(())
}

/// What is wrong with a file that has come: its length, or the checksum of a large one.
fn check(path: &Path, file: &RemoteFile) -> io::Result<Option<String>> {
    let mut from = File::open(path)?;
    let length = from.metadata()?.len();
    if length != file.bytes {
        return Ok(Some(format!("{length} bytes instead of {}", file.bytes)));
    }
    let Some(wanted) = &file.sha256 else { return Ok(None) };
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    let got = hex::encode(hash.finalize());
    Ok((got != *wanted).then(|| format!("its SHA-256 is {got}")))
}
