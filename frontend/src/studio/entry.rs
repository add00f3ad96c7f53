//! One photo on the sheet, from the moment its file arrives.

use std::cell::Cell;

use app::api::{CropSquare, PhotoOrigin};
use app::crop::Crop;
use app::photo::PhotoFacts;
use js_sys::{Array, ArrayBuffer, Uint8Array};
use leptos::prelude::*;
use serde::{Deserialize, Serialize};
use web_sys::{Blob, BlobPropertyBag, File, Url};

/// Where a photo is on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A worker has it, or it waits for one.
    Reading,
    Ready,
    /// With what to do.
    Failed(String),
}

/// Where its crop is on the way to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upload {
    /// Nothing to send yet.
    None,
    /// In the queue, or the server is asked whether it has it.
    Waiting,
    Sending {
        percent: u32,
    },
    /// The server has it by this name.
    Done {
        sha256: String,
    },
    Failed {
        message: String,
    },
}

/// What is shown of a photo.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub url: String,
    /// The coordinates it is drawn in: the upright photo's pixels, or the crop's alone.
    pub width: f64,
    pub height: f64,
    /// Made from a blob of ours, to be let go.
    owned: bool,
}

impl Picture {
    /// Of a JPEG that shows the whole photo.
    pub fn of_photo(jpeg: &ArrayBuffer, width: u32, height: u32) -> Option<Self> {
        let kind = BlobPropertyBag::new();
        kind.set_type("image/jpeg");
        let blob = Blob::new_with_u8_array_sequence_and_options(&Array::of1(jpeg), &kind).ok()?;
        Some(Self {
            url: Url::create_object_url_with_blob(&blob).ok()?,
            width: f64::from(width),
            height: f64::from(height),
            owned: true,
        })
    }

    /// Of a crop that only the server still has.
    pub fn of_upload(sha256: &str, side: f64) -> Self {
        Self {
            url: format!("/api/photos/{sha256}"),
            width: side,
            height: side,
            owned: false,
        }
    }

    fn let_go(&self) {
        if self.owned {
            let _gone_already = Url::revoke_object_url(&self.url);
        }
    }
}

/// A crop as it is sent.
#[derive(Clone)]
pub struct Package {
    pub sha256: String,
    pub png: Uint8Array,
    pub origin: PhotoOrigin,
}

/// A finished upload as the browser remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub sha256: String,
    pub side_px: u32,
    pub name: String,
    pub original_sha256: String,
    pub facts: PhotoFacts,
}

/// All about one photo. A handle: copies are the same photo.
#[derive(Clone, Copy)]
pub struct Entry {
    pub id: u64,
    pub name: StoredValue<String>,
    pub stage: RwSignal<Stage>,
    /// As measured; `crop` may have moved on since.
    pub facts: RwSignal<Option<PhotoFacts>>,
    pub crop: RwSignal<Option<Crop>>,
    pub suggested: RwSignal<Option<Crop>>,
    pub picture: RwSignal<Option<Picture>>,
    pub upload: RwSignal<Upload>,
    pub original_sha256: StoredValue<Option<String>>,
    /// Gone after a reload: the browser does not let a page open it again.
    pub file: StoredValue<Option<File>, LocalStorage>,
    pub package: StoredValue<Option<Package>, LocalStorage>,
    /// Of one restored: its crop on the server, which is all there is of it.
    pub restored_sha256: StoredValue<Option<String>>,
    /// Side of the newest PNG.
    pub side_px: StoredValue<u32>,
    /// Counts the crops asked for; an answer to an older one is dropped.
    pub revision: StoredValue<u64>,
}

thread_local! {
    static NEXT_ID: Cell<u64> = const { Cell::new(1) };
}

impl Entry {
    pub fn new(name: String) -> Self {
        let id = NEXT_ID.get();
        NEXT_ID.set(id + 1);
        Self {
            id,
            name: StoredValue::new(name),
            stage: RwSignal::new(Stage::Reading),
            facts: RwSignal::new(None),
            crop: RwSignal::new(None),
            suggested: RwSignal::new(None),
            picture: RwSignal::new(None),
            upload: RwSignal::new(Upload::None),
            original_sha256: StoredValue::new(None),
            file: StoredValue::new_local(None),
            package: StoredValue::new_local(None),
            restored_sha256: StoredValue::new(None),
            side_px: StoredValue::new(0),
            revision: StoredValue::new(0),
        }
    }

    pub fn restored(kept: &Kept) -> Self {
        let entry = Self::new(kept.name.clone());
        entry.stage.set(Stage::Ready);
        entry.facts.set(Some(kept.facts.clone()));
        entry
            .crop
            .set(Crop::new(kept.facts.crop, kept.facts.width_px, kept.facts.height_px).ok());
        entry
            .picture
            .set(Some(Picture::of_upload(&kept.sha256, kept.facts.crop.side)));
        entry.upload.set(Upload::Done {
            sha256: kept.sha256.clone(),
        });
        entry.original_sha256.set_value(Some(kept.original_sha256.clone()));
        entry.restored_sha256.set_value(Some(kept.sha256.clone()));
        entry.side_px.set_value(kept.side_px);
        entry
    }

    /// What to remember; `None` until its upload is done. A restored crop that does not fit the model of this moment
    /// fits the one it was made for.
    pub fn kept(&self) -> Option<Kept> {
        let sha256 = match self.upload.get() {
            Upload::Done { sha256 } => sha256,
            _ if !self.has_file() => self.restored_sha256.get_value()?,
            _ => return None,
        };
        Some(Kept {
            sha256,
            side_px: self.side_px.get_value(),
            name: self.name.get_value(),
            original_sha256: self.original_sha256.get_value()?,
            facts: self.facts.get()?,
        })
    }

    /// The figures with the crop as it is this moment: its size counts at once, its sharpness when measured.
    pub fn facts_now(&self) -> Option<PhotoFacts> {
        let mut facts = self.facts.get()?;
        if let Some(crop) = self.crop.get() {
            facts.crop = crop.square();
        }
        Some(facts)
    }

    /// Being read or sent.
    pub fn is_on_the_way(&self) -> bool {
        self.stage.get() == Stage::Reading || matches!(self.upload.get(), Upload::Waiting | Upload::Sending { .. })
    }

    /// Can be cropped again: its file is at hand.
    pub fn has_file(&self) -> bool {
        self.file.with_value(Option::is_some)
    }

    pub fn square(&self) -> Option<CropSquare> {
        self.crop.get_untracked().map(|crop| crop.square())
    }

    /// A new revision: answers to the old ones no longer count.
    pub fn next_revision(&self) -> u64 {
        self.revision.update_value(|revision| *revision += 1);
        self.revision.get_value()
    }

    pub fn set_picture(&self, picture: Option<Picture>) {
        if let Some(old) = self.picture.get_untracked() {
            old.let_go();
        }
        self.picture.set(picture);
    }

    /// Lets go of what it holds; it is on no sheet any more.
    pub fn discard(&self) {
        self.next_revision();
        self.set_picture(None);
        self.file.set_value(None);
        self.package.set_value(None);
    }
}
