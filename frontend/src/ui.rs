//! Small pieces every place uses.

use leptos::prelude::*;
use leptos::task::spawn_local;
use wasm_bindgen_futures::JsFuture;

/// Spoken by screen readers: milestones, never every tick.
#[derive(Clone, Copy)]
pub struct Announcer(pub RwSignal<String>);

impl Announcer {
    pub fn say(self, words: impl Into<String>) {
        self.0.set(words.into());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Warning,
    Error,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Warning => "notice notice-warning",
            Self::Error => "notice notice-error",
        }
    }

    /// Colour never carries a meaning alone.
    fn icon(self) -> Icon {
        match self {
            Self::Warning => Icon::Info,
            Self::Error => Icon::Problem,
        }
    }
}

#[component]
pub fn Notice(tone: Tone, children: Children) -> impl IntoView {
    let role = if tone == Tone::Error { "alert" } else { "note" };
    view! {
        <div class=tone.class() role=role>
            <IconView icon=tone.icon() />
            <div class="notice-words">{children()}</div>
        </div>
    }
}

/// What a place says when there is nothing yet, with the way on.
#[component]
pub fn Empty(title: &'static str, children: Children) -> impl IntoView {
    view! {
        <div class="empty">
            <span class="empty-frame" aria-hidden="true"></span>
            <h2>{title}</h2>
            {children()}
        </div>
    }
}

/// Copies `text` and says so.
#[component]
pub fn CopyButton(#[prop(into)] text: Signal<String>, label: &'static str) -> impl IntoView {
    let copied = RwSignal::new(false);
    let copy = move |_| {
        let text = text.get_untracked();
        spawn_local(async move {
            // `navigator.clipboard` is absent on plain http from another machine: then the text is there to select.
            copied.set(copy_text(&text).await);
            gloo_timers::future::TimeoutFuture::new(2000).await;
            copied.try_set(false);
        });
    };
    view! {
        <button type="button" class="button button-quiet" aria-label=label on:click=copy>
            {move || if copied.get() { "Copied" } else { "Copy" }}
        </button>
    }
}

async fn copy_text(text: &str) -> bool {
    let navigator = window().navigator();
    let Ok(clipboard) = js_sys::Reflect::get(&navigator, &"clipboard".into()) else {
        return false;
    };
    let Ok(write) = js_sys::Reflect::get(&clipboard, &"writeText".into()) else {
        return false;
    };
    let Ok(write) = wasm_bindgen::JsCast::dyn_into::<js_sys::Function>(write) else {
        return false;
    };
    let Ok(promise) = write.call1(&clipboard, &text.into()) else {
        return false;
    };
    JsFuture::from(js_sys::Promise::resolve(&promise)).await.is_ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icon {
    Photos,
    Subject,
    Train,
    Watch,
    Results,
    Check,
    Problem,
    Info,
    Theme,
    Runs,
}

impl Icon {
    fn path(self) -> &'static str {
        match self {
            Self::Photos => "M3 5h14v10H3zM3 13l4-4 3 3 2-2 5 4M13.200 8a.8.8 0 1 0 .1 0",
            Self::Subject => "M10 10a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM4 17c0-3.300 2.700-5 6-5s6 1.700 6 5",
            Self::Train => "M6 4l10 6-10 6z",
            Self::Watch => "M3 3v14h14M5.500 12l3-4 3 3 5-6",
            Self::Results => "M10 3v9M6.500 8.500 10 12l3.500-3.500M4 16h12",
            Self::Check => "M4 10.500l4 4 8-9",
            Self::Problem => "M10 3l8 14H2zM10 8v4M10 14.500v.2",
            Self::Info => "M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM10 9v5M10 6.300v.2",
            Self::Theme => "M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM10 3v14M10 6.500h4.500M10 10h7M10 13.500h5.500",
            Self::Runs => "M4 5h12M4 10h12M4 15h8",
        }
    }
}

/// A line drawing in the colour of the text around it.
#[component]
pub fn IconView(icon: Icon) -> impl IntoView {
    view! {
        <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
            <path d=icon.path() />
        </svg>
    }
}
