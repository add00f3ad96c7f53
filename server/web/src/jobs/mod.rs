//! The jobs: what there is, who waits, who runs. Folders are the truth of each run, SQLite of the list; this keeps
//! what both say in memory for the answers, and tells viewers when something changed.

pub mod folder;
pub mod names;
pub mod runner;
pub mod supervisor;
pub(crate) mod table;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use app::event::EventKind;
use app::job::{JobDetail, JobId, JobState, JobSummary};
use app::recipe::Recipe;
use tokio::sync::{Notify, watch};

use crate::db::{Db, now_ms};
use crate::error::ApiError;
use folder::JobFolder;

/// A moving step count is told to the list of jobs this often; a new state at once.
const LIST_PACE: Duration = Duration::from_secs(1);

/// A job as the server knows it.
pub(crate) struct Entry {
    pub summary: JobSummary,
    pub recipe: Arc<Recipe>,
    /// As in `JobDetail`.
    pub loads_in_webuis: Option<bool>,
    pub stop_asked: bool,
    /// Latest `seq` in the log. Viewers wait on it and read the log themselves.
    pub last_seq: watch::Sender<u64>,
}

#[derive(Default)]
struct Index {
    /// In the order of the queue.
    entries: Vec<Entry>,
    /// The job a trainer works on, or is about to.
    active: Option<JobId>,
}

impl Index {
    fn find(&mut self, id: &JobId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|e| e.summary.id == *id)
    }
}

struct Inner {
    db: Db,
    dir: PathBuf,
    index: Mutex<Index>,
    list: watch::Sender<Arc<Vec<JobSummary>>>,
    listed_at: Mutex<Instant>,
    /// A job was added: wakes the supervisor.
    added: Notify,
}

#[derive(Clone)]
pub struct Jobs(Arc<Inner>);

impl Jobs {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn folder(&self, id: &JobId) -> JobFolder {
        JobFolder::new(self.0.dir.join(id.as_str()))
    }

