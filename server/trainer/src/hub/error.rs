//! Why a model cannot be had from the Hub, and what a person can do about it.

use std::path::PathBuf;

use app::api::hub_codes;

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "{repo}: the Hub has no model of this name, or shows it only to those it belongs to; check the spelling, or give a token"
    )]
    NotFound { repo: String },
    #[error("{repo}: the Hub knows no revision `{revision}` of it; leave --revision out to take `main`")]
    NoRevision { repo: String, revision: String },
    #[error("{repo}: the Hub wants a token for it; set HF_TOKEN, or enter one on the page")]
    NeedsToken { repo: String },
    #[error(
        "{repo}: the Hub does not accept the token; make a new one with the right to read at {endpoint}/settings/tokens"
    )]
    BadToken { repo: String, endpoint: String },
    #[error(
        "{repo}: its owners ask for consent first; give it at {endpoint}/{repo}, signed in with the account of your token"
    )]
    Gated { repo: String, endpoint: String },
    #[error("{repo}: {endpoint} does not answer, and not all of the model is in {}: {reason}", .cache.display())]
    Offline {
        repo: String,
        endpoint: String,
        cache: PathBuf,
        reason: String,
    },
    #[error("{repo}: {what}")]
    NoModel { repo: String, what: String },
    #[error("{url}: the Hub answers with status {status}")]
    Status { url: String, status: u16 },
    #[error("{file}: what came from the Hub is not what it announced ({reason}); start again to load it anew")]
    Broken { file: String, reason: String },
    #[error("{url}: the download broke off again and again: {reason}; what has come is kept, start again to go on")]
    BrokeOff { url: String, reason: String },
    #[error("{}: cannot be written", .path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Asked to by the user. What has come is kept.
    #[error("the download was stopped")]
    Stopped,
}

impl HubError {
    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::NoRevision { .. } => hub_codes::NOT_FOUND,
            Self::NeedsToken { .. } | Self::BadToken { .. } => hub_codes::TOKEN,
            Self::Gated { .. } => hub_codes::GATED,
            Self::Offline { .. } => hub_codes::OFFLINE,
            Self::NoModel { .. } => hub_codes::NO_MODEL,
            Self::Disk { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => "disk_full",
            Self::Disk { .. } => "cannot_write",
            Self::Status { .. } | Self::Broken { .. } | Self::BrokeOff { .. } => hub_codes::DOWNLOAD,
            Self::Stopped => "stopped",
        }
    }
}
