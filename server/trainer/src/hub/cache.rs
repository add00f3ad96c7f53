//! The folder that the Hub's own tools share: `models--OWNER--NAME/{blobs,snapshots/COMMIT,refs/REVISION}`.

use std::io;
use std::path::{Path, PathBuf};

use hf_hub::Repo;

use super::client::{Client, Listing, RemoteFile, RepoAt};
use super::error::HubError;

/// The folder of a commit's files.
pub fn snapshot(client: &Client, listing: &Listing) -> PathBuf {
    client.cache.repo(listing.repo.repo()).pointer_path(&listing.commit)
}

pub fn blob(client: &Client, listing: &Listing, file: &RemoteFile) -> PathBuf {
    client.cache.repo(listing.repo.repo()).blob_path(&file.blob)
}

/// Whether a file is here, whole: it gets its name only then, and its length says so of what other tools left.
pub fn is_here(folder: &Path, file: &RemoteFile) -> bool {
    std::fs::metadata(folder.join(&file.name)).is_ok_and(|found| found.len() == file.bytes)
}

/// Records which commit the revision is, so that it is found without the Hub.
pub fn remember(client: &Client, listing: &Listing) -> Result<(), HubError> {
    let repo = client.cache.repo(listing.repo.repo());
    repo.create_ref(&listing.commit).map_err(|source| HubError::Disk {
        path: client.cache.path().clone(),
        source,
    })
}

/// Links `snapshots/COMMIT/NAME` to the blob.
pub fn link(folder: &Path, file: &RemoteFile) -> Result<(), HubError> {
    let path = folder.join(&file.name);
    let linked = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // From the file's folder up to the repository's: snapshots, commit, and what is in its name.
        let up = "../".repeat(2 + file.name.matches('/').count());
        let blob = PathBuf::from(format!("{up}blobs/{}", file.blob));
        if std::fs::read_link(&path).is_ok_and(|there| there == blob) {
            return Ok(());
        }
        // Never away for a moment: another process may be about to read it.
        let made = folder.join(format!("../../blobs/{}.{}.link", file.blob, std::process::id()));
        match std::fs::remove_file(&made) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(blob, &made)?;
        std::fs::rename(&made, &path)
    };
    linked().map_err(|source| HubError::Disk {
        path: path.clone(),
        source,
    })
}

/// What the cache holds of a revision, as if the Hub had listed it. `None`: nothing.
pub fn listing(client: &Client, repo: Repo) -> Option<Listing> {
    let at = RepoAt {
        id: repo.url(),
        revision: repo.revision().to_owned(),
    };
    // A commit that is no name: the folder of all commits.
    let folder = client.cache.repo(repo).pointer_path("");
    let refs = folder.parent()?.join("refs").join(&at.revision);
    // A revision may be a commit, which has no ref.
    let commit = std::fs::read_to_string(refs).map_or_else(|_| at.revision.clone(), |text| text.trim().to_owned());
    let folder = folder.join(&commit);
    let mut files = Vec::new();
    walk(&folder, "", &mut files);
    (!files.is_empty()).then_some(Listing {
        repo: at,
        commit,
        files,
        license: None,
        gated: false,
        offline: None,
    })
}

fn walk(folder: &Path, below: &str, files: &mut Vec<RemoteFile>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        match std::fs::metadata(entry.path()) {
            Ok(found) if found.is_dir() => walk(&entry.path(), &format!("{name}/"), files),
            Ok(found) => files.push(RemoteFile {
                name,
                bytes: found.len(),
                sha256: None,
                blob: String::new(),
            }),
            // A link whose blob is gone is a file that is not here.
            Err(_) => {}
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
}
