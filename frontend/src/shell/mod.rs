//! What surrounds the places: the top bar, the steps, notices about the connection, the list of keys.

mod bar;
mod keys;
mod runs;
mod theme;

pub use keys::while_shown;

use app::job::JobState;
use leptos::prelude::*;
use leptos::task::spawn_local;

use crate::net::http::Fetched;
use crate::net::live::{Link, Live};
use crate::place::{self, Place};
use crate::prep::Prep;
use crate::results::ResultsPlace;
use crate::studio::{self, PhotosPlace, Studio};
use crate::subject::SubjectPlace;
use crate::train::TrainPlace;
use crate::ui::{Announcer, Notice, Tone};
use crate::watch::WatchPlace;

#[component]
pub fn App() -> impl IntoView {
    let place = place::follow();
    let live = Live::start();
    let prep = Prep::new(live);
    let studio = Studio::new(prep.side_px());
    let announcer = Announcer(RwSignal::new(String::new()));
    provide_context(announcer);
    follow_job(place, live);
    Effect::new(move |_| {
        if live.link.get() == Link::Open {
            studio.retry_failed();
        }
    });
    announce_ends(live, announcer);
    show_progress_in_title(live);

    let index = Memo::new(move |_| place.with(Place::index));
    Effect::new(move |before: Option<usize>| {
        let now = index.get();
        if before.is_some_and(|before| before != now) {
            focus_content();
            window().scroll_to_with_x_and_y(0.0, 0.0);
        }
        now
    });
    let shown = move || match index.get() {
        0 => view! { <PhotosPlace studio try_demo=Callback::new(move |()| show_demo(studio, prep)) /> }.into_any(),
        1 => view! { <SubjectPlace prep live /> }.into_any(),
        2 => view! { <TrainPlace prep studio live /> }.into_any(),
        3 => view! { <WatchPlace live /> }.into_any(),
        _ => view! { <ResultsPlace live prep /> }.into_any(),
    };
    view! {
        <a class="skip" href="#main-content" on:click=skip_to_content>"Skip to content"</a>
        <bar::TopBar place live prep studio />
        <ConnectionNotice live />
        <main id="main-content" tabindex="-1" class:wide=move || { index.get() >= 3 || index.get() == 0 }>{shown}</main>
        <keys::KeysDialog />
        <p class="spoken" aria-live="polite">{move || announcer.0.get()}</p>
    }
}

/// The photos that ship with the page, and the word for what they show.
fn show_demo(studio: Studio, prep: Prep) {
    prep.draft
        .update(|draft| draft.class_noun = studio::demo::CLASS_NOUN.into());
    spawn_local(async move {
        if let Err(words) = studio::demo::add(studio).await {
            studio.news.set(words);
        }
    });
}

/// The hash is the route, so that the link must not change it.
fn skip_to_content(event: leptos::ev::MouseEvent) {
    event.prevent_default();
    focus_content();
}

/// Keyboard and screen reader go on where the new content begins.
fn focus_content() {
    let main = document().get_element_by_id("main-content");
    if let Some(main) = main.and_then(|e| wasm_bindgen::JsCast::dyn_into::<web_sys::HtmlElement>(e).ok()) {
        let _gone = main.focus();
    }
}

/// Watches the job of the address, or the newest when none was ever watched.
fn follow_job(place: ReadSignal<Place>, live: Live) {
    let newest = Memo::new(move |_| live.jobs.with(|jobs| jobs.as_ref()?.first().map(|job| job.id.clone())));
    Effect::new(move |_| match place.with(|place| place.job().cloned()) {
        Some(job) => live.watch(&job),
        None => {
            if let Some(job) = newest.get().filter(|_| live.watched.with_untracked(Option::is_none)) {
                live.watch(&job);
            }
        }
    });
}

/// A tab in the background shows how far it is.
fn show_progress_in_title(live: Live) {
    let title = Memo::new(move |_| {
        let (step, steps) = live.run.with(|run| (run.step(), run.steps));
        match live.state() {
            JobState::Running | JobState::Stopping if steps > 0 => format!("{step} of {steps} \u{b7} Likeness"),
            JobState::Running | JobState::Stopping => "Preparing \u{b7} Likeness".into(),
            _ => "Likeness".to_owned(),
        }
    });
    Effect::new(move |_| title.with(|title| document().set_title(title)));
}

/// Says how the watched run ended, also to those who look at another place.
fn announce_ends(live: Live, announcer: Announcer) {
    let state = Memo::new(move |_| (live.watched.get(), live.state()));
    Effect::new(move |before: Option<(Option<app::job::JobId>, JobState)>| {
        let now = state.get();
        if let Some((job, was)) = before
            && job == now.0
            && was != now.1
            && !matches!(was, JobState::Queued)
        {
            match &now.1 {
                JobState::Done => announcer.say("Training is done. The checkpoint is ready."),
                JobState::Stopped => announcer.say("Training was stopped. What was learned is saved."),
                JobState::Failed { failure } => announcer.say(format!("Training failed: {}", failure.message)),
                _ => {}
            }
        }
        now
    });
}

#[component]
fn ConnectionNotice(live: Live) -> impl IntoView {
    let words = move || match (live.link.get(), live.server.with(|s| matches!(s, Fetched::Failed(_)))) {
        (Link::Lost, _) => Some(
            "No connection to Likeness. Training goes on without this page; it catches up as soon as the server answers.",
        ),
        (_, true) => Some("The server answers, but not as this page expects. Reload the page."),
        _ => None,
    };
    move || words().map(|words| view! { <div class="connection"><Notice tone=Tone::Warning>{words}</Notice></div> })
}
