//! The top bar: the name, the steps with the state of each in a line, the device, the runs, the theme.

use app::job::JobState;
use app::words;
use leptos::prelude::*;

use super::runs::RunsMenu;
use super::theme::ThemeToggle;
use crate::net::live::Live;
use crate::place::Place;
use crate::prep::Prep;
use crate::studio::Studio;
use crate::ui::{Icon, IconView};

#[component]
pub fn TopBar(place: ReadSignal<Place>, live: Live, prep: Prep, studio: Studio) -> impl IntoView {
    let at = Memo::new(move |_| place.with(Place::index));
    let job = move || live.watched.get();
    // The first part: there is room for no more.
    let photos = Signal::derive(move || {
        let sentence = studio.summary().get();
        sentence.split(';').next().unwrap_or_default().to_owned()
    });
    let subject = Signal::derive(move || prep.draft.with(|draft| draft.instance_prompt()));
    let train = Signal::derive(move || {
        prep.plan.with(|plan| match plan.problems.len() as u64 {
            0 => words::plural(u64::from(plan.recipe.max_train_steps), "step", "steps"),
            n => words::plural(n, "thing to fix", "things to fix"),
        })
    });
    let watch = Signal::derive(move || watch_summary(live));
    let results = Signal::derive(move || results_summary(live));
    let step = move |index: usize, icon: Icon, name: &'static str, href: Signal<String>, summary: Signal<String>| {
        view! { <StepLink icon name href summary here=Signal::derive(move || at.get() == index) /> }
    };
    let fixed = |place: Place| Signal::derive(move || place.hash());
    view! {
        <header class="bar">
            <a class="brand" href="#photos">"Likeness"</a>
            <nav class="steps" aria-label="Steps">
                {step(0, Icon::Photos, "Photos", fixed(Place::Photos), photos)}
                {step(1, Icon::Subject, "Subject", fixed(Place::Subject), subject)}
                {step(2, Icon::Train, "Train", fixed(Place::Train), train)}
                {step(3, Icon::Watch, "Watch", Signal::derive(move || Place::Run(job()).hash()), watch)}
                {step(4, Icon::Results, "Results", Signal::derive(move || Place::Results(job()).hash()), results)}
            </nav>
            <div class="bar-end">
                <Device live />
                <RunsMenu live />
                <ThemeToggle />
                <button type="button" class="button button-icon keys-button" title="Keys (?)" aria-label="Show the keys" on:click=|_| super::keys::show()>
                    "?"
                </button>
            </div>
        </header>
    }
}

#[component]
fn StepLink(
    icon: Icon,
    name: &'static str,
    href: Signal<String>,
    summary: Signal<String>,
    here: Signal<bool>,
) -> impl IntoView {
    view! {
        <a class="step" href=href aria-current=move || here.get().then_some("page")>
            <IconView icon />
            <span class="step-name">{name}</span>
            <span class="step-summary">{summary}</span>
        </a>
    }
}

#[component]
fn Device(live: Live) -> impl IntoView {
    let device = move || {
        live.server
            .with(|s| s.ready().map(|s| (s.device.name.clone(), s.device.why.clone())))
    };
    move || {
        device().map(|(name, why)| {
            view! { <span class="device" title=why>{name}</span> }
        })
    }
}

fn watch_summary(live: Live) -> String {
    if live.watched.with(Option::is_none) {
        return "no run yet".into();
    }
    let (step, steps) = live.run.with(|run| (run.step(), run.steps));
    match live.state() {
        JobState::Queued => "waiting".into(),
        JobState::Running if step == 0 => "preparing".into(),
        JobState::Running => format!("step {step} of {steps}"),
        JobState::Stopping => "stopping".into(),
        JobState::Done => "done".into(),
        JobState::Stopped => "stopped".into(),
        JobState::Failed { .. } => "failed".into(),
    }
}

fn results_summary(live: Live) -> String {
    live.run.with(|run| match (run.exported.len(), run.samples.len()) {
        (0, 0) => "nothing yet".into(),
        (0, rounds) => words::plural(rounds as u64, "round of samples", "rounds of samples"),
        _ => "checkpoint ready".into(),
    })
}
