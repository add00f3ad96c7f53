//! Sends crops: at most three at a time, asking first whether the server has them, trying three times each.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use app::api::{ErrorBody, MAX_PHOTO_BYTES, ORIGIN_HEADER, PhotoOrigin};
use gloo_timers::future::TimeoutFuture;
use js_sys::{Function, Promise};
use leptos::prelude::*;
use leptos::task::spawn_local;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{ProgressEvent, XmlHttpRequest};

use super::entry::{Entry, Package, Upload};

const MOST_IN_FLIGHT: u32 = 3;
const TRIES: u32 = 3;
const FIRST_WAIT_MS: f64 = 500.0;
/// A crop is under a megabyte; a connection that takes longer for it is dead.
const TIMEOUT_MS: u32 = 60_000;

thread_local! {
    static QUEUE: RefCell<VecDeque<Entry>> = const { RefCell::new(VecDeque::new()) };
    static IN_FLIGHT: Cell<u32> = const { Cell::new(0) };
}

/// Why a try failed.
enum Miss {
    /// No answer, or the server is busy or broken: worth another try.
    Passing(String),
    /// The server said no, and will again.
    Final(String),
}

/// Sends the entry's package when there is room.
pub fn enqueue(entry: Entry) {
    entry.upload.set(Upload::Waiting);
    QUEUE.with_borrow_mut(|queue| {
        queue.retain(|waiting| waiting.id != entry.id);
        queue.push_back(entry);
    });
    pump();
}

fn pump() {
    while IN_FLIGHT.get() < MOST_IN_FLIGHT {
        let Some(entry) = QUEUE.with_borrow_mut(VecDeque::pop_front) else {
            return;
        };
        let Some(Some(package)) = entry.package.try_get_value() else {
            continue;
        };
        IN_FLIGHT.set(IN_FLIGHT.get() + 1);
        spawn_local(async move {
            send(entry, package).await;
            IN_FLIGHT.set(IN_FLIGHT.get() - 1);
            pump();
        });
    }
}

/// Tries until it is there, the server refuses, or the tries are used up. An entry that has a newer package, or is gone
/// from the sheet, is left alone.
async fn send(entry: Entry, package: Package) {
    let current = || {
        let newest = entry.package.try_get_value().flatten();
        newest.is_some_and(|newest| newest.sha256 == package.sha256)
    };
    for attempt in 1..=TRIES {
        let outcome = send_once(entry, &package, &current).await;
        if !current() {
            return;
        }
        match outcome {
            Ok(()) => {
                entry.package.set_value(None);
                entry.upload.set(Upload::Done { sha256: package.sha256 });
                return;
            }
            Err(Miss::Passing(_)) if attempt < TRIES => {
                entry.upload.set(Upload::Waiting);
                // Doubling, and spread by half so that many pages do not return at once.
                let wait = FIRST_WAIT_MS * f64::from(1 << attempt) * (0.75 + 0.5 * js_sys::Math::random());
                TimeoutFuture::new(wait as u32).await;
            }
            Err(Miss::Passing(message) | Miss::Final(message)) => {
                entry.upload.set(Upload::Failed { message });
                return;
            }
        }
        if !current() {
            return;
        }
    }
}

async fn send_once(entry: Entry, package: &Package, current: &impl Fn() -> bool) -> Result<(), Miss> {
    if package.png.length() as usize > MAX_PHOTO_BYTES {
        return Err(Miss::Final(
            "The crop is too large to send; choose a smaller resolution.".into(),
        ));
    }
    if head(&package.sha256).await? {
        return Ok(());
    }
    if !current() {
        return Ok(());
    }
    entry.upload.set(Upload::Sending { percent: 0 });
    let (status, body) = put(entry, package).await?;
    match status {
        200..=299 => Ok(()),
        408 | 425 | 429 | 500..=599 => Err(Miss::Passing(format!(
            "The server is busy or in trouble (status {status})."
        ))),
        _ => Err(Miss::Final(serde_json::from_str::<ErrorBody>(&body).map_or_else(
            |_| format!("The server refused it (status {status})."),
            |e| e.error.message,
        ))),
    }
}

fn offline() -> Miss {
    Miss::Passing("The server does not answer.".into())
}

/// Does the server have this crop already?
pub async fn is_there(sha256: &str) -> Option<bool> {
    head(sha256).await.ok()
}

async fn head(sha256: &str) -> Result<bool, Miss> {
    let init = web_sys::RequestInit::new();
    init.set_method("HEAD");
    let request = window().fetch_with_str_and_init(&format!("/api/photos/{sha256}"), &init);
    let response = JsFuture::from(request).await.map_err(|_| offline())?;
    let response: web_sys::Response = response.dyn_into().map_err(|_| offline())?;
    Ok(response.ok())
}

/// PUT by XMLHttpRequest, because fetch tells nothing of how far an upload is.
async fn put(entry: Entry, package: &Package) -> Result<(u16, String), Miss> {
    let request = XmlHttpRequest::new().map_err(|_| offline())?;
    let on_progress = Closure::<dyn FnMut(ProgressEvent)>::new(move |event: ProgressEvent| {
        if event.total() > 0.0 {
            // 0 to 100.
            let percent = (event.loaded() / event.total() * 100.0) as u32;
            entry.upload.try_set(Upload::Sending { percent });
        }
    });
    if let Ok(upload) = request.upload() {
        upload.set_onprogress(Some(on_progress.as_ref().unchecked_ref()));
    }
    let sent = Promise::new(&mut |resolve: Function, _reject: Function| {
        // Loaded, failed, timed out or aborted: it is over.
        request.set_onloadend(Some(&resolve));
    });
    open(&request, package).map_err(|_| offline())?;
    let _over = JsFuture::from(sent).await;
    let status = request.status().unwrap_or(0);
    if status == 0 {
        return Err(offline());
    }
    Ok((status, request.response_text().ok().flatten().unwrap_or_default()))
}

fn open(request: &XmlHttpRequest, package: &Package) -> Result<(), JsValue> {
    request.open("PUT", &format!("/api/photos/{}", package.sha256))?;
    request.set_timeout(TIMEOUT_MS);
    request.set_request_header("content-type", "image/png")?;
    let origin = serde_json::to_string(&package.origin).unwrap_or_default();
    request.set_request_header(ORIGIN_HEADER, &origin)?;
    request.send_with_opt_js_u8_array(Some(&package.png))
}

/// A file name for `PhotoOrigin`: what is not printable ASCII is percent-encoded, and so is `%`.
pub fn ascii_name(name: &str) -> String {
    let mut ascii = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'%' => ascii += "%25",
            b' '..=b'~' => ascii.push(char::from(byte)),
            byte => ascii += &format!("%{byte:02X}"),
        }
    }
    ascii
}

/// Where a crop came from, as it travels with it.
pub fn origin(entry: &Entry, facts: &app::photo::PhotoFacts, original_sha256: &str) -> PhotoOrigin {
    PhotoOrigin {
        sha256: original_sha256.into(),
        name: entry.name.with_value(|name| ascii_name(name)),
        width: facts.width_px,
        height: facts.height_px,
        crop: facts.crop,
    }
}