    /// Lays out the folder, then records the job, then tells everyone.
    ///
    /// # Errors
    /// What disk and database say.
    pub async fn create(
        &self,
        recipe: Recipe,
        loads_in_webuis: bool,
        photos: Vec<Vec<PathBuf>>,
    ) -> Result<JobDetail, ApiError> {
        let loads_in_webuis = Some(loads_in_webuis);
        let id = names::job_id(&recipe).map_err(ApiError::internal)?;
        let (jobs, copy) = (self.clone(), recipe.clone());
        let work = move || -> Result<JobSummary, ApiError> {
            let folder = jobs.folder(&id);
            folder.create(&copy, &photos).map_err(ApiError::internal)?;
            let summary = JobSummary {
                id,
                state: JobState::Queued,
                created_ms: now_ms(),
                step: 0,
                steps: copy.max_train_steps,
                title: names::title(&copy),
                last_seq: 1,
            };
            table::insert(&jobs.0.db, &summary, &copy, loads_in_webuis).map_err(ApiError::internal)?;
            jobs.index().entries.push(Entry {
                summary: summary.clone(),
                recipe: Arc::new(copy),
                loads_in_webuis,
                stop_asked: false,
                last_seq: watch::Sender::new(1),
            });
            Ok(summary)
        };
        let summary = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)??;
        tracing::info!(job.id = %summary.id, "job {} is queued", summary.id);
        self.publish_list();
        self.0.added.notify_one();
        Ok(JobDetail {
            summary,
            recipe,
            loads_in_webuis,
        })
    }

    /// Newest first.
    pub fn list(&self) -> Vec<JobSummary> {
        self.index().entries.iter().rev().map(|e| e.summary.clone()).collect()
    }

    /// The list as it changes.
    pub fn watch_list(&self) -> watch::Receiver<Arc<Vec<JobSummary>>> {
        self.0.list.subscribe()
    }

    /// `None` when there is no such job.
    pub fn watch_log(&self, id: &JobId) -> Option<watch::Receiver<u64>> {
        self.index().find(id).map(|e| e.last_seq.subscribe())
    }

    /// # Errors
    /// When there is no such job.
    pub fn detail(&self, id: &JobId) -> Result<JobDetail, ApiError> {
        let mut index = self.index();
        let entry = index.find(id).ok_or_else(|| no_job(id))?;
        Ok(JobDetail {
            summary: entry.summary.clone(),
            recipe: Recipe::clone(&entry.recipe),
            loads_in_webuis: entry.loads_in_webuis,
        })
    }

    /// A job that waits leaves the queue; one that runs is asked to finish its step, save and export.
    ///
    /// # Errors
    /// When there is no such job, or it is over.
    pub async fn stop(&self, id: JobId) -> Result<JobSummary, ApiError> {
        let jobs = self.clone();
        let stopped = tokio::task::spawn_blocking(move || jobs.stop_now(&id));
        let summary = stopped.await.map_err(ApiError::internal)??;
        self.publish_list();
        Ok(summary)
    }

    fn stop_now(&self, id: &JobId) -> Result<JobSummary, ApiError> {
        // Held throughout: the supervisor must not take a job that is about to leave the queue.
        let mut index = self.index();
        let active = index.active.as_ref() == Some(id);
        let entry = index.find(id).ok_or_else(|| no_job(id))?;
        if entry.summary.state.is_over() {
            return Err(ApiError::JobIsOver(id.to_string()));
        }
        let folder = self.folder(id);
        if active || entry.summary.state != JobState::Queued {
            folder.ask_to_stop().map_err(ApiError::internal)?;
            entry.stop_asked = true;
            entry.summary.state = JobState::Stopping;
            table::update(&self.0.db, &entry.summary).map_err(ApiError::internal)?;
        } else {
            folder
                .append(EventKind::Stopped { step: 0 })
                .map_err(ApiError::internal)?;
            entry.summary.state = JobState::Stopped;
            entry.summary.last_seq += 1;
            table::update(&self.0.db, &entry.summary).map_err(ApiError::internal)?;
            entry.last_seq.send_replace(entry.summary.last_seq);
        }
        Ok(entry.summary.clone())
    }

    /// # Errors
    /// When there is no such job, or it runs.
    pub async fn delete(&self, id: JobId) -> Result<(), ApiError> {
        let jobs = self.clone();
        let work = move || {
            {
                let mut index = jobs.index();
                let entry = index.find(&id).ok_or_else(|| no_job(&id))?;
                let runs = matches!(entry.summary.state, JobState::Running | JobState::Stopping);
                if runs || index.active.as_ref() == Some(&id) {
                    return Err(ApiError::JobRuns(id.to_string()));
                }
                table::delete(&jobs.0.db, &id).map_err(ApiError::internal)?;
                // Dropping the entry drops its channel: viewers of the job learn that it is gone.
                index.entries.retain(|e| e.summary.id != id);
            }
            jobs.folder(&id).delete().map_err(ApiError::internal)
        };
        tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)??;
        self.publish_list();
        Ok(())
    }

    /// Tells viewers the list as it is now.
    fn publish_list(&self) {
        *self.0.listed_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.list.send_replace(Arc::new(self.list()));
    }

    /// Takes what the fold of a run says now into the list. A new state is on disk before anyone is told.
    fn note(&self, id: &JobId, run: &app::run::Run) {
        let mut index = self.index();
        let Some(entry) = index.find(id) else { return };
        let state = match run.state.clone() {
            state if state.is_over() => state,
            _ if entry.stop_asked => JobState::Stopping,
            state => state,
        };
        let changed = state != entry.summary.state;
        entry.summary.state = state;
        entry.summary.step = run.step();
        if run.steps > 0 {
            entry.summary.steps = run.steps;
        }
        entry.summary.last_seq = run.last_seq;
        if changed && let Err(e) = table::update(&self.0.db, &entry.summary) {
            tracing::error!(job.id = %id, "the state of job {id} is not recorded: {}", crate::error::chain(&e));
        }
        entry.last_seq.send_replace(run.last_seq);
        drop(index);
        let due = self
            .0
            .listed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
            >= LIST_PACE;
        if changed || due {
            self.publish_list();
        }
    }
}

pub fn no_job(id: &JobId) -> ApiError {
    ApiError::NotFound(format!("job {id}"))
}
