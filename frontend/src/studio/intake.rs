//! How files come in: dropped anywhere on the page, picked, pasted.

use leptos::ev;
use leptos::prelude::*;
use web_sys::{DragEvent, File, FileList};

use super::Studio;

/// What the file picker offers. Other kinds can still be dropped, and are told what to do.
pub const ACCEPT: &str = "image/jpeg,image/png,image/webp,.jpg,.jpeg,.png,.webp";

pub fn files(list: Option<FileList>) -> Vec<File> {
    let Some(list) = list else { return Vec::new() };
    (0..list.length()).filter_map(|at| list.get(at)).collect()
}

/// A file dropped beside the sheet would otherwise replace the page, and with it everything not sent yet.
pub fn guard_against_lost_drops() {
    let _kept_for_good = window_event_listener(ev::dragover, |event| {
        if carries_files(&event) {
            event.prevent_default();
        }
    });
    let _kept_for_good = window_event_listener(ev::drop, |event| event.prevent_default());
}

fn carries_files(event: &DragEvent) -> bool {
    let types = event.data_transfer().map(|data| data.types());
    types.is_some_and(|types| types.iter().any(|kind| kind.as_string().as_deref() == Some("Files")))
}

/// While the calling component lives, whatever is dropped or pasted anywhere joins `studio`. The signal tells whether
/// files hover over the page.
pub fn drop_anywhere(studio: Studio) -> RwSignal<bool> {
    let hovering = RwSignal::new(false);
    let over = window_event_listener(ev::dragover, move |event| {
        if carries_files(&event) && !hovering.get_untracked() {
            hovering.set(true);
        }
    });
    let leave = window_event_listener(ev::dragleave, move |event| {
        // Without a related target the pointer left the window, not just one element for the next.
        if event.related_target().is_none() {
            hovering.set(false);
        }
    });
    let drop = window_event_listener(ev::drop, move |event| {
        hovering.set(false);
        studio.add(files(event.data_transfer().and_then(|data| data.files())));
    });
    let paste = window_event_listener(ev::paste, move |event| {
        let pasted = files(event.clipboard_data().and_then(|data| data.files()));
        if !pasted.is_empty() {
            event.prevent_default();
            studio.add(pasted);
        }
    });
    on_cleanup(move || {
        over.remove();
        leave.remove();
        drop.remove();
        paste.remove();
    });
    hovering
}
