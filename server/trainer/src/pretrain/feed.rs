//! Makes what steps read ahead of the device, on a thread of its own.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};

use super::PretrainError;

/// What `make` makes of each update, in order; four are ready ahead.
pub fn feed<T: Send + 'static>(
    updates: Range<u64>,
    make: impl Fn(u64) -> T + Send + 'static,
) -> Result<Receiver<T>, PretrainError> {
    let (sender, receiver) = sync_channel(4);
    let work = move || {
        for update in updates {
            // The receiver is gone when training stopped early.
            if sender.send(make(update)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("starter-data".into())
        .spawn(work)
        .map_err(|source| PretrainError::Read {
            path: "a thread for the data set".into(),
            source,
        })?;
    Ok(receiver)
}
