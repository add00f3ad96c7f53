//! Starting a trainer on a job folder. The trainer is a program of its own: it outlives the server.

use std::fs::OpenOptions;
use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

use super::folder::JobFolder;
use crate::trainer::Trainers;

/// How a trainer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was not this server's child: only that it is gone is known.
    Unknown,
}

/// Resolves when the trainer is gone.
pub type Ended = Pin<Box<dyn Future<Output = Exit> + Send>>;

pub trait Runner: Send + Sync + 'static {
    /// Starts a trainer on the folder.
    fn start(&self, folder: JobFolder) -> Pin<Box<dyn Future<Output = io::Result<Ended>> + Send + '_>>;
}

/// Starts the trainer that fits as a child in its own process group, so that Ctrl-C at the server leaves it running.
pub struct ChildRunner(pub Arc<Trainers>);

impl Runner for ChildRunner {
    fn start(&self, folder: JobFolder) -> Pin<Box<dyn Future<Output = io::Result<Ended>> + Send + '_>> {
        Box::pin(async move {
            let trainer = self.0.chosen().await.map_err(io::Error::other)?;
            let mut options = OpenOptions::new();
            let log = options
                .create(true)
                .append(true)
                .open(folder.path().join("trainer.log"))?;
            let mut command = Command::new(&trainer.path);
            command.arg("job").arg("--dir").arg(folder.path());
            // Above DATA/jobs/ID.
            if let Some(data) = folder.path().ancestors().nth(2) {
                command.arg("--class_image_cache").arg(data.join("class-images"));
            }
            let mut child = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .process_group(0)
                .spawn()?;
            let ended: Ended = Box::pin(async move {
                match child.wait().await {
                    Ok(status) => match (status.code(), status.signal()) {
                        (Some(code), _) => Exit::Code(code),
                        (None, Some(signal)) => Exit::Signal(signal),
                        (None, None) => Exit::Unknown,
                    },
                    Err(_) => Exit::Unknown,
                }
            });
            Ok(ended)
        })
    }
}

/// A trainer that an earlier server started: watched by its lock.
pub fn adopted(folder: JobFolder) -> Ended {
    Box::pin(async move {
        while folder.is_locked() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Exit::Unknown
    })
}
