//! Takes jobs from the queue one at a time, follows each run by its log, and puts a run that died back on its feet.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use app::event::EventKind;
use app::job::{Failure, JobId, JobState, JobSummary};
use app::run::Run;
use tokio::sync::{Notify, watch};

use super::folder::{FolderError, JobFolder, LogReader};
use super::runner::{Ended, Exit, Runner, adopted};
use super::{Entry, Index, Inner, Jobs, names, table};
use crate::db::Db;
use crate::error::chain;

/// How often the log of a running job is looked at.
const POLL: Duration = Duration::from_millis(50);
/// A trainer that dies this often without getting any further is given up.
const MAX_RESTARTS: u32 = 3;
/// Between a death and the restart: memory that it held is given back.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the jobs cannot be read")]
    Db(#[from] rusqlite::Error),
    #[error("{path}")]
    Io { path: PathBuf, source: std::io::Error },
}

impl Jobs {
    /// Reads what there is: the table, then each unfinished job's log, then folders the table does not know.
    ///
    /// # Errors
    /// What disk and database say.
    pub fn open(db: Db, dir: PathBuf) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: dir.clone(),
            source,
        };
        std::fs::create_dir_all(&dir).map_err(io)?;
        let mut known = BTreeSet::new();
        let mut entries = Vec::new();
        for (summary, recipe, loads_in_webuis) in table::all(&db)? {
            known.insert(summary.id.clone());
            entries.push(Entry {
                last_seq: watch::Sender::new(summary.last_seq),
                stop_asked: false,
                recipe: Arc::new(recipe),
                loads_in_webuis,
                summary,
            });
        }
        for found in std::fs::read_dir(&dir).map_err(io)?.flatten() {
            let name = found.file_name().to_string_lossy().into_owned();
            // What a crash left of a job that was being made or deleted.
            if name.starts_with(".new-") || name.starts_with(".trash-") {
                if let Err(e) = std::fs::remove_dir_all(found.path()) {
                    tracing::warn!("{} stays: {e}", found.path().display());
                }
            } else if let Ok(id) = JobId::parse(&name)
                && !known.contains(&id)
                && let Some(entry) = import(&JobFolder::new(found.path()), id)
            {
                table::insert(&db, &entry.summary, &entry.recipe, entry.loads_in_webuis)?;
                entries.push(entry);
            }
        }
        let jobs = Self(Arc::new(Inner {
            db,
            dir,
            index: Mutex::new(Index { entries, active: None }),
            list: watch::Sender::new(Arc::default()),
            listed_at: Mutex::new(Instant::now()),
            added: Notify::new(),
        }));
        jobs.catch_up();
        jobs.publish_list();
        Ok(jobs)
    }

    /// A trainer may have gone on, or finished, while no server was there.
    fn catch_up(&self) {
        let unfinished: Vec<JobId> = {
            let index = self.index();
            let open = index.entries.iter().filter(|e| !e.summary.state.is_over());
            open.map(|e| e.summary.id.clone()).collect()
        };
        for id in unfinished {
            let folder = self.folder(&id);
            let stop_asked = folder.stop_file().exists();
            if let Some(entry) = self.index().find(&id) {
                entry.stop_asked = stop_asked;
            }
            let mut follow = Follow::new(&folder);
            match follow.read_new() {
                Ok(()) => self.note(&id, &follow.run),
                Err(e) => tracing::error!(job.id = %id, "the log of job {id} is not readable: {}", chain(&e)),
            }
        }
    }

    /// Runs jobs until the server ends. Running trainers are left running then.
    pub async fn supervise(self, runner: Arc<dyn Runner>) {
        loop {
            let next = self.take_next();
            match next {
                Some(id) => {
                    self.run_one(&id, runner.as_ref()).await;
                    self.index().active = None;
                }
                None => self.0.added.notified().await,
            }
        }
    }

    /// A job that was running before comes first, then the queue.
    fn take_next(&self) -> Option<JobId> {
        let mut index = self.index();
        let begun = |e: &&Entry| matches!(e.summary.state, JobState::Running | JobState::Stopping);
        let waits = |e: &&Entry| e.summary.state == JobState::Queued;
        let entries = || index.entries.iter();
        let next = entries().find(begun).or_else(|| entries().find(waits))?;
        let id = next.summary.id.clone();
        index.active = Some(id.clone());
        Some(id)
    }

    async fn run_one(&self, id: &JobId, runner: &dyn Runner) {
        let folder = self.folder(id);
        if let Err(e) = self.run_to_end(id, &folder, runner).await {
            tracing::error!(job.id = %id, "job {id} cannot be followed: {}", chain(&e));
            // Without a readable log there is no last event to write; the list must not offer it as running.
            let failure = failure("log_unreadable", "the job's log cannot be read".into(), Some(chain(&e)));
            let state = JobState::Failed { failure };
            let last_seq = self.watch_log(id).map_or(0, |log| *log.borrow());
            self.note(
                id,
                &Run {
                    state,
                    last_seq,
                    ..Run::default()
                },
            );
        }
    }

    /// Starts or adopts a trainer, follows it, and starts it again when it died, until the log has its last event.
    async fn run_to_end(&self, id: &JobId, folder: &JobFolder, runner: &dyn Runner) -> Result<(), FolderError> {
        let mut follow = Follow::new(folder);
        follow.read_new()?;
        let mut restarts = 0;
        let mut reached = follow.progress();
        while !follow.run.state.is_over() {
            let ended = if folder.is_locked() {
                tracing::info!(job.id = %id, "job {id} is running already; following it");
                Ok(adopted(folder.clone()))
            } else {
                tracing::info!(job.id = %id, "job {id} starts");
                runner.start(folder.clone()).await
            };
            let exit = match ended {
                Ok(ended) => self.follow(id, &mut follow, ended).await?,
                Err(e) => {
                    let failure = failure(
                        "trainer_missing",
                        "the trainer does not start".into(),
                        Some(e.to_string()),
                    );
                    folder.append(EventKind::Failed { failure })?;
                    Exit::Unknown
                }
            };
            follow.read_new()?;
            if follow.progress() > reached {
                (restarts, reached) = (0, follow.progress());
            }
            if !follow.run.state.is_over() && !folder.is_locked() {
                restarts += 1;
                self.after_death(id, folder, exit, restarts).await?;
                follow.read_new()?;
            }
            self.note(id, &follow.run);
        }
        tracing::info!(job.id = %id, "job {id} is over: {}", state_word(&follow.run.state));
        Ok(())
    }

    /// Tells viewers what the log says until the trainer is gone and all it wrote is read.
    async fn follow(&self, id: &JobId, follow: &mut Follow, mut ended: Ended) -> Result<Exit, FolderError> {
        let mut tick = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let exit = tokio::select! {
                exit = &mut ended => Some(exit),
                _ = tick.tick() => None,
            };
            let before = follow.run.last_seq;
            follow.read_new()?;
            if follow.run.last_seq != before {
                self.note(id, &follow.run);
            }
            if let Some(exit) = exit {
                return Ok(exit);
            }
        }
    }

    /// The trainer went without a last event: killed ones are started again, others failed.
    async fn after_death(&self, id: &JobId, folder: &JobFolder, exit: Exit, deaths: u32) -> Result<(), FolderError> {
        let killed = !matches!(exit, Exit::Code(_));
        if killed && deaths <= MAX_RESTARTS {
            tracing::warn!(job.id = %id, "the trainer of job {id} died ({exit:?}); training resumes by itself");
            tokio::time::sleep(RESTART_PAUSE).await;
            return Ok(());
        }
        let message = match exit {
            Exit::Code(code) => format!("the trainer ended with status {code} and no result"),
            Exit::Signal(9) => "the trainer was killed again and again, most likely for using too much memory".into(),
            Exit::Signal(signal) => format!("the trainer was ended by signal {signal} again and again"),
            Exit::Unknown => "the trainer died again and again".into(),
        };
        let failure = failure("trainer_died", message, folder.trainer_said(8));
        folder.append(EventKind::Failed { failure })
    }
}

