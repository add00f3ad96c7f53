//! The one store of server truth: the server, the list of jobs, and the watched run as the fold of its events.

use std::collections::BTreeMap;

use app::api::{PreviewHeader, ServerInfo, ToPage, ToServer};
use app::event::Event;
use app::job::{JobDetail, JobId, JobState, JobSummary};
use app::run::Run;
use gloo_timers::callback::Timeout;
use leptos::prelude::*;
use leptos::task::spawn_local;

use super::http::{self, Fetched};
use super::socket::{Socket, Woken, on_wake};

/// Events that arrive within this time are taken in together, so that 40 steps a second do not redraw 40 times.
const GATHER_MS: u32 = 80;

/// How the live connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Connecting,
    Open,
    /// Lost; it is tried again by itself.
    Lost,
}

#[derive(Clone, Copy)]
pub struct Live {
    pub server: RwSignal<Fetched<ServerInfo>>,
    /// Newest first. `None` until the server has sent it.
    pub jobs: RwSignal<Option<Vec<JobSummary>>>,
    pub link: RwSignal<Link>,
    pub watched: RwSignal<Option<JobId>>,
    pub run: RwSignal<Run>,
    pub detail: RwSignal<Fetched<JobDetail>>,
    /// The watched job does not exist.
    pub gone: RwSignal<bool>,
    /// Blob URLs of previews that came as binary frames, by step and index.
    pub previews: RwSignal<BTreeMap<(u32, u32), String>>,
    wire: StoredValue<Wire, LocalStorage>,
}

/// What belongs to the connection and not to the view.
#[derive(Default)]
struct Wire {
    socket: Option<Socket>,
    retry: Option<Timeout>,
    attempt: u32,
    gathered: Vec<Event>,
    flush: Option<Timeout>,
}

impl Live {
    /// Connects and stays connected.
    pub fn start() -> Self {
        let live = Self {
            server: RwSignal::new(Fetched::Pending),
            jobs: RwSignal::new(None),
            link: RwSignal::new(Link::Connecting),
            watched: RwSignal::new(None),
            run: RwSignal::new(Run::default()),
            detail: RwSignal::new(Fetched::Pending),
            gone: RwSignal::new(false),
            previews: RwSignal::new(BTreeMap::new()),
            wire: StoredValue::new_local(Wire::default()),
        };
        on_wake(move |why| live.woken(why));
        live.connect();
        live
    }

    /// Makes `job` the watched one. Watching it again changes nothing.
    pub fn watch(self, job: &JobId) {
        if self.watched.with_untracked(|now| now.as_ref() == Some(job)) {
            return;
        }
        self.wire.update_value(|wire| {
            wire.gathered.clear();
            wire.flush = None;
        });
        self.previews.update(|previews| {
            for url in std::mem::take(previews).into_values() {
                revoke(&url);
            }
        });
        self.run.set(Run::default());
        self.gone.set(false);
        self.detail.set(Fetched::Pending);
        self.watched.set(Some(job.clone()));
        self.ask_for_events();
        self.load_detail();
    }

    /// The watched job's line in the list.
    pub fn summary(self) -> Option<JobSummary> {
        let job = self.watched.get()?;
        self.jobs
            .with(|jobs| jobs.as_ref()?.iter().find(|j| j.id == job).cloned())
    }

    /// The watched run's state. Only the list knows that a run is asked to stop.
    pub fn state(self) -> JobState {
        let folded = self.run.with(|run| run.state.clone());
        match self.summary().map(|s| s.state) {
            Some(JobState::Stopping) if !folded.is_over() => JobState::Stopping,
            _ => folded,
        }
    }

    pub fn refresh_server(self) {
        spawn_local(async move { self.server.set(http::get("/api/server").await.into()) });
    }

    fn load_detail(self) {
        let Some(job) = self.watched.get_untracked() else {
            return;
        };
        spawn_local(async move {
            let detail = http::get(&format!("/api/jobs/{job}")).await;
            if self.watched.get_untracked().as_ref() == Some(&job) {
                self.detail.set(detail.into());
            }
        });
    }

    fn connect(self) {
        self.wire.update_value(|wire| {
            wire.retry = None;
            wire.socket = Socket::open(
                move || self.opened(),
                move |text| self.text(&text),
                move |frame| self.frame(&frame),
                move || self.closed(),
            );
        });
        // Absent after the server was away at the start, or another version after it came back.
        if self.server.with_untracked(|s| s.ready().is_none()) {
            self.refresh_server();
        }
        if self.wire.with_value(|wire| wire.socket.is_none()) {
            self.closed();
        }
    }

