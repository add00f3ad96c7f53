//! How a run is asked to end early: a file named `stop` in its folder, or SIGINT or SIGTERM.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// Exit status of a run that the user ended.
pub const STOPPED_STATUS: i32 = 130;

/// Asked after every step and sampling step.
pub struct Stop {
    file: PathBuf,
    signalled: Arc<AtomicBool>,
}

impl Stop {
    /// Watches the folder and, from now on, the signals. A second signal ends the process at once.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn watch(folder: &Path) -> io::Result<Self> {
        Self::watch_file(folder.join("stop"))
    }

    fn watch_file(file: PathBuf) -> io::Result<Self> {
        let signalled = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, STOPPED_STATUS, signalled.clone())?;
            signal_hook::flag::register(signal, signalled.clone())?;
        }
        Ok(Self { file, signalled })
    }

    /// Watches the signals alone: for work that has no folder.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn signals() -> io::Result<Self> {
        Self::watch_file(PathBuf::new())
    }

    pub fn asked(&self) -> bool {
        self.signalled.load(Ordering::Relaxed) || self.file.exists()
    }
}
