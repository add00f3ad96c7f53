//! A stand-in for the Hugging Face Hub on this machine: descriptions of models and their files, as the Hub's HTTP gives
//! them. Large files are redirected to another host name, as the Hub does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

/// The one commit that all repositories are at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// From this size on a file has its SHA-256 announced and is redirected.
const LARGE_BYTES: usize = 10_000;

#[derive(Clone, Default)]
pub struct Repository {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Besides `main`.
    pub revisions: Vec<String>,
    pub license: Option<&'static str>,
    /// Shown only with this token.
    pub token: Option<&'static str>,
    /// Described to everyone, but files only with consent, which nobody here gives.
    pub gated: bool,
}

impl Repository {
    /// All files of a folder.
    pub fn of_folder(folder: &Path) -> anyhow::Result<Self> {
        let mut repository = Self::default();
        repository.add_folder(folder, "")?;
        Ok(repository)
    }

    fn add_folder(&mut self, folder: &Path, below: &str) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.add_folder(&entry.path(), &format!("{name}/"))?;
            } else {
                self.files.insert(name, std::fs::read(entry.path())?);
            }
        }
        Ok(())
    }
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Of the host that large files are on.
    pub of_large_file: bool,
}

struct State {
    repositories: BTreeMap<String, Repository>,
    port: u16,
    asked: Mutex<Vec<Asked>>,
    /// Body bytes after which every connection breaks; 0 = never.
    break_after: AtomicU64,
    /// Bodies come in small parts with pauses.
    slow: AtomicBool,
    /// Nobody answers any more.
    gone: AtomicBool,
}

pub struct Hub {
    /// For `HF_ENDPOINT`.
    pub url: String,
    state: Arc<State>,
}

impl Hub {
    pub fn start(repositories: impl IntoIterator<Item = (&'static str, Repository)>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let repositories = repositories
            .into_iter()
            .map(|(id, repository)| (id.to_owned(), repository));
        let state = Arc::new(State {
            repositories: repositories.collect(),
            port,
            asked: Mutex::default(),
            break_after: AtomicU64::new(0),
            slow: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        let shared = state.clone();
        std::thread::Builder::new().name("hub".into()).spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.gone.load(Ordering::Relaxed) {
                    return;
                }
                let state = shared.clone();
                let answering = std::thread::Builder::new().name("hub-answer".into());
                // A client that is killed in the middle is part of the tests.
                let spawned = answering.spawn(move || drop(state.answer(&stream)));
                drop(spawned);
            }
        })?;
        Ok(Self {
            url: format!("http://127.0.0.1:{port}"),
            state,
        })
    }

    pub fn break_after(&self, bytes: u64) {
        self.state.break_after.store(bytes, Ordering::Relaxed);
    }

    pub fn slow(&self, slow: bool) {
        self.state.slow.store(slow, Ordering::Relaxed);
    }

    /// From now on connections are refused.
    pub fn go(&self) {
        self.state.gone.store(true, Ordering::Relaxed);
        // The one that waits is let go, and the listener with it.
        drop(TcpStream::connect(("127.0.0.1", self.state.port)));
        std::thread::sleep(Duration::from_millis(50));
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock())
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, stream: &TcpStream) -> anyhow::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let asked = Asked {
            of_large_file: headers.get("host").is_some_and(|host| host.starts_with("localhost")),
            range: headers.get("range").cloned(),
            authorization: headers.get("authorization").cloned(),
            path,
        };
        self.lock().push(asked.clone());
        let mut out = stream;
        let (head, body) = self.reply(&asked);
        let head = format!("{head}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
        out.write_all(head.as_bytes())?;
        let is_file = asked.path.contains("/resolve/");
        let break_after = self.break_after.load(Ordering::Relaxed);
        let whole = if is_file && break_after > 0 {
            body.len().min(break_after as usize)
        } else {
            body.len()
        };
        for part in body[..whole].chunks(8 << 10) {
            out.write_all(part)?;
            if is_file && self.slow.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if whole == body.len() {
            // Until the client closes, so that nothing it has not read is lost.
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest)?;
        }
        Ok(())
    }

    /// Status line and headers, and the body.
    fn reply(&self, asked: &Asked) -> (String, Vec<u8>) {
        let refuse = |status: &str, code: &str| {
            let code = if code.is_empty() {
                String::new()
            } else {
                format!("x-error-code: {code}\r\n")
            };
            (format!("HTTP/1.1 {status}\r\n{code}"), b"{\"error\":\"no\"}".to_vec())
        };
        let path = asked.path.split('?').next().unwrap_or_default();
        let (is_api, rest) = match path.strip_prefix("/api/models/") {
            Some(rest) => (true, rest),
            None => (false, path.trim_start_matches('/')),
        };
        let mut parts = rest.splitn(5, '/');
        let mut part = || parts.next().unwrap_or_default();
        let (id, _verb) = (format!("{}/{}", part(), part()), part());
        let (revision, name) = (part(), part());
        let Some(repository) = self.repositories.get(&id) else {
            return refuse("401 Unauthorized", "RepoNotFound");
        };
        let given = asked
            .authorization
            .as_deref()
            .and_then(|value| value.strip_prefix("Bearer "));
        if repository.token.is_some() && given != repository.token && !asked.of_large_file {
            return refuse("401 Unauthorized", "");
        }
        if revision != "main" && revision != COMMIT && !repository.revisions.iter().any(|known| known == revision) {
            return refuse("404 Not Found", "RevisionNotFound");
        }
        if is_api {
            let body = description(repository).to_string().into_bytes();
            return ("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n".into(), body);
        }
        if repository.gated {
            return refuse("403 Forbidden", "GatedRepo");
        }
        let Some(content) = repository.files.get(name) else {
            return refuse("404 Not Found", "EntryNotFound");
        };
        if content.len() >= LARGE_BYTES && !asked.of_large_file {
            let head = format!(
                "HTTP/1.1 302 Found\r\nlocation: http://localhost:{}{path}\r\n",
                self.port
            );
            return (head, Vec::new());
        }
        let range = asked
            .range
            .as_deref()
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        match range.and_then(|start| start.parse::<usize>().ok()) {
            Some(start) if start < content.len() => {
                let (last, length) = (content.len() - 1, content.len());
                let head = format!("HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {start}-{last}/{length}\r\n");
                (head, content[start..].to_vec())
            }
            Some(_) => refuse("416 Range Not Satisfiable", ""),
            None => ("HTTP/1.1 200 OK\r\n".into(), content.clone()),
        }
    }
}

fn description(repository: &Repository) -> serde_json::Value {
    let siblings: Vec<_> = repository
        .files
        .iter()
        .map(|(name, content)| {
            let hash = hex::encode(Sha256::digest(content));
            let mut sibling = json!({ "rfilename": name, "size": content.len(), "blobId": &hash[..40] });
            if content.len() >= LARGE_BYTES {
                // A repository whose announcement is wrong: see the test of a broken file.
                let announced = if name.contains("broken") { "0".repeat(64) } else { hash };
                sibling["lfs"] = json!({ "sha256": announced, "size": content.len(), "pointerSize": 130 });
            }
            sibling
        })
        .collect();
    json!({
        "sha": COMMIT,
        "siblings": siblings,
        "gated": if repository.gated { json!("auto") } else { json!(false) },
        "private": repository.token.is_some(),
        "tags": ["diffusers"],
        "cardData": { "license": repository.license },
    })
}
