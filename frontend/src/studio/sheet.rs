//! The contact sheet: all prints, the sentence above them, and the ways in.

use leptos::ev::KeyboardEvent;
use leptos::html;
use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::HtmlElement;

use super::editor::CropEditor;
use super::intake::{self, ACCEPT};
use super::print::Print;
use super::{Studio, demo};
use crate::place::Place;

/// The first place: drop photos, look at the verdicts, crop.
///
/// `try_demo` adds a set of photos for those who have none.
#[component]
pub fn PhotosPlace(studio: Studio, try_demo: Callback<()>) -> impl IntoView {
    let hovering = intake::drop_anywhere(studio);
    let is_empty = Memo::new(move |_| studio.photos.read().is_empty());
    view! {
        <section class="photos" aria-labelledby="photos-title">
            <header class="photos-head">
                <div>
                    <h1 id="photos-title">"Photos"</h1>
                    <p class="photos-sentence" role="status">{studio.summary()}</p>
                </div>
                <Show when=move || !is_empty.get()>
                    <div class="photos-actions">
                        <PickButton studio label="Add photos" class="button" />
                        <a class="button button-strong" href=Place::Subject.hash()>"Next: Subject"</a>
                    </div>
                </Show>
            </header>
            <Show when=move || !is_empty.get() fallback=move || view! { <EmptySheet studio try_demo /> }>
                <Sheet studio />
            </Show>
            <p class="photos-news" role="status">{move || studio.news.get()}</p>
            <Show when=move || hovering.get()>
                <div class="drop-overlay" aria-hidden="true"><p>"Drop to add"</p></div>
            </Show>
            <CropEditor studio />
        </section>
    }
}

#[component]
fn EmptySheet(studio: Studio, try_demo: Callback<()>) -> impl IntoView {
    view! {
        <div class="sheet-empty">
            <div class="sheet-blank" aria-hidden="true">
                <span></span><span></span><span></span><span></span><span></span><span></span>
            </div>
            <h2>"Drop photos of one subject anywhere on this page"</h2>
            <p>
                "Ten or more are best, three are enough: different places, light and angles, the subject sharp and large.
                JPEG, PNG or WebP. They are cropped here in your browser."
            </p>
            <div class="sheet-empty-actions">
                <PickButton studio label="Choose photos" class="button button-strong" />
            </div>
            <div class="demo">
                <div class="demo-strip" aria-hidden="true">
                    {demo::urls().map(|url| view! { <img src=url alt="" /> }).collect_view()}
                </div>
                <button type="button" class="button button-quiet" on:click=move |_| try_demo.run(())>
                    "Try it with these photos"
                </button>
            </div>
        </div>
    }
}

#[component]
fn PickButton(studio: Studio, label: &'static str, class: &'static str) -> impl IntoView {
    let input = NodeRef::<html::Input>::new();
    let take = move |_| {
        let Some(input) = input.get_untracked() else { return };
        studio.add(intake::files(input.files()));
        // So that the same file can be picked again after it was removed.
        input.set_value("");
    };
    let pick = move |_| {
        if let Some(input) = input.get_untracked() {
            input.click();
        }
    };
    view! {
        <button type="button" class=class on:click=pick>{label}</button>
        <input
            node_ref=input
            class="pick"
            type="file"
            multiple
            accept=ACCEPT
            tabindex="-1"
            aria-hidden="true"
            on:change=take
        />
    }
}

#[component]
fn Sheet(studio: Studio) -> impl IntoView {
    let list = NodeRef::<html::Ul>::new();
    // One stop for the Tab key; arrows go from print to print.
    let focused = RwSignal::new(0_u64);
    let stop = Memo::new(move |_| {
        let photos = studio.photos.read();
        let is_here = photos.iter().any(|entry| entry.id == focused.get());
        if is_here {
            focused.get()
        } else {
            photos.first().map_or(0, |entry| entry.id)
        }
    });
    let on_key = move |event: KeyboardEvent| {
        let Some(list) = list.get_untracked() else { return };
        press(studio, &list, &event);
    };
    view! {
        <ul class="sheet" node_ref=list on:keydown=on_key aria-describedby="sheet-keys">
            <For each=move || studio.photos.get() key=|entry| entry.id let:entry>
                <Print
                    studio
                    entry
                    tabindex=Signal::derive(move || if stop.get() == entry.id { 0 } else { -1 })
                    on_focus=Callback::new(move |id| focused.set(id))
                />
            </For>
        </ul>
        <p id="sheet-keys" class="spoken">"Arrows move, Enter opens the crop, Delete removes."</p>
    }
}

/// The prints' buttons, in order.
fn buttons(list: &HtmlElement) -> Vec<HtmlElement> {
    std::iter::successors(list.first_element_child(), web_sys::Element::next_element_sibling)
        .filter_map(|print| print.query_selector(".print-open").ok().flatten()?.dyn_into().ok())
        .collect()
}

fn press(studio: Studio, list: &HtmlElement, event: &KeyboardEvent) {
    let buttons = buttons(list);
    let active = document().active_element();
    let here = buttons
        .iter()
        .position(|button| active.as_ref() == Some(button.as_ref()));
    let Some(here) = here else { return };
    let line = |button: &HtmlElement| button.get_bounding_client_rect().top();
    let columns = buttons
        .iter()
        .filter(|b| (line(b) - line(&buttons[0])).abs() < 1.0)
        .count()
        .max(1);
    let last = buttons.len() - 1;
    let to = match event.key().as_str() {
        "ArrowLeft" => here.saturating_sub(1),
        "ArrowRight" => (here + 1).min(last),
        "ArrowUp" => here.checked_sub(columns).unwrap_or(here),
        "ArrowDown" => {
            if here + columns <= last {
                here + columns
            } else {
                here
            }
        }
        "Home" => 0,
        "End" => last,
        "Delete" | "Backspace" => {
            event.prevent_default();
            remove(studio, &buttons, here);
            return;
        }
        _ => return,
    };
    event.prevent_default();
    focus(&buttons[to]);
}

/// Removes a print; the focus goes to the one that takes its place.
fn remove(studio: Studio, buttons: &[HtmlElement], here: usize) {
    let Some(id) = buttons[here].get_attribute("data-photo").and_then(|id| id.parse().ok()) else {
        return;
    };
    let next = buttons
        .get(here + 1)
        .or_else(|| here.checked_sub(1).and_then(|at| buttons.get(at)));
    if let Some(next) = next {
        focus(next);
    }
    studio.remove(id);
}

fn focus(button: &HtmlElement) {
    let _not_focusable = button.focus();
}

/// Back to the print of a photo, after the editor.
pub fn focus_print(id: u64) {
    let print = document()
        .query_selector(&format!("[data-photo=\"{id}\"]"))
        .ok()
        .flatten();
    if let Some(button) = print.and_then(|print| print.dyn_into::<HtmlElement>().ok()) {
        focus(&button);
    }
}
