//! The photo worker: decodes, crops, measures and encodes photos beside the page, which therefore never stands still.
//!
//! It holds one decoded photo at a time, the last: an editor asks about the same one again and again. A panic or a lack
//! of memory ends this worker only; the page starts another and marks the photo.
#![forbid(unsafe_code)]

#[path = "../studio/protocol.rs"]
mod protocol;

use std::cell::RefCell;
use std::rc::Rc;

use app::crop::{Crop, SUGGEST_PX, suggest};
use app::pixels::{MEASURE_PX, Photo, PhotoError, Rgb, sha256_hex};
use js_sys::{Array, Uint8Array};
use protocol::{Answer, Ask, Made, PREVIEW_PX};
use wasm_bindgen::prelude::*;
use web_sys::{Blob, DedicatedWorkerGlobalScope, FileReaderSync, MessageEvent};

const PREVIEW_QUALITY: u8 = 82;

/// The last decoded photo.
struct Held {
    id: u64,
    photo: Photo,
    sha256: String,
    suggested: Crop,
    /// Also what the first crop is found in, so that the full photo is gone through once less.
    preview: Rgb,
}

/// What goes back beside the JSON.
struct Product {
    made: Made,
    preview: Option<Vec<u8>>,
    png: Vec<u8>,
}

fn main() {
    console_error_panic_hook::set_once();
    let scope: DedicatedWorkerGlobalScope = js_sys::global().unchecked_into();
    let held = Rc::new(RefCell::new(None));
    let out = scope.clone();
    let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
        let (answer, preview, png) = match take(&event, &held) {
            Ok(product) => (Answer::Made(product.made), product.preview, Some(product.png)),
            Err(message) => (Answer::Failed { message }, None, None),
        };
        send(&out, &answer, preview, png);
    });
    scope.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
    on_message.forget();
    send(&scope, &Answer::Ready, None, None);
}

fn send(scope: &DedicatedWorkerGlobalScope, answer: &Answer, preview: Option<Vec<u8>>, png: Option<Vec<u8>>) {
    let json = serde_json::to_string(answer).unwrap_or_default();
    let message = Array::of1(&json.into());
    let transfer = Array::new();
    for bytes in [preview, png] {
        match bytes {
            // One copy out of WASM memory; from there on it changes hands.
            Some(bytes) => {
                let buffer = Uint8Array::from(bytes.as_slice()).buffer();
                message.push(&buffer);
                transfer.push(&buffer);
            }
            None => {
                message.push(&JsValue::NULL);
            }
        }
    }
    if scope.post_message_with_transfer(&message, &transfer).is_err() {
        // Nothing in the message can be refused; if it ever is, the page's error handler marks the photo.
        wasm_bindgen::throw_str("the photo worker could not answer");
    }
}

fn take(event: &MessageEvent, held: &RefCell<Option<Held>>) -> Result<Product, String> {
    let message: Array = event.data().unchecked_into();
    let ask: Ask = serde_json::from_str(&message.get(0).as_string().unwrap_or_default())
        .map_err(|_| "This page is of two versions. Reload it.".to_string())?;
    let file: Blob = message.get(1).unchecked_into();
    make(&ask, &file, &mut held.borrow_mut()).map_err(|error| error.to_string())
}

fn make(ask: &Ask, file: &Blob, held: &mut Option<Held>) -> Result<Product, PhotoError> {
    let started = js_sys::Date::now();
    if held.as_ref().is_none_or(|held| held.id != ask.photo) {
        // The last photo goes first: never two full photos in memory.
        *held = None;
        *held = Some(open(ask.photo, file)?);
    }
    let Some(held) = held else {
        return Err(PhotoError::Empty);
    };
    let crop = ask.crop.unwrap_or_else(|| held.suggested.square());
    let cropped = held.photo.cropped(crop, ask.side_px)?;
    let facts = if ask.side_px == MEASURE_PX && crop.side >= f64::from(MEASURE_PX) {
        held.photo.facts_of(crop, &cropped)
    } else {
        held.photo.facts(crop)?
    };
    let preview = ask.with_preview.then(|| held.preview.to_jpeg(PREVIEW_QUALITY));
    let png = cropped.to_png();
    let made = Made {
        facts,
        suggested: held.suggested.square(),
        original_sha256: held.sha256.clone(),
        png_sha256: sha256_hex(&png),
        ms: js_sys::Date::now() - started,
    };
    Ok(Product { made, preview, png })
}

fn open(id: u64, file: &Blob) -> Result<Held, PhotoError> {
    // A folder drops as a file that cannot be read; so does one deleted since.
    let gone = |_: JsValue| PhotoError::Gone;
    let buffer = FileReaderSync::new()
        .and_then(|reader| reader.read_as_array_buffer(file))
        .map_err(gone)?;
    let bytes = Uint8Array::new(&buffer).to_vec();
    let photo = Photo::decode(&bytes)?;
    let sha256 = sha256_hex(&bytes);
    let (width, height) = photo.size_px();
    let preview = photo.fitted(PREVIEW_PX);
    let suggested = suggest(&preview.fitted(SUGGEST_PX), width, height);
    Ok(Held {
        preview,
        id,
        photo,
        sha256,
        suggested,
    })
}
