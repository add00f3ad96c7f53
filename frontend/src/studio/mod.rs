//! The photos of one subject: taken in, judged, cropped, sent.
//!
//! `Studio` holds them and does the work; `PhotosPlace` shows them. A studio lives as long as the owner it is made under,
//! so that photos outlive the place that shows them. Make one per subject.

pub mod demo;
mod editor;
mod entry;
mod gesture;
mod intake;
mod print;
mod protocol;
mod sheet;
mod uploads;
mod workers;

use app::api::CropSquare;
use app::crop::Crop;
use app::dataset::{self, SetVerdict};
use app::photo::{PhotoFacts, Severity};
use gloo_timers::future::TimeoutFuture;
use leptos::prelude::*;
use leptos::task::spawn_local;
use web_sys::File;

pub use entry::{Entry, Stage, Upload};
pub use sheet::PhotosPlace;

use crate::memory;
use entry::{Kept, Package, Picture};
use protocol::{Ask, Made};
use uploads::{enqueue, is_there};
use workers::Outcome;

/// A crop rests this long before it is measured, and this much longer before it is sent.
const MEASURE_AFTER_MS: u32 = 180;
const SEND_AFTER_MS: u32 = 700;

/// The photos of one subject. A handle: copies are the same studio.
#[derive(Clone, Copy)]
pub struct Studio {
    /// In the order of the sheet; photo 1 first.
    pub photos: RwSignal<Vec<Entry>>,
    /// The set's verdict; one list of problems for each photo.
    pub verdict: Memo<SetVerdict>,
    /// The photo in the crop editor.
    pub editing: RwSignal<Option<u64>>,
    /// What happened, for screen readers and for those who look: "beach.jpg is here already as photo 3".
    pub news: RwSignal<String>,
    side_px: Signal<u32>,
    owner: StoredValue<Owner>,
    /// Name in the browser's storage.
    key: StoredValue<String>,
    /// What is remembered has been looked up: before that, nothing is written over it.
    restored: RwSignal<bool>,
}

impl Studio {
    /// `side_px`: the chosen model's resolution; crops are made again when it changes.
    pub fn new(side_px: Signal<u32>) -> Self {
        Self::named("photos", side_px)
    }

    /// One of several: `name` keeps their memories apart.
    pub fn named(name: &str, side_px: Signal<u32>) -> Self {
        let photos = RwSignal::new(Vec::<Entry>::new());
        let verdict = Memo::new(move |_| {
            let facts: Vec<_> = photos.read().iter().map(Entry::facts_now).collect();
            dataset::judge(&facts.iter().map(Option::as_ref).collect::<Vec<_>>(), side_px.get())
        });
        let studio = Self {
            photos,
            verdict,
            editing: RwSignal::new(None),
            news: RwSignal::new(String::new()),
            side_px,
            owner: StoredValue::new(Owner::current().unwrap_or_default()),
            key: StoredValue::new(format!("likeness.{name}")),
            restored: RwSignal::new(false),
        };
        studio.follow_side();
        studio.remember();
        intake::guard_against_lost_drops();
        let _kept_for_good = window_event_listener(leptos::ev::online, move |_| studio.retry_failed());
        spawn_local(studio.restore());
        studio
    }

    /// sha256 of the finished uploads, in the order of the sheet.
    pub fn uploaded(self) -> Signal<Vec<String>> {
        let done = |entry: &Entry| match entry.upload.get() {
            Upload::Done { sha256 } => Some(sha256),
            _ => None,
        };
        Signal::derive(move || self.photos.read().iter().filter_map(done).collect())
    }

    /// The first thing that speaks against training with these photos. `None`: nothing does.
    pub fn blocked(self) -> Signal<Option<String>> {
        Signal::derive(move || {
            let problems = self.problems();
            problems
                .into_iter()
                .find(|(severity, _)| *severity == Severity::Error)
                .map(|(_, words)| words)
        })
    }

    /// One sentence: the top bar's, and above the sheet.
    pub fn summary(self) -> Signal<String> {
        Signal::derive(move || self.sentence())
    }

    /// What speaks against training, and what would make it better: for the list before the start.
    pub fn problems(&self) -> Vec<(Severity, String)> {
        let mut problems: Vec<(Severity, String)> = Vec::new();
        let verdict = self.verdict.read();
        for problem in &verdict.problems {
            problems.push((problem.severity(), problem.to_string()));
        }
        for (number, of_photo) in (1..).zip(&verdict.photos) {
            for problem in of_photo.iter().filter(|p| p.severity() == Severity::Error) {
                problems.push((Severity::Error, format!("photo {number}: {problem}")));
            }
        }
        let on_the_way = self.photos.read().iter().filter(|e| e.is_on_the_way()).count();
        if on_the_way > 0 {
            problems.push((
                Severity::Error,
                match on_the_way {
                    1 => "1 photo is still on its way".into(),
                    n => format!("{n} photos are still on their way"),
                },
            ));
        }
        let stuck = self
            .photos
            .read()
            .iter()
            .filter(|e| matches!(e.upload.get(), Upload::Failed { .. }))
            .count();
        if stuck > 0 {
            problems.push((
                Severity::Error,
                match stuck {
                    1 => "1 photo is not ready; see what it says".into(),
                    n => format!("{n} photos are not ready; see what they say"),
                },
            ));
        }
        problems
    }

