//! Composes batches ahead of the device, on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use super::PretrainError;
use super::data::{Batch, Mix, StarterData};

/// Batches in order of their step; two are ready ahead.
pub fn feed(
    data: Arc<StarterData>,
    from: u64,
    to: u64,
    rows: usize,
    mix: Mix,
) -> Result<Receiver<Batch>, PretrainError> {
    let (sender, receiver) = sync_channel(2);
    let compose = move || {
        for step in from..to {
            // The receiver is gone when training stopped early.
            if sender.send(data.batch(step, rows, mix)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("starter-data".into())
        .spawn(compose)
        .map_err(|source| PretrainError::Read {
            path: "a thread for the data set".into(),
            source,
        })?;
    Ok(receiver)
}
