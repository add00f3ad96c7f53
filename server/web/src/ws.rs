//! Live events. A viewer's socket holds a place in the job's log and is woken when the log grows; it then reads on
//! from its place. So replay and live are the same thing, nothing is missed or sent twice, and a slow viewer costs
//! nothing but its own time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use app::api::{PreviewHeader, ToPage, ToServer, encode_preview};
use app::event::{Event, EventKind};
use app::job::{JobId, JobSummary};
use app::run::Run;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout};

use crate::error::chain;
use crate::jobs::folder::{FolderError, LogReader};
use crate::routes::picture;
use crate::server::AppState;

const PING_EVERY: Duration = Duration::from_secs(20);
/// A viewer that takes nothing, or says nothing, for so long is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(65);
const SEND_LIMIT: Duration = Duration::from_secs(30);
/// Events in one frame.
const BATCH: usize = 500;
/// On replay only the previews of so many rounds are sent; the page asks for older ones by their address.
const REPLAYED_ROUNDS: usize = 2;
const MAX_PREVIEW_BYTES: u64 = 1 << 20;
/// What a page says is short.
const MAX_MESSAGE_BYTES: usize = 4096;

pub async fn connect(State(state): State<AppState>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .max_message_size(MAX_MESSAGE_BYTES)
        .on_upgrade(async move |socket| {
            if let Err(Leave(why)) = Viewer::new(state, socket).serve().await {
                tracing::debug!("a viewer left: {why}");
            }
        })
}