    fn sentence(&self) -> String {
        let photos = self.photos.read();
        let reading = photos.iter().filter(|e| *e.stage.read() == Stage::Reading).count();
        if reading > 0 {
            return format!("Looking at photo {} of {}", photos.len() - reading + 1, photos.len());
        }
        let sentence = self.verdict.read().sentence();
        let failed = photos
            .iter()
            .filter(|e| matches!(*e.stage.read(), Stage::Failed(_)))
            .count();
        match failed {
            0 => sentence,
            1 => format!("{sentence}; 1 file could not be read"),
            n => format!("{sentence}; {n} files could not be read"),
        }
    }

    /// Takes files in, in their order.
    pub fn add(&self, files: Vec<File>) {
        let owner = self.owner.get_value();
        let take = |file: File| {
            let entry = owner.with(|| Entry::new(file.name()));
            entry.file.set_value(Some(file));
            entry
        };
        let entries: Vec<Entry> = files.into_iter().map(take).collect();
        self.photos.update(|photos| photos.extend(&entries));
        for entry in entries {
            self.ask(entry, None);
        }
    }

    pub fn remove(&self, id: u64) {
        let mut gone = None;
        self.photos.update(|photos| {
            let at = photos.iter().position(|entry| entry.id == id);
            gone = at.map(|at| photos.remove(at));
        });
        if let Some(entry) = gone {
            entry.discard();
            self.news.set(format!("{} removed", entry.name.get_value()));
        }
    }

    pub fn entry(&self, id: u64) -> Option<Entry> {
        self.photos.read().iter().find(|entry| entry.id == id).copied()
    }

    /// Position on the sheet, from 1.
    pub fn number(&self, id: u64) -> usize {
        let at = self.photos.read().iter().position(|entry| entry.id == id);
        at.map_or(0, |at| at + 1)
    }

    /// Shown at once; measured and sent once it rests.
    pub fn set_crop(&self, entry: Entry, crop: Crop) {
        if entry.square() == Some(crop.square()) {
            // Less than a pixel: kept for the gesture, nothing to do.
            entry.crop.set(Some(crop));
            return;
        }
        entry.crop.set(Some(crop));
        let revision = entry.next_revision();
        // What was sent no longer is what is shown.
        entry.package.set_value(None);
        entry.upload.set(Upload::Waiting);
        let studio = *self;
        spawn_local(async move {
            TimeoutFuture::new(MEASURE_AFTER_MS).await;
            if entry.revision.get_value() == revision {
                studio.ask(entry, entry.square());
            }
        });
    }

    /// Another try for an upload that failed.
    pub fn retry(&self, entry: Entry) {
        if entry.package.with_value(Option::is_some) {
            enqueue(entry);
        } else {
            self.ask(entry, entry.square());
        }
    }

    /// Another try for all that failed, as when the server is back.
    pub fn retry_failed(&self) {
        for entry in self.photos.get_untracked() {
            if matches!(entry.upload.get_untracked(), Upload::Failed { .. }) {
                self.retry(entry);
            }
        }
    }

    /// Sends the photo to a worker; `None` asks for its first crop.
    fn ask(&self, entry: Entry, crop: Option<CropSquare>) {
        let Some(file) = entry.file.get_value() else { return };
        let revision = entry.next_revision();
        let side_px = self.side_px.get_untracked();
        let ask = Ask {
            photo: entry.id,
            crop,
            side_px,
            with_preview: entry.picture.with_untracked(Option::is_none),
        };
        let studio = *self;
        workers::ask(ask, &file, crop.is_some(), move |outcome| {
            if entry.revision.get_value() == revision {
                studio.take(entry, side_px, revision, outcome);
            }
        });
    }