fn failure(code: &str, message: String, hint: Option<String>) -> Failure {
    Failure {
        code: code.into(),
        message,
        hint,
    }
}

fn state_word(state: &JobState) -> String {
    match state {
        JobState::Done => "done".into(),
        JobState::Stopped => "stopped".into(),
        JobState::Failed { failure } => format!("failed, {}", failure.message),
        JobState::Queued | JobState::Running | JobState::Stopping => "not over".into(),
    }
}

/// A job folder that the table does not know, such as after the loss of the database.
fn import(folder: &JobFolder, id: JobId) -> Option<Entry> {
    let mut follow = Follow::new(folder);
    let read = folder.recipe().and_then(|recipe| follow.read_new().map(|()| recipe));
    let recipe = match read {
        Ok(recipe) => recipe,
        Err(e) => {
            tracing::warn!("{} is not taken in: {}", folder.path().display(), chain(&e));
            return None;
        }
    };
    let summary = JobSummary {
        id,
        state: follow.run.state.clone(),
        created_ms: follow.first_ms,
        step: follow.run.step(),
        steps: recipe.max_train_steps,
        title: names::title(&recipe),
        last_seq: follow.run.last_seq,
    };
    Some(Entry {
        last_seq: watch::Sender::new(summary.last_seq),
        stop_asked: false,
        recipe: Arc::new(recipe),
        loads_in_webuis: None,
        summary,
    })
}

/// The fold of a log that grows.
struct Follow {
    reader: LogReader,
    run: Run,
    first_ms: u64,
}

impl Follow {
    fn new(folder: &JobFolder) -> Self {
        Self {
            reader: folder.reader(),
            run: Run::default(),
            first_ms: 0,
        }
    }

    fn read_new(&mut self) -> Result<(), FolderError> {
        loop {
            let events = self.reader.next_batch(usize::MAX)?;
            let Some(first) = events.first() else { return Ok(()) };
            if self.first_ms == 0 {
                self.first_ms = first.at_ms;
            }
            for event in &events {
                if let Err(gap) = self.run.apply(event) {
                    tracing::error!("the log jumps from event {} to {}", gap.expected, gap.got);
                    self.run.last_seq = event.seq - 1;
                    // The event follows its predecessor now.
                    if self.run.apply(event).is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What a restart does not lose.
    fn progress(&self) -> (u32, u32) {
        (self.run.class_images.done, self.run.saved_step.unwrap_or(0))
    }
}
