//! One print on the contact sheet, and the drawing of a photo under its crop frame.

use app::photo::{PhotoProblem, Severity};
use leptos::prelude::*;

use super::Studio;
use super::entry::{Entry, Picture, Stage, Upload};

/// How a photo stands, for the dot and the words beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub class: &'static str,
    pub words: String,
}

impl Verdict {
    pub fn of(problems: &[PhotoProblem]) -> Self {
        let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let class = match problems.iter().map(PhotoProblem::severity).max() {
            None => "verdict verdict-good",
            Some(Severity::Advice) => "verdict verdict-advice",
            Some(Severity::Error) => "verdict verdict-error",
        };
        let words = if words.is_empty() {
            "good".into()
        } else {
            words.join(", ")
        };
        Self { class, words }
    }
}

/// The verdict on the photo `id`, following the set.
pub fn verdict_of(studio: Studio, id: u64) -> Memo<Verdict> {
    Memo::new(move |_| {
        let number = studio.number(id);
        let verdict = studio.verdict.read();
        let problems = number.checked_sub(1).and_then(|at| verdict.photos.get(at));
        Verdict::of(problems.map_or(&[], Vec::as_slice))
    })
}

/// The photo with what lies outside the crop darkened. Everything is drawn in photo pixels.
#[component]
pub fn Framed(entry: Entry) -> impl IntoView {
    move || {
        let picture = entry.picture.get()?;
        let Picture { width, height, .. } = picture;
        let whole = entry.has_file();
        Some(view! {
            <svg class="framed" viewBox=format!("0 0 {width} {height}") aria-hidden="true">
                <image href=picture.url.clone() width=width height=height preserveAspectRatio="none" />
                {whole.then(|| view! { <Frame entry width height /> })}
            </svg>
        })
    }
}

#[component]
fn Frame(entry: Entry, width: f64, height: f64) -> impl IntoView {
    let square = move || entry.crop.get().map(|crop| crop.square());
    let outside = move || {
        square().map(|s| {
            let (x, y, side) = (s.x, s.y, s.side);
            format!("M0 0H{width}V{height}H0Z M{x} {y}v{side}h{side}v-{side}Z")
        })
    };
    view! {
        <path class="outside" d=outside />
        <rect
            class="frame"
            x=move || square().map(|s| s.x)
            y=move || square().map(|s| s.y)
            width=move || square().map(|s| s.side)
            height=move || square().map(|s| s.side)
        />
    }
}

#[component]
pub fn Print(studio: Studio, entry: Entry, tabindex: Signal<i32>, on_focus: Callback<u64>) -> impl IntoView {
    let id = entry.id;
    let name = entry.name.get_value();
    let number = move || studio.number(id);
    let label = {
        let name = name.clone();
        let verdict = verdict_of(studio, id);
        move || match entry.stage.get() {
            Stage::Reading => format!("Photo {}, {name}, is being looked at", number()),
            Stage::Failed(message) => format!("Photo {}, {name}. {message}", number()),
            Stage::Ready => format!("Photo {}, {name}: {}. Opens the crop", number(), verdict.get().words),
        }
    };
    let remove_label = format!("Remove {name}");
    let open = move |_| {
        if entry.stage.get_untracked() == Stage::Ready {
            studio.editing.set(Some(id));
        }
    };
    view! {
        <li class="print" class:print-failed=move || matches!(entry.stage.get(), Stage::Failed(_))>
            <button
                type="button"
                class="print-open"
                data-photo=id
                aria-label=label
                tabindex=move || tabindex.get()
                on:focus=move |_| on_focus.run(id)
                on:click=open
            >
                <PrintFace entry />
            </button>
            <div class="print-caption">
                <span class="print-number">{number}</span>
                <span class="print-name" title=name.clone()>{name.clone()}</span>
                <button
                    type="button"
                    class="print-remove"
                    aria-label=remove_label
                    title="Remove"
                    tabindex="-1"
                    on:click=move |_| studio.remove(id)
                >
                    "×"
                </button>
            </div>
            <PrintState studio entry />
        </li>
    }
}

#[component]
fn PrintFace(entry: Entry) -> impl IntoView {
    move || match entry.stage.get() {
        Stage::Reading if entry.picture.read().is_none() => view! { <span class="skeleton"></span> }.into_any(),
        Stage::Failed(message) => view! { <span class="print-error">{message}</span> }.into_any(),
        _ => view! { <Framed entry /> }.into_any(),
    }
}

/// The line under a print: verdict, and what of the upload is worth saying.
#[component]
fn PrintState(studio: Studio, entry: Entry) -> impl IntoView {
    let verdict = verdict_of(studio, entry.id);
    let is_ready = move || entry.stage.get() == Stage::Ready;
    view! {
        <Show when=is_ready>
            <p class="print-state">
                <span class=move || verdict.get().class>
                    <span class="dot" aria-hidden="true"></span>
                    {move || verdict.get().words}
                </span>
                <UploadState studio entry />
            </p>
        </Show>
    }
}

#[component]
fn UploadState(studio: Studio, entry: Entry) -> impl IntoView {
    move || match entry.upload.get() {
        Upload::None => ().into_any(),
        Upload::Waiting => view! { <span class="upload">"waiting"</span> }.into_any(),
        Upload::Sending { percent } => view! {
            <span class="upload">{format!("sending {percent}%")}</span>
            <progress class="upload-bar" max="100" value=percent aria-hidden="true"></progress>
        }
        .into_any(),
        Upload::Done { .. } => {
            view! { <span class="upload upload-done" title="On the server">"saved"</span> }.into_any()
        }
        Upload::Failed { message } if entry.has_file() => view! {
            <span class="upload upload-failed" title=message.clone()>
                "not sent"
                <button type="button" class="link" on:click=move |_| studio.retry(entry)>"Retry"</button>
            </span>
        }
        .into_any(),
        Upload::Failed { message } => view! { <span class="upload upload-failed">{message}</span> }.into_any(),
    }
}
