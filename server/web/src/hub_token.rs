//! The token for the Hub that was entered on the page: kept in a file that only this user reads, and handed to trainers
//! in their environment, so that it is in no recipe, event, log or list of processes.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

/// The trainer's name for it, and that of the Hub's own tools.
pub const VARIABLE: &str = "HF_TOKEN";
/// The Hub's have 37 characters.
const MAX_LENGTH: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum HubTokenError {
    #[error("this is no token: it has up to {MAX_LENGTH} letters and digits, no spaces, and usually starts with hf_")]
    Text,
    #[error("{path}")]
    Io { path: PathBuf, source: std::io::Error },
}

#[derive(Debug)]
pub struct HubToken {
    path: PathBuf,
}

impl HubToken {
    /// `path` need not be there.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Takes the place of the one before.
    ///
    /// # Errors
    /// A text that can be no token, and a disk that does not take it.
    pub fn set(&self, token: &str) -> Result<(), HubTokenError> {
        let token = token.trim();
        let is_token = !token.is_empty() && token.len() <= MAX_LENGTH && token.chars().all(|c| c.is_ascii_graphic());
        if !is_token {
            return Err(HubTokenError::Text);
        }
        let scratch = self.path.with_extension("new");
        let written = || -> std::io::Result<()> {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&scratch)?;
            // The mode counts only for a file that was not there.
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            file.write_all(token.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&scratch, &self.path)
        };
        written().map_err(|source| self.io(source))
    }

    /// # Errors
    /// When the file stays.
    pub fn forget(&self) -> Result<(), HubTokenError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.io(error)),
            _ => Ok(()),
        }
    }

    /// What was entered.
    pub fn entered(&self) -> Option<String> {
        std::fs::read_to_string(&self.path)
            .ok()
            .filter(|token| !token.is_empty())
    }

    /// Entered, or in this server's own environment, which trainers inherit.
    pub fn is_known(&self) -> bool {
        self.entered().is_some() || std::env::var_os(VARIABLE).is_some_and(|token| !token.is_empty())
    }

    fn io(&self, source: std::io::Error) -> HubTokenError {
        let path = self.path.clone();
        HubTokenError::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_can_read_it_and_what_is_no_token_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let token = HubToken::at(folder.path().join("hub-token"));
        for text in ["", "  ", "two words", "hf_\u{e4}", &"x".repeat(201)] {
            assert!(matches!(token.set(text), Err(HubTokenError::Text)), "{text}");
        }
        assert_eq!(token.entered(), None);
        std::fs::write(folder.path().join("hub-token.new"), "left by a crash").expect("written");
        token.set(" hf_abc\n").expect("a token");
        assert_eq!(token.entered().as_deref(), Some("hf_abc"));
        let mode = std::fs::metadata(folder.path().join("hub-token"))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        token.forget().expect("gone");
        token.forget().expect("still gone");
        assert_eq!(token.entered(), None);
    }
}
