//! Which of a library's algorithms is used for a shape: timed once per card, then remembered, so that every later run
//! starts at once and computes the same bits.

use std::{collections::BTreeMap, path::PathBuf};

/// Positions in the libraries' lists of proposals, by shape. A list is the same every time for the same card and the
/// same versions of the libraries, which the file's name carries.
pub(super) struct Choices {
    chosen: BTreeMap<String, usize>,
    file: Option<PathBuf>,
    changed: bool,
    /// Where nothing is remembered, proposals are timed; else the first that works is taken, and not remembered.
    pub timed: bool,
}

impl Choices {
    /// `card`: what the choices hold for. An unreadable file counts as none: choosing again costs seconds.
    pub fn of(card: &str, timed: bool) -> Self {
        let name: String = (card.chars())
            .map(|letter| {
                if letter.is_ascii_alphanumeric() || letter == '.' {
                    letter
                } else {
                    '-'
                }
            })
            .collect();
        let file = folder().map(|folder| folder.join(format!("algorithms-{name}.json")));
        let chosen = (file.as_ref())
            .and_then(|file| serde_json::from_slice(&std::fs::read(file).ok()?).ok())
            .unwrap_or_default();
        Self {
            chosen,
            file,
            changed: false,
            timed,
        }
    }

    pub fn get(&self, shape: &str) -> Option<usize> {
        self.chosen.get(shape).copied()
    }

    pub fn set(&mut self, shape: String, position: usize) {
        self.chosen.insert(shape, position);
        self.changed = true;
    }

    /// A folder that cannot be written costs the next run its seconds, and nothing else.
    pub fn save(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let Some(file) = &self.file else { return };
        let written = (|| {
            let folder = file.parent().unwrap_or(file);
            std::fs::create_dir_all(folder)?;
            let mut scratch = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut scratch, &self.chosen)?;
            scratch.persist(file).map_err(|error| error.error)?;
            std::io::Result::Ok(())
        })();
        if let Err(error) = written {
            tracing::warn!("{}: {error}; algorithms will be chosen again next time", file.display());
        }
    }
}

fn folder() -> Option<PathBuf> {
    if let Some(cache) = std::env::var_os("LIKENESS_CACHE") {
        return Some(PathBuf::from(cache));
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    base.map(|base| base.join("likeness"))
}

/// Of the times of proposals, `None` where one does not work, the position to take: the first that is within 2 % of the best, so
/// that small changes of the clock do not change the choice.
pub(super) fn best(times: &[Option<f32>]) -> Option<usize> {
    let least = times.iter().flatten().copied().fold(f32::INFINITY, f32::min);
    times
        .iter()
        .position(|time| time.is_some_and(|time| time <= least * 1.02))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_proposal_wins_a_near_tie() {
        assert_eq!(best(&[None, Some(1.01), Some(1.), Some(3.)]), Some(1));
        assert_eq!(best(&[Some(1.1), Some(1.), None]), Some(1));
        assert_eq!(best(&[None, None]), None);
        assert_eq!(best(&[]), None);
    }
}
