//! A job: one recipe run once, from the queue to its checkpoint.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;

/// Name of a job and of its folder: lower-case letters, digits and `-`, so that it is safe in paths and URLs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a job name: use 1 to 40 lower-case letters, digits or hyphens")]
pub struct NotAJobId(String);

impl JobId {
    pub fn parse(text: &str) -> Result<Self, NotAJobId> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if (1..=40).contains(&text.len()) && text.chars().all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAJobId(text.to_owned()))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = NotAJobId;
    fn try_from(text: String) -> Result<Self, NotAJobId> {
        Self::parse(&text)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a run ended without a result, and what to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable, for programs: `out_of_memory`, `no_gradient`, `trainer_died`, ...
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    /// Asked to stop; the trainer finishes its step, saves and exports.
    Stopping,
    Done,
    Stopped,
    Failed {
        #[serde(flatten)]
        failure: Failure,
    },
}

impl JobState {
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Done | Self::Stopped | Self::Failed { .. })
    }
}

/// A line in the list of jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    pub id: JobId,
    #[serde(flatten)]
    pub state: JobState,
    pub created_ms: u64,
    /// Steps done and to do.
    pub step: u32,
    pub steps: u32,
    /// The first concept's instance prompt: what a person knows the job by.
    pub title: String,
    pub last_seq: u64,
}

/// A job in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobDetail {
    #[serde(flatten)]
    pub summary: JobSummary,
    pub recipe: Recipe,
    /// Of the base model with the chosen VAE; `None` for jobs of versions that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loads_in_webuis: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_cannot_leave_its_folder() {
        for bad in ["", "..", "a/b", "A", "a b", "ä", &"x".repeat(41)] {
            assert!(JobId::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(JobId::parse("dog-1a2b").expect("good").as_str(), "dog-1a2b");
    }
}
