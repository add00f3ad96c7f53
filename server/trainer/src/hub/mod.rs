//! Models of the Hugging Face Hub: found by their id, downloaded once, kept where the Hub's own tools keep them.
//!
//! hf-hub knows the cache's layout, the token file and the address of a repository's description. Downloading is our
//! own, because its cannot be stopped and does not say why the Hub refuses: a file is written to
//! `blobs/NAME.incomplete`, goes on by range after a break, is checked against the length and SHA-256 that the Hub
//! announced, and only then gets its name and its link in `snapshots/`.
//!
//! Environment: `HF_TOKEN` (or the token file of the Hub's tools), `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_HUB_OFFLINE`. The token is sent to the endpoint alone and appears in no message.

mod cache;
mod client;
mod download;
mod error;
mod selection;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;

use hf_hub::{Repo, RepoType};

use client::{Client, Listing};
pub use error::HubError;
pub use selection::Part;

/// What whoever waits for a model is told, and may answer.
pub trait Watch {
    /// It goes on, but not as asked.
    fn warn(&mut self, code: &'static str, message: String);

    /// Bytes that are here of all that are needed. `Break` stops, keeping what has come.
    fn progress(&mut self, file: &str, done_bytes: u64, total_bytes: u64) -> ControlFlow<()>;
}

/// What the Hub says of a model.
#[derive(Clone, Debug)]
pub struct Description {
    /// The address of its card.
    pub card: String,
    /// As its card names it, such as `creativeml-openrail-m`.
    pub license: Option<String>,
    /// Of all files that training needs of it.
    pub bytes: u64,
    /// Of those that are not here yet.
    pub missing_bytes: u64,
    /// A folder with its configuration files.
    pub folder: PathBuf,
}

/// Gone from the Hub, and what took its place.
const MOVED: [(&str, &str); 1] = [(
    "runwayml/stable-diffusion-v1-5",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
)];
/// The branch of 16-bit weights that old commands ask for; today they are files of their own on `main`.
const FP16: &str = "fp16";

/// Whether a reference is spelled as an id: `owner/name`.
pub fn is_id(reference: &str) -> bool {
    let is_part = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.len() <= 96 && part.chars().all(known) && !part.starts_with('.')
    };
    let is_file = [".safetensors", ".ckpt"]
        .iter()
        .any(|ending| reference.ends_with(ending));
    reference
        .split_once('/')
        .is_some_and(|(owner, name)| is_part(owner) && is_part(name))
        && !is_file
}

/// The id that `id` stands for today.
pub fn present_id(id: &str) -> &str {
    MOVED.iter().find(|(old, _)| *old == id).map_or(id, |(_, new)| new)
}

/// Brings a model, or a VAE, onto this disk, and says in which folder it is.
///
/// # Errors
/// Why it cannot be had.
pub fn fetch(id: &str, revision: Option<&str>, part: Part, watch: &mut dyn Watch) -> Result<PathBuf, HubError> {
    let client = Client::from_env();
    let found = find(&client, id, revision, part, watch)?;
    let mut done = found.present_bytes;
    for file in &found.missing {
        download::file(&client, &found.listing, file, &mut |came: u64, restarted: bool| {
            done = if restarted {
                found.present_bytes_before(file)
            } else {
                done
            } + came;
            watch.progress(&file.name, done, found.bytes)
        })?;
    }
    cache::remember(&client, &found.listing)?;
    Ok(found.folder)
}

/// What a model, or a VAE, is, without its weights: a few small files are loaded.
///
/// # Errors
/// Why it cannot be had.
pub fn describe(id: &str, revision: Option<&str>, part: Part, watch: &mut dyn Watch) -> Result<Description, HubError> {
    let client = Client::from_env();
    let found = find(&client, id, revision, part, watch)?;
    if found.listing.gated {
        client.check_access(&found.listing)?;
    }
    for name in selection::config_files(&found.listing.names(), part) {
        if let Some(file) = found.missing.iter().find(|file| file.name == name) {
            download::file(&client, &found.listing, file, &mut |_, _| ControlFlow::Continue(()))?;
        }
    }
    Ok(Description {
        card: format!("{}/{}", client.endpoint, found.listing.repo.id),
        license: found.listing.license.clone(),
        bytes: found.bytes,
        missing_bytes: found.missing.iter().map(|file| file.bytes).sum(),
        folder: found.folder,
    })
}