    fn opened(self) {
        self.wire.update_value(|wire| wire.attempt = 0);
        self.link.set(Link::Open);
        self.ask_for_events();
        if self.server.with_untracked(|s| s.ready().is_none()) {
            self.refresh_server();
        }
        if self.detail.with_untracked(|d| d.ready().is_none()) {
            self.load_detail();
        }
    }

    fn closed(self) {
        self.link.set(Link::Lost);
        self.wire.update_value(|wire| {
            // Doubling from half a second to 15 s, each time between half and all of it, so that many viewers of a
            // server that restarts do not all come back in the same moment.
            let most = (500_u32 << wire.attempt.min(5)).min(15_000);
            let wait = f64::from(most) * (0.5 + 0.5 * js_sys::Math::random());
            wire.attempt += 1;
            wire.retry = Some(Timeout::new(wait as u32, move || self.connect()));
        });
    }

    /// The computer woke up or the network came back: what looks like a connection may be dead.
    fn woken(self, why: Woken) {
        let open = self
            .wire
            .with_value(|wire| wire.socket.as_ref().is_some_and(Socket::is_open));
        if !open || why == Woken::AfterLongAbsence {
            self.wire.update_value(|wire| {
                wire.attempt = 0;
                wire.socket = None;
            });
            self.connect();
        }
    }

    fn ask_for_events(self) {
        let Some(job) = self.watched.get_untracked() else {
            return;
        };
        let after = self.run.with_untracked(|run| run.last_seq);
        let Ok(ask) = serde_json::to_string(&ToServer::Watch { job, after }) else {
            return;
        };
        self.wire.with_value(|wire| {
            if let Some(socket) = &wire.socket {
                socket.send(&ask);
            }
        });
    }

    fn text(self, text: &str) {
        match serde_json::from_str(text) {
            Ok(ToPage::Jobs { jobs }) => self.jobs.set(Some(jobs)),
            Ok(ToPage::Events { job, events }) if self.is_watched(&job) => self.gather(events),
            Ok(ToPage::Gone { job }) if self.is_watched(&job) => self.gone.set(true),
            Ok(ToPage::Events { .. } | ToPage::Gone { .. }) => {}
            // Another version of the server: the page still shows what it understands.
            Err(error) => leptos::logging::warn!("unreadable message: {error}"),
        }
    }

    fn is_watched(self, job: &JobId) -> bool {
        self.watched.with_untracked(|now| now.as_ref() == Some(job))
    }

    fn gather(self, events: Vec<Event>) {
        self.wire.update_value(|wire| {
            wire.gathered.extend(events);
            if wire.flush.is_none() {
                wire.flush = Some(Timeout::new(GATHER_MS, move || self.flush()));
            }
        });
    }

    fn flush(self) {
        let events = self.wire.try_update_value(|wire| {
            wire.flush = None;
            std::mem::take(&mut wire.gathered)
        });
        let events = events.unwrap_or_default();
        let gap = self
            .run
            .try_update(|run| events.iter().try_for_each(|event| run.apply(event)));
        if let Some(Err(gap)) = gap {
            leptos::logging::warn!("event {} is missing, asking again", gap.expected);
            self.ask_for_events();
        }
    }

    fn frame(self, frame: &[u8]) {
        let Some((header, image)) = app::api::decode_preview(frame) else {
            return;
        };
        if !self.is_watched(&header.job) {
            return;
        }
        let Some(url) = blob_url(&header, image) else { return };
        let before = self.previews.try_update(|p| p.insert((header.step, header.index), url));
        if let Some(Some(url)) = before {
            revoke(&url);
        }
    }
}

fn blob_url(header: &PreviewHeader, image: &[u8]) -> Option<String> {
    let parts = js_sys::Array::of1(&js_sys::Uint8Array::from(image));
    let bag = web_sys::BlobPropertyBag::new();
    bag.set_type(&header.mime);
    let blob = web_sys::Blob::new_with_u8_array_sequence_and_options(&parts, &bag).ok()?;
    web_sys::Url::create_object_url_with_blob(&blob).ok()
}

fn revoke(url: &str) {
    // Fails only for what is no URL.
    let _not_a_url = web_sys::Url::revoke_object_url(url);
}
