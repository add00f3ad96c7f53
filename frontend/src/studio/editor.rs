//! The crop editor: one photo large, its frame under the hand, over the sheet.

use app::crop::{Crop, Step};
use leptos::ev::{KeyboardEvent, PointerEvent, WheelEvent};
use leptos::html;
use leptos::prelude::*;
use leptos::svg;

use super::entry::{Entry, Picture};
use super::gesture::{Gesture, wheel};
use super::print::{Framed, verdict_of};
use super::sheet::focus_print;
use super::{Stage, Studio};

/// Within this many screen pixels a corner is taken rather than the frame: a finger's width.
const CORNER_REACH_PX: f64 = 24.0;

/// Opens when `studio.editing` names a photo. A modal dialog: the browser keeps the focus inside and Esc closes it.
#[component]
pub fn CropEditor(studio: Studio) -> impl IntoView {
    let dialog = NodeRef::<html::Dialog>::new();
    let entry = Memo::new(move |_| studio.editing.get().filter(|id| studio.entry(*id).is_some()));
    Effect::new(move |was_open: Option<bool>| {
        let is_open = entry.get().is_some();
        if let Some(dialog) = dialog.get()
            && is_open != was_open.unwrap_or(false)
        {
            if is_open {
                let _open_already = dialog.show_modal();
            } else {
                dialog.close();
            }
        }
        is_open
    });
    let closed = move |_| {
        if let Some(id) = studio.editing.get_untracked() {
            studio.editing.set(None);
            focus_print(id);
        }
    };
    view! {
        <dialog
            class="editor"
            node_ref=dialog
            aria-labelledby="editor-title"
            on:close=closed
            on:keydown=move |event| press(studio, &event)
        >
            {move || entry.get().and_then(|id| studio.entry(id)).map(|entry| view! { <Open studio entry /> })}
        </dialog>
    }
}

#[component]
fn Open(studio: Studio, entry: Entry) -> impl IntoView {
    let id = entry.id;
    let title = move || format!("Photo {} of {}", studio.number(id), studio.photos.read().len());
    let verdict = verdict_of(studio, id);
    view! {
        <header class="editor-head">
            <h2 id="editor-title">{title}<span class="editor-name">{entry.name.get_value()}</span></h2>
            <button type="button" class="button button-strong" on:click=move |_| close(studio)>"Done"</button>
        </header>
        {if entry.has_file() {
            view! { <Stand studio entry /> }.into_any()
        } else {
            view! { <OnlyTheCrop entry /> }.into_any()
        }}
        <footer class="editor-foot">
            <p class="editor-verdict" aria-live="polite">
                <span class=move || verdict.get().class>
                    <span class="dot" aria-hidden="true"></span>
                    {move || verdict.get().words}
                </span>
            </p>
            <div class="editor-walk">
                <button type="button" class="button button-quiet" on:click=move |_| walk(studio, -1)>"Previous"</button>
                <button type="button" class="button button-quiet" on:click=move |_| walk(studio, 1)>"Next"</button>
            </div>
        </footer>
    }
}

/// After a reload the page has the crop but not the photo.
#[component]
fn OnlyTheCrop(entry: Entry) -> impl IntoView {
    view! {
        <div class="editor-stand"><Framed entry /></div>
        <p class="editor-note">"This crop was sent before the page was reloaded. To crop it again, drop the original photo on the page."</p>
    }
}

/// The photo, the frame on it, and the numbers.
#[component]
fn Stand(studio: Studio, entry: Entry) -> impl IntoView {
    view! {
        <div class="editor-stand">
            <Photo studio entry />
            <Result studio entry />
        </div>
        <div class="editor-tools">
            <button type="button" class="button" aria-label="Closer" on:click=move |_| step(studio, entry, Step::In, 0.05)>"+"</button>
            <button type="button" class="button" aria-label="Wider" on:click=move |_| step(studio, entry, Step::Out, 0.05)>"−"</button>
            <button type="button" class="button button-quiet" on:click=move |_| reset(studio, entry)>"Reset"</button>
            <p class="editor-keys">"Drag, pinch or scroll. Arrows move by 1 px, with Shift by 10; + and − resize."</p>
        </div>
    }
}

