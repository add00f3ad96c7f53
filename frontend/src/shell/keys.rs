//! The list of keys, behind `?`.

use leptos::html::Dialog;
use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::{HtmlDialogElement, HtmlElement};

const ID: &str = "keys";

const KEYS: &[(&str, &str)] = &[
    ("1 to 5", "go to Photos, Subject, Train, Watch, Results"),
    ("\u{2190} \u{2192}", "previous and next photo, or round of samples"),
    (
        "Arrow keys",
        "in the crop editor: move the crop; with Shift ten times as far",
    ),
    ("+ \u{2212}", "in the crop editor: zoom"),
    ("Enter", "open the photo in focus"),
    ("Esc", "close what is open"),
    ("?", "this list"),
];

pub fn show() {
    let dialog = document()
        .get_element_by_id(ID)
        .and_then(|e| e.dyn_into::<HtmlDialogElement>().ok());
    if let Some(dialog) = dialog.filter(|d| !d.open()) {
        let _already_open = dialog.show_modal();
    }
}

/// Keys that work everywhere must not be taken from someone who types or has a dialog open.
fn is_taken(event: &web_sys::KeyboardEvent) -> bool {
    let in_field = event
        .target()
        .and_then(|target| target.dyn_into::<HtmlElement>().ok())
        .is_some_and(|e| matches!(e.tag_name().as_str(), "INPUT" | "TEXTAREA" | "SELECT") || e.is_content_editable());
    let in_dialog = document().query_selector("dialog[open]").ok().flatten().is_some();
    in_field || in_dialog || event.ctrl_key() || event.meta_key() || event.alt_key()
}

/// Keys of one place, while it is shown; they stay silent while someone types or a dialog is open.
pub fn while_shown(act: impl Fn(&web_sys::KeyboardEvent) + 'static) {
    let listener = window_event_listener(leptos::ev::keydown, move |event| {
        if !is_taken(&event) {
            act(&event);
        }
    });
    on_cleanup(move || listener.remove());
}

#[component]
pub fn KeysDialog() -> impl IntoView {
    let dialog = NodeRef::<Dialog>::new();
    while_shown(|event| match event.key().as_str() {
        "?" => show(),
        digit @ ("1" | "2" | "3" | "4" | "5") => {
            // The links know where each step is.
            let link = document()
                .query_selector(&format!(".steps .step:nth-child({digit})"))
                .ok()
                .flatten();
            if let Some(link) = link.and_then(|e| e.dyn_into::<HtmlElement>().ok()) {
                link.click();
            }
        }
        _ => {}
    });
    let close = move |_| {
        if let Some(dialog) = dialog.get_untracked() {
            dialog.close();
        }
    };
    view! {
        <dialog id=ID node_ref=dialog class="dialog" aria-labelledby="keys-title">
            <h2 id="keys-title">"Keys"</h2>
            <dl class="keys">
                {KEYS.iter().map(|(key, does)| view! { <div><dt><kbd>{*key}</kbd></dt><dd>{*does}</dd></div> }).collect_view()}
            </dl>
            <button type="button" class="button" on:click=close>"Close"</button>
        </dialog>
    }
}
