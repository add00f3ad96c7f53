//! Photos for those who have none at hand: eight frames of a cat by Eadweard Muybridge, which ship with the page.

use js_sys::Array;
use leptos::prelude::window;
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::JsFuture;
use web_sys::{Blob, File, FilePropertyBag, Response};

use super::Studio;

/// What the photos show.
pub const CLASS_NOUN: &str = "cat";

const COUNT: u32 = 8;

/// Where each of them is.
pub fn urls() -> impl Iterator<Item = String> {
    (0..COUNT).map(|number| format!("/demo/{number:02}.jpg"))
}

/// Brings the photos and takes them in as if they were dropped.
///
/// # Errors
/// In words, when the server does not give them.
pub async fn add(studio: Studio) -> Result<(), String> {
    let mut files = Vec::new();
    for url in urls() {
        let file = fetch(&url).await;
        files.push(file.ok_or("The example photos could not be fetched. The server may have been stopped.")?);
    }
    studio.add(files);
    Ok(())
}

async fn fetch(url: &str) -> Option<File> {
    let answer = JsFuture::from(window().fetch_with_str(url)).await.ok()?;
    let answer: Response = answer.dyn_into().ok()?;
    if !answer.ok() {
        return None;
    }
    let blob: Blob = JsFuture::from(answer.blob().ok()?).await.ok()?.dyn_into().ok()?;
    let kind = FilePropertyBag::new();
    kind.set_type("image/jpeg");
    File::new_with_blob_sequence_and_options(&Array::of1(&blob), &url.replace("/demo/", "cat-"), &kind).ok()
}