#[component]
fn Photo(studio: Studio, entry: Entry) -> impl IntoView {
    let area = NodeRef::<svg::Svg>::new();
    let gesture = StoredValue::new(Gesture::default());
    let Some(Picture { url, width, height, .. }) = entry.picture.get_untracked() else {
        return ().into_any();
    };
    // A natural size beyond any screen: the style sheet then fits it, keeping its shape.
    let enlarged = 8000.0 / width.max(height).max(1.0);
    // Screen to photo pixels, and photo pixels for one on the screen.
    let to_photo = move |client_x: i32, client_y: i32| {
        let rect = area.get_untracked()?.get_bounding_client_rect();
        let scale = width / rect.width().max(1.0);
        let (x, y) = (f64::from(client_x) - rect.left(), f64::from(client_y) - rect.top());
        Some((x * scale, y * scale, scale))
    };
    let down = move |event: PointerEvent| {
        event.prevent_default();
        let at = to_photo(event.client_x(), event.client_y());
        let (Some((x, y, scale)), Some(crop)) = (at, entry.crop.get_untracked()) else {
            return;
        };
        if let Some(area) = area.get_untracked() {
            let _pointer_gone = area.set_pointer_capture(event.pointer_id());
        }
        gesture.update_value(|g| g.down(&crop, event.pointer_id(), x, y, CORNER_REACH_PX * scale));
    };
    let moved = move |event: PointerEvent| {
        let at = to_photo(event.client_x(), event.client_y());
        let (Some((x, y, _)), Some(crop)) = (at, entry.crop.get_untracked()) else {
            return;
        };
        let next = gesture.try_update_value(|g| g.moved(&crop, event.pointer_id(), x, y));
        if let Some(Some(crop)) = next {
            studio.set_crop(entry, crop);
        }
    };
    let up = move |event: PointerEvent| gesture.update_value(|g| g.up(event.pointer_id()));
    let scroll = move |event: WheelEvent| {
        event.prevent_default();
        let at = to_photo(event.client_x(), event.client_y());
        let (Some((x, y, _)), Some(crop)) = (at, entry.crop.get_untracked()) else {
            return;
        };
        if gesture.with_value(|g| !g.is_active()) {
            studio.set_crop(entry, wheel(&crop, event.delta_y(), x, y));
        }
    };
    view! {
        <svg
            node_ref=area
            class="framed editor-photo"
            width=width * enlarged
            height=height * enlarged
            viewBox=format!("0 0 {width} {height}")
            role="application"
            aria-label=move || spoken(entry)
            tabindex="0"
            autofocus
            on:pointerdown=down
            on:pointermove=moved
            on:pointerup=up
            on:pointercancel=up
            on:wheel=scroll
        >
            <image href=url width=width height=height preserveAspectRatio="none" />
            <EditorFrame entry width height />
        </svg>
    }
    .into_any()
}

/// The frame with thirds and corners to take hold of.
#[component]
fn EditorFrame(entry: Entry, width: f64, height: f64) -> impl IntoView {
    let path = move |draw: fn(f64, f64, f64, f64, f64) -> String| {
        move || {
            entry.crop.get().map(|crop| {
                let s = crop.square();
                draw(s.x, s.y, s.side, width, height)
            })
        }
    };
    let outside = path(|x, y, side, w, h| format!("M0 0H{w}V{h}H0Z M{x} {y}v{side}h{side}v-{side}Z"));
    let frame = path(|x, y, side, _, _| format!("M{x} {y}h{side}v{side}h-{side}Z"));
    let thirds = path(|x, y, side, _, _| {
        let third = side / 3.0;
        let (x1, x2, y1, y2) = (x + third, x + 2.0 * third, y + third, y + 2.0 * third);
        format!("M{x1} {y}v{side}M{x2} {y}v{side}M{x} {y1}h{side}M{x} {y2}h{side}")
    });
    let corners = path(|x, y, side, _, _| {
        let (arm, right, bottom) = (side / 9.0, x + side, y + side);
        format!(
            "M{x} {}V{y}H{} M{} {y}H{right}V{} M{right} {}V{bottom}H{} M{} {bottom}H{x}V{}",
            y + arm,
            x + arm,
            right - arm,
            y + arm,
            bottom - arm,
            right - arm,
            x + arm,
            bottom - arm
        )
    });
    view! {
        <path class="outside" d=outside />
        <path class="thirds" d=thirds />
        <path class="frame" d=frame />
        <path class="corners" d=corners />
    }
}