    fn take(&self, entry: Entry, side_px: u32, revision: u64, outcome: Outcome) {
        match outcome {
            Outcome::Failed(message) => {
                self.news.set(format!("{}: {message}", entry.name.get_value()));
                entry.upload.set(Upload::None);
                entry.stage.set(Stage::Failed(message));
            }
            Outcome::Made { made, preview, png } => {
                if let Some(older) = self.twin(entry, &made.original_sha256) {
                    self.merge(entry, older, preview.as_ref(), &made.facts);
                    return;
                }
                let is_first = entry.stage.get_untracked() == Stage::Reading;
                self.show(entry, &made, preview.as_ref());
                entry.side_px.set_value(side_px);
                entry.package.set_value(Some(Package {
                    sha256: made.png_sha256.clone(),
                    png: js_sys::Uint8Array::new(&png),
                    origin: uploads::origin(&entry, &made.facts, &made.original_sha256),
                }));
                entry.upload.set(Upload::Waiting);
                spawn_local(async move {
                    if !is_first {
                        TimeoutFuture::new(SEND_AFTER_MS).await;
                    }
                    if entry.revision.get_value() == revision {
                        enqueue(entry);
                    }
                });
            }
        }
    }

    fn show(&self, entry: Entry, made: &Made, preview: Option<&js_sys::ArrayBuffer>) {
        let (width, height) = (made.facts.width_px, made.facts.height_px);
        if let Some(jpeg) = preview {
            entry.set_picture(Picture::of_photo(jpeg, width, height));
        }
        entry.original_sha256.set_value(Some(made.original_sha256.clone()));
        entry.suggested.set(Crop::new(made.suggested, width, height).ok());
        if entry.crop.with_untracked(Option::is_none) {
            entry.crop.set(Crop::new(made.facts.crop, width, height).ok());
        }
        entry.facts.set(Some(made.facts.clone()));
        entry.stage.set(Stage::Ready);
    }

    /// Another photo on this sheet that is the very same file.
    fn twin(&self, entry: Entry, original_sha256: &str) -> Option<Entry> {
        let same = |other: &&Entry| {
            other.id != entry.id
                && other
                    .original_sha256
                    .with_value(|sha| sha.as_deref() == Some(original_sha256))
        };
        self.photos.read_untracked().iter().find(same).copied()
    }

    /// The same file again: the photo there stays, and can be cropped again if it could not.
    fn merge(&self, entry: Entry, older: Entry, preview: Option<&js_sys::ArrayBuffer>, facts: &PhotoFacts) {
        let number = self.number(older.id);
        let name = entry.name.get_value();
        let file = entry.file.get_value();
        self.remove(entry.id);
        if !older.has_file() {
            older.file.set_value(file);
            older.set_picture(preview.and_then(|jpeg| Picture::of_photo(jpeg, facts.width_px, facts.height_px)));
            older
                .suggested
                .set(Crop::new(facts.crop, facts.width_px, facts.height_px).ok());
            if older.side_px.get_value() != self.side_px.get_untracked() {
                self.ask(older, older.square());
            }
        }
        self.news.set(format!("{name} is here already, as photo {number}"));
    }

    /// Another model, another side: every crop is made again.
    fn follow_side(&self) {
        let studio = *self;
        Effect::new(move |before: Option<u32>| {
            let side_px = studio.side_px.get();
            if before.is_some_and(|before| before != side_px) {
                for entry in studio.photos.get_untracked() {
                    studio.remake(entry);
                }
            }
            side_px
        });
    }

    fn remake(&self, entry: Entry) {
        let side_px = self.side_px.get_untracked();
        let is_ready = entry.stage.get_untracked() == Stage::Ready;
        if entry.has_file() {
            let crop = if is_ready { entry.square() } else { None };
            if !matches!(entry.stage.get_untracked(), Stage::Failed(_)) {
                entry.upload.set(Upload::Waiting);
                self.ask(entry, crop);
            }
        } else if is_ready {
            let fits = entry.side_px.get_value() == side_px;
            entry.upload.set(match entry.restored_sha256.get_value() {
                // Also after a model that it did not fit, or before the server had said what its models take.
                Some(sha256) if fits => Upload::Done { sha256 },
                _ => Upload::Failed {
                    message: format!("This model takes {side_px} px. Drop the original again."),
                },
            });
        }
    }

    /// Writes finished uploads down, so that a reload keeps them.
    fn remember(&self) {
        let studio = *self;
        Effect::new(move |_| {
            let kept: Vec<Kept> = studio.photos.read().iter().filter_map(Entry::kept).collect();
            if studio.restored.get() {
                studio.key.with_value(|key| memory::keep(key, &kept));
            }
        });
    }

    /// Brings back what was finished and the server still has.
    async fn restore(self) {
        let kept: Vec<Kept> = self.key.with_value(|key| memory::recall(key)).unwrap_or_default();
        for one in kept {
            // No answer means that the server is away, not that the photo is gone.
            if is_there(&one.sha256).await == Some(false) {
                continue;
            }
            let entry = self.owner.get_value().with(|| Entry::restored(&one));
            // A photo dropped meanwhile stays behind those from before.
            let at = self.photos.read_untracked().iter().filter(|e| !e.has_file()).count();
            self.photos.update(|photos| photos.insert(at.min(photos.len()), entry));
            self.remake(entry);
        }
        self.restored.set(true);
    }
}