/// Why a connection ends.
struct Leave(&'static str);

struct Viewer {
    state: AppState,
    socket: WebSocket,
    jobs: watch::Receiver<Arc<Vec<JobSummary>>>,
    watched: Option<Watched>,
}

/// A viewer's place in one job's log.
struct Watched {
    job: JobId,
    reader: LogReader,
    grown: watch::Receiver<u64>,
    /// Events up to this number are old news to others.
    replay_until: u64,
    /// Of the replay, previews of these steps are sent.
    replay_steps: BTreeSet<u32>,
    /// There may be more to read right now.
    more: bool,
}

/// What woke the viewer's loop.
enum Woken {
    Message(Option<Result<Message, axum::Error>>),
    JobsChanged,
    LogGrown,
    Deleted,
    Ping,
    Ending,
}

impl Viewer {
    fn new(state: AppState, socket: WebSocket) -> Self {
        let mut jobs = state.jobs.watch_list();
        jobs.mark_changed();
        Self {
            state,
            socket,
            jobs,
            watched: None,
        }
    }

    async fn serve(mut self) -> Result<(), Leave> {
        let mut ping = interval(PING_EVERY);
        let mut heard = Instant::now();
        loop {
            match self.wake(&mut ping).await {
                Woken::Message(Some(Ok(message))) => {
                    heard = Instant::now();
                    self.take(message).await?;
                }
                Woken::Message(Some(Err(_)) | None) => return Err(Leave("the connection broke")),
                Woken::JobsChanged => {
                    let jobs = self.jobs.borrow_and_update().to_vec();
                    self.say(&ToPage::Jobs { jobs }).await?;
                }
                Woken::LogGrown => self.send_batch().await?,
                Woken::Deleted => {
                    if let Some(Watched { job, .. }) = self.watched.take() {
                        self.say(&ToPage::Gone { job }).await?;
                    }
                }
                Woken::Ping if heard.elapsed() > SILENCE_LIMIT => return Err(Leave("silent for too long")),
                Woken::Ping => self.send(Message::Ping(Bytes::new())).await?,
                Woken::Ending => {
                    self.send(Message::Close(None)).await?;
                    return Err(Leave("the server ends"));
                }
            }
        }
    }

    /// Waits for the next thing to do. What the page says comes before what it is sent, so that it can turn to
    /// another job in the middle of a long replay.
    async fn wake(&mut self, ping: &mut tokio::time::Interval) -> Woken {
        let watched = &mut self.watched;
        let grown = async {
            match watched {
                Some(w) if w.more => Woken::LogGrown,
                Some(w) => w.grown.changed().await.map_or(Woken::Deleted, |()| Woken::LogGrown),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.state.ending.wait_for(|end| *end) => Woken::Ending,
            message = self.socket.recv() => Woken::Message(message),
            Ok(()) = self.jobs.changed() => Woken::JobsChanged,
            _ = ping.tick() => Woken::Ping,
            woken = grown => woken,
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), Leave> {
        match message {
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ToServer::Watch { job, after }) => self.watch(job, after).await,
                Ok(ToServer::Unwatch) => {
                    self.watched = None;
                    Ok(())
                }
                Err(_) => Err(Leave("it said something unknown")),
            },
            Message::Close(_) => Err(Leave("it said goodbye")),
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => Ok(()),
        }
    }

    async fn watch(&mut self, job: JobId, after: u64) -> Result<(), Leave> {
        // Subscribed before the log is read: what is written in between wakes us.
        let Some(grown) = self.state.jobs.watch_log(&job) else {
            self.watched = None;
            return self.say(&ToPage::Gone { job }).await;
        };
        let reader = self.state.jobs.folder(&job).reader();
        let prepared = tokio::task::spawn_blocking(move || Watched::prepare(job, reader, grown, after)).await;
        match prepared.map_err(FolderError::from).and_then(|inner| inner) {
            Ok(watched) => self.watched = Some(watched),
            Err(e) => tracing::error!("a log cannot be replayed: {}", chain(&e)),
        }
        Ok(())
    }

    /// Sends what is new, at most one batch, then the previews of its samples.
    async fn send_batch(&mut self) -> Result<(), Leave> {
        let Some(mut watched) = self.watched.take() else {
            return Ok(());
        };
        let read = tokio::task::spawn_blocking(move || {
            watched.grown.borrow_and_update();
            let events = watched.reader.next_batch(BATCH);
            (watched, events)
        });
        let Ok((mut watched, events)) = read.await else {
            return Err(Leave("reading the log ended early"));
        };
        let events = match events {
            Ok(events) => events,
            Err(e) => {
                tracing::error!(job.id = %watched.job, "a log cannot be read: {}", chain(&e));
                return Ok(());
            }
        };
        watched.more = !events.is_empty();
        let job = watched.job.clone();
        let previews: Vec<(PreviewHeader, String)> = events.iter().filter_map(|e| watched.preview(e)).collect();
        self.watched = Some(watched);
        if events.is_empty() {
            return Ok(());
        }
        self.say(&ToPage::Events { job, events }).await?;
        for (header, path) in previews {
            self.send_preview(&header, &path).await?;
        }
        Ok(())
    }

    async fn send_preview(&mut self, header: &PreviewHeader, path: &str) -> Result<(), Leave> {
        let folder = self.state.jobs.folder(&header.job);
        let Some((path, mime)) = picture(folder.path(), path) else {
            return Ok(());
        };
        let small = tokio::fs::metadata(&path)
            .await
            .is_ok_and(|m| m.len() <= MAX_PREVIEW_BYTES);
        // A preview that is gone is no reason to leave: the page has the full sample's address.
        let Some(image) = (if small { tokio::fs::read(&path).await.ok() } else { None }) else {
            return Ok(());
        };
        let header = PreviewHeader {
            mime: mime.into(),
            ..header.clone()
        };
        self.send(Message::Binary(encode_preview(&header, &image).into())).await
    }

    async fn say(&mut self, words: &ToPage) -> Result<(), Leave> {
        let text = serde_json::to_string(words).map_err(|_| Leave("an answer does not serialise"))?;
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Leave> {
        match timeout(SEND_LIMIT, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Leave("the connection broke")),
            Err(_) => Err(Leave("it takes nothing")),
        }
    }
}

impl Watched {
    /// Reads the log once for what a replay needs to know, and finds the viewer's place in it.
    fn prepare(
        job: JobId,
        mut reader: LogReader,
        grown: watch::Receiver<u64>,
        after: u64,
    ) -> Result<Self, FolderError> {
        let mut place = reader.clone();
        place.skip_to(after)?;
        let mut run = Run::default();
        loop {
            let events = reader.next_batch(usize::MAX)?;
            if events.is_empty() {
                break;
            }
            if events.iter().any(|event| run.apply(event).is_err()) {
                break;
            }
        }
        Ok(Self {
            job,
            reader: place,
            grown,
            replay_until: run.last_seq,
            replay_steps: run.samples.keys().rev().take(REPLAYED_ROUNDS).copied().collect(),
            more: true,
        })
    }

    fn preview(&self, event: &Event) -> Option<(PreviewHeader, String)> {
        let EventKind::Sample {
            step, index, preview, ..
        } = &event.kind
        else {
            return None;
        };
        if event.seq <= self.replay_until && !self.replay_steps.contains(step) {
            return None;
        }
        let header = PreviewHeader {
            job: self.job.clone(),
            seq: event.seq,
            step: *step,
            index: *index,
            mime: String::new(),
        };
        Some((header, preview.clone()))
    }
}