/// What will be trained on, and its numbers.
#[component]
fn Result(studio: Studio, entry: Entry) -> impl IntoView {
    let picture = entry.picture.get_untracked();
    let view_box = move || {
        entry.crop.get().map(|crop| {
            let s = crop.square();
            format!("{} {} {} {}", s.x, s.y, s.side, s.side)
        })
    };
    let numbers = move || {
        entry.crop.get().map(|crop| {
            let s = crop.square();
            let (width, height) = crop.photo_px();
            let side_px = studio.side_px.get();
            view! {
                <dt>"Result"</dt><dd>{format!("{side_px} from {} px", s.side)}</dd>
                <dt>"Position"</dt><dd>{format!("{}, {} px", s.x, s.y)}</dd>
                <dt>"Photo"</dt><dd>{format!("{width} × {height} px")}</dd>
            }
        })
    };
    view! {
        <aside class="editor-result">
            {picture.map(|p| view! {
                <svg class="editor-crop" viewBox=view_box aria-hidden="true">
                    <image href=p.url.clone() width=p.width height=p.height preserveAspectRatio="none" />
                </svg>
            })}
            <dl class="editor-numbers">{numbers}</dl>
        </aside>
    }
}

/// The crop for a screen reader.
fn spoken(entry: Entry) -> String {
    let Some(crop) = entry.crop.get() else {
        return String::new();
    };
    let s = crop.square();
    format!("Crop of {} by {} pixels at {}, {}", s.side, s.side, s.x, s.y)
}

fn close(studio: Studio) {
    if let Some(id) = studio.editing.get_untracked() {
        studio.editing.set(None);
        focus_print(id);
    }
}

/// To the next photo that can be shown, in either direction.
fn walk(studio: Studio, by: isize) {
    let photos = studio.photos.get_untracked();
    let ready: Vec<u64> = photos
        .iter()
        .filter(|e| e.stage.get_untracked() == Stage::Ready)
        .map(|e| e.id)
        .collect();
    let here = studio
        .editing
        .get_untracked()
        .and_then(|id| ready.iter().position(|other| *other == id));
    if let Some(next) = here
        .and_then(|at| at.checked_add_signed(by))
        .and_then(|at| ready.get(at))
    {
        studio.editing.set(Some(*next));
    }
}

fn reset(studio: Studio, entry: Entry) {
    if let Some(crop) = entry.suggested.get_untracked() {
        studio.set_crop(entry, crop);
    }
}

/// A step whose size is a share of the frame, at least a pixel.
fn step(studio: Studio, entry: Entry, step: Step, share: f64) {
    if let Some(crop) = entry.crop.get_untracked() {
        let px = (f64::from(crop.side_px()) * share).round().max(1.0);
        studio.set_crop(entry, crop.stepped(step, px));
    }
}

fn press(studio: Studio, event: &KeyboardEvent) {
    let entry = studio.editing.get_untracked().and_then(|id| {
        studio
            .photos
            .read_untracked()
            .iter()
            .find(|entry| entry.id == id)
            .copied()
    });
    let Some(entry) = entry else { return };
    let px = if event.shift_key() { 10.0 } else { 1.0 };
    let arrow = |step: Step| entry.crop.get_untracked().map(|crop: Crop| crop.stepped(step, px));
    let next = match event.key().as_str() {
        "ArrowLeft" => arrow(Step::Left),
        "ArrowRight" => arrow(Step::Right),
        "ArrowUp" => arrow(Step::Up),
        "ArrowDown" => arrow(Step::Down),
        "+" | "=" => arrow(Step::In),
        "-" | "_" => arrow(Step::Out),
        "PageDown" | "]" => {
            event.prevent_default();
            return walk(studio, 1);
        }
        "PageUp" | "[" => {
            event.prevent_default();
            return walk(studio, -1);
        }
        "0" => entry.suggested.get_untracked(),
        _ => return,
    };
    event.prevent_default();
    if let Some(crop) = next.filter(|_| entry.has_file()) {
        studio.set_crop(entry, crop);
    }
}
