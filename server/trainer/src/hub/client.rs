//! What is asked of the Hub over HTTP, and what its refusals mean.

use std::collections::BTreeSet;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;

use super::error::HubError;

const HUB: &str = "https://huggingface.co";
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A file of a repository, as the Hub announces it.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteFile {
    pub name: String,
    pub bytes: u64,
    /// Of its content, lower-case hex; only large files have it announced.
    pub sha256: Option<String>,
    /// Its name among the cache's blobs.
    pub blob: String,
}

/// A repository at one commit.
#[derive(Clone, Debug)]
pub struct Listing {
    pub repo: RepoAt,
    pub commit: String,
    pub files: Vec<RemoteFile>,
    pub license: Option<String>,
    /// Its owners ask for consent before files are given out.
    pub gated: bool,
    /// Why the Hub was not asked, where the listing is of what the cache holds.
    pub offline: Option<String>,
}

impl Listing {
    pub fn names(&self) -> BTreeSet<&str> {
        self.files.iter().map(|file| file.name.as_str()).collect()
    }
}

/// Which repository, at what revision.
#[derive(Clone, Debug)]
pub struct RepoAt {
    pub id: String,
    pub revision: String,
}

impl RepoAt {
    pub fn repo(&self) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, self.revision.clone())
    }
}

/// `GET /api/models/ID/revision/REVISION?blobs=true`, as far as it matters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModelPage {
    sha: String,
    siblings: Vec<Sibling>,
    #[serde(default)]
    gated: serde_json::Value,
    #[serde(default)]
    card_data: Option<Card>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Card {
    #[serde(default)]
    license: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: u64,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

pub struct Client {
    api: Result<Api, String>,
    agent: Agent,
    pub cache: Cache,
    pub endpoint: String,
    token: Option<String>,
    may_ask: bool,
}

impl Client {
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let cache = match set("HF_HUB_CACHE") {
            Some(folder) => Cache::new(folder.into()),
            None => Cache::from_env(),
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| HUB.into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        // The token file lies in HF_HOME, wherever the cache is.
        let token = set("HF_TOKEN").or_else(|| Cache::from_env().token());
        let token = token.map(|token| token.trim().to_owned());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.clone())
            .with_token(token.clone())
            .with_progress(false)
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(ANSWER_LIMIT))
            .user_agent(concat!("likeness/", env!("CARGO_PKG_VERSION")));
        Self {
            api: api.map_err(|error| error.to_string()),
            agent: config.build().into(),
            cache,
            endpoint,
            token,
            may_ask: set("HF_HUB_OFFLINE").is_none_or(|value| value == "0"),
        }
    }

    pub fn offline(&self, repo: &str, reason: &str) -> HubError {
        HubError::Offline {
            repo: repo.into(),
            endpoint: self.endpoint.clone(),
            cache: self.cache.path().clone(),
            reason: reason.into(),
        }
    }

    /// What the repository holds.
    pub fn list(&self, repo: Repo) -> Result<Listing, HubError> {
        let id = repo.url();
        if !self.may_ask {
            return Err(self.offline(&id, "HF_HUB_OFFLINE is set"));
        }
        let revision = repo.revision().to_owned();
        let api = self.api.as_ref().map_err(|reason| self.offline(&id, reason))?;
        let request = api.repo(repo).info_request().query("blobs", "true");
        let request = request
            .config()
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER_LIMIT));
        let answer = request.build().call();
        let mut answer = answer.map_err(|error| self.offline(&id, &error.to_string()))?;
        if answer.status() != 200 {
            return Err(self.refusal(&answer, &id, &revision, false));
        }
        let page: ModelPage = answer.body_mut().read_json().map_err(|error| HubError::NoModel {
            repo: id.clone(),
            what: format!("its description is not understood: {error}"),
        })?;
        Ok(listing(page, RepoAt { id, revision }))
    }

    /// Asks for a file from byte `start` on.
    pub fn get(&self, listing: &Listing, file: &str, start: u64) -> Result<Response<ureq::Body>, ureq::Error> {
        let mut request = self.agent.get(self.url(listing, file));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        request.call()
    }

    pub fn url(&self, listing: &Listing, file: &str) -> String {
        format!(
            "{}/{}/resolve/{}/{file}",
            self.endpoint, listing.repo.id, listing.commit
        )
    }

    /// Whether files of a gated repository are given out to us: its description is to everyone.
    pub fn check_access(&self, listing: &Listing) -> Result<(), HubError> {
        let Some(file) = listing.files.iter().min_by_key(|file| file.bytes) else {
            return Ok(());
        };
        match self.get(listing, &file.name, 0) {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(self.refusal(&answer, &listing.repo.id, &listing.repo.revision, true)),
            Err(error) => Err(self.offline(&listing.repo.id, &error.to_string())),
        }
    }

    /// What a status other than success means. The Hub says it in a header; a plain 401 is what it answers about
    /// repositories that do not exist, too.
    pub fn refusal<B>(&self, answer: &Response<B>, id: &str, revision: &str, gated: bool) -> HubError {
        let (repo, endpoint) = (id.to_owned(), self.endpoint.clone());
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let status = answer.status().as_u16();
        match (header("x-error-code"), status) {
            ("GatedRepo", _) => HubError::Gated { repo, endpoint },
            ("RevisionNotFound", _) => HubError::NoRevision {
                repo,
                revision: revision.into(),
            },
            ("RepoNotFound", _) => HubError::NotFound { repo },
            (_, 401 | 403) if gated => HubError::Gated { repo, endpoint },
            (_, 401 | 403) if self.token.is_some() => HubError::BadToken { repo, endpoint },
            (_, 401 | 403) => HubError::NeedsToken { repo },
            (_, 404) => HubError::NotFound { repo },
            _ => HubError::Status {
                url: format!("{endpoint}/{repo}"),
                status,
            },
        }
    }
}

fn listing(page: ModelPage, repo: RepoAt) -> Listing {
    let commit = page.sha;
    let files = page.siblings.into_iter().map(|sibling| {
        let sha256 = sibling.lfs.and_then(|lfs| lfs.sha256);
        // A stand-in that announces neither: one file, one commit, one name.
        let unnamed = || format!("{commit}-{}", sibling.rfilename.replace('/', "--"));
        RemoteFile {
            blob: sha256.clone().or(sibling.blob_id).unwrap_or_else(unnamed),
            bytes: sibling.size,
            sha256,
            name: sibling.rfilename,
        }
    });
    // Names become paths: one that leaves the folder is no name.
    let is_inside = |file: &RemoteFile| {
        let parts = || file.name.split('/');
        parts().all(|part| !part.is_empty() && part != "." && part != "..") && !file.blob.contains('/')
    };
    let files = files.filter(is_inside).collect();
    let of_card = page.card_data.and_then(|card| card.license.as_str().map(str::to_owned));
    let of_tag = || {
        page.tags
            .iter()
            .find_map(|tag| tag.strip_prefix("license:"))
            .map(str::to_owned)
    };
    Listing {
        repo,
        files,
        license: of_card.or_else(of_tag),
        gated: !matches!(page.gated, serde_json::Value::Null | serde_json::Value::Bool(false)),
        offline: None,
        commit,
    }
}
