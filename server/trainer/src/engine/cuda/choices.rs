//! Which of a library's algorithms is used for a shape: timed once per card, then remembered, so that every later run
//! starts at once and computes the same bits.

use std::{collections::BTreeMap, path::PathBuf};

use super::super::session::Algorithms;

/// Positions in the libraries' lists of proposals, by shape. A list is the same every time for the same card and the
/// same versions of the libraries, which the file's name carries.
pub(super) struct Choices {
    chosen: BTreeMap<String, usize>,
    /// A saved run's, which go before all others.
    preferred: BTreeMap<String, usize>,
    /// All that plans were made of so far.
    used: BTreeMap<String, usize>,
    card: String,
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
            preferred: BTreeMap::new(),
            used: BTreeMap::new(),
            card: card.to_owned(),
            file,
            changed: false,
            timed,
        }
    }

    pub fn get(&self, shape: &str) -> Option<usize> {
        self.preferred.get(shape).or_else(|| self.chosen.get(shape)).copied()
    }

    /// Takes note of what a plan was made of.
    pub fn note(&mut self, shape: String, position: usize) {
        self.used.insert(shape, position);
    }

    pub fn used(&self) -> Algorithms {
        Algorithms {
            of: self.card.clone(),
            chosen: self.used.clone(),
        }
    }

    /// Those of a saved run go before what this card was timed at; those of another card or other libraries mean nothing here.
    pub fn prefer(&mut self, algorithms: &Algorithms) -> bool {
        let hold = algorithms.of == self.card;
        if hold {
            self.preferred.clone_from(&algorithms.chosen);
        }
        hold
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

/// The least of the times so far.
pub(super) fn least(times: &[Option<f32>]) -> f32 {
    times.iter().flatten().copied().fold(f32::INFINITY, f32::min)
}

/// Of the times of proposals, `None` where one does not work, the position to take: the first that is within 2 % of the best, so
/// that small changes of the clock do not change the choice.
pub(super) fn best(times: &[Option<f32>]) -> Option<usize> {
    let least = least(times);
    times
        .iter()
        .position(|time| time.is_some_and(|time| time <= least * 1.02))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_runs_choices_go_first_on_the_card_that_they_were_made_on() {
        let mut choices = Choices::of("no such card", false);
        choices.set("a".to_owned(), 1);
        choices.note("a".to_owned(), 1);
        let mut saved = choices.used();
        assert_eq!((saved.of.as_str(), saved.chosen.get("a")), ("no such card", Some(&1)));
        saved.chosen = BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]);
        let elsewhere = Algorithms {
            of: "another".to_owned(),
            ..saved.clone()
        };
        assert!(!choices.prefer(&elsewhere));
        assert_eq!((choices.get("a"), choices.get("b")), (Some(1), None));
        assert!(choices.prefer(&saved));
        assert_eq!((choices.get("a"), choices.get("b")), (Some(3), Some(2)));
        // What was timed here is remembered as it was.
        assert_eq!(choices.chosen.get("a"), Some(&1));
    }

    #[test]
    fn an_earlier_proposal_wins_a_near_tie() {
        assert_eq!(best(&[None, Some(1.01), Some(1.), Some(3.)]), Some(1));
        assert_eq!(best(&[Some(1.1), Some(1.), None]), Some(1));
        assert_eq!(best(&[None, None]), None);
        assert_eq!(best(&[]), None);
    }
}