/// A model's files: which there are, which are here.
struct Found {
    listing: Listing,
    folder: PathBuf,
    bytes: u64,
    present_bytes: u64,
    missing: Vec<client::RemoteFile>,
}

impl Found {
    /// Bytes that were here when the download of `file` began.
    fn present_bytes_before(&self, file: &client::RemoteFile) -> u64 {
        let before = self.missing.iter().take_while(|other| other.name != file.name);
        self.present_bytes + before.map(|file| file.bytes).sum::<u64>()
    }
}

fn find(
    client: &Client,
    id: &str,
    revision: Option<&str>,
    part: Part,
    watch: &mut dyn Watch,
) -> Result<Found, HubError> {
    let present = present_id(id);
    if present != id {
        let message = format!("{id} is gone from the Hub; {present}, which took its place, is used");
        watch.warn("hub_moved", message);
    }
    let (listing, fp16_first) = list(client, present, revision, watch)?;
    let chosen = selection::select(&listing.names(), part, fp16_first).map_err(|what| HubError::NoModel {
        repo: present.into(),
        what,
    });
    let chosen = match (chosen, &listing.offline) {
        (Err(_), Some(reason)) => return Err(client.offline(present, reason)),
        (chosen, _) => chosen?,
    };
    let folder = cache::snapshot(client, &listing);
    let wanted: BTreeSet<&str> = chosen.iter().map(String::as_str).collect();
    let files = || listing.files.iter().filter(|file| wanted.contains(file.name.as_str()));
    let is_here = |file: &&client::RemoteFile| cache::is_here(&folder, file);
    let missing: Vec<_> = files().filter(|file| !is_here(file)).cloned().collect();
    let bytes = files().map(|file| file.bytes).sum();
    let present_bytes = files().filter(is_here).map(|file| file.bytes).sum();
    Ok(Found {
        folder,
        bytes,
        present_bytes,
        missing,
        listing,
    })
}

/// The repository's files, and whether 16-bit ones are preferred. A vanished `fp16` branch means `main`'s 16-bit files;
/// without an answer from the Hub, what is in the cache counts.
fn list(client: &Client, id: &str, revision: Option<&str>, watch: &mut dyn Watch) -> Result<(Listing, bool), HubError> {
    let repo = |revision: &str| Repo::with_revision(id.into(), RepoType::Model, revision.into());
    let wanted = revision.unwrap_or("main");
    let listed = client.list(repo(wanted));
    match listed {
        Ok(listing) => Ok((listing, false)),
        Err(HubError::NoRevision { .. }) if wanted == FP16 => {
            let message =
                format!("{id} has no revision `{FP16}` any more; `main` is used, its 16-bit files where there are any");
            watch.warn("hub_revision", message);
            client.list(repo("main")).map(|listing| (listing, true))
        }
        Err(HubError::Offline { reason, .. }) => {
            let cached = [wanted, "main"]
                .into_iter()
                .filter(|name| *name == wanted || wanted == FP16)
                .find_map(|name| cache::listing(client, repo(name)));
            let Some(mut listing) = cached else {
                return Err(client.offline(id, &reason));
            };
            let message = format!("the Hub is not asked ({reason}); the copy of {id} on this disk is used");
            watch.warn("hub_offline", message);
            listing.offline = Some(reason);
            Ok((listing, wanted == FP16))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_an_owner_and_a_name() {
        for id in [
            "runwayml/stable-diffusion-v1-5",
            "a/b",
            "stabilityai/sd-vae-ft-mse",
            "a.b/c_d",
        ] {
            assert!(is_id(id), "{id}");
        }
        for other in [
            "starter",
            "/models/a",
            "./a/b",
            "a/b/c",
            "a/b.safetensors",
            "a/b.ckpt",
            "../b",
            "a/",
            "a/ b",
            "a/..",
        ] {
            assert!(!is_id(other), "{other}");
        }
        assert_eq!(
            present_id("runwayml/stable-diffusion-v1-5"),
            "stable-diffusion-v1-5/stable-diffusion-v1-5"
        );
    }
}
