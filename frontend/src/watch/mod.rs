//! The live view of a run: samples as they come, the loss curve, the figures, one line in plain words.

mod chart;
mod figures;
mod meters;
mod rounds;
mod stop;

use app::event::Phase;
use app::job::{JobId, JobState};
use app::run::Run;
use app::words;
use leptos::prelude::*;

use crate::net::live::Live;
use crate::place::Place;
use crate::ui::{Announcer, Empty, Notice, Tone};
use chart::LossChart;
use figures::Figures;
use meters::{HeldOut, Meters};
use rounds::Round;
pub use rounds::{RoundStrip, arrow_keys, file_url};
use stop::StopButton;

#[component]
pub fn WatchPlace(live: Live) -> impl IntoView {
    let watched = Memo::new(move |_| live.watched.get());
    let gone = Memo::new(move |_| live.gone.get());
    move || match (watched.get(), gone.get()) {
        (None, _) => view! { <NoRun live /> }.into_any(),
        (_, true) => view! { <GoneRun /> }.into_any(),
        (Some(job), false) => view! { <WatchRun live job /> }.into_any(),
    }
}

#[component]
fn NoRun(live: Live) -> impl IntoView {
    let known = move || live.jobs.with(Option::is_some);
    view! {
        <Show when=known fallback=|| view! { <div class="skeleton skeleton-page" aria-label="Asking the server for its runs"></div> }>
            <Empty title="Nothing is training yet">
                <p>"Once a run is started, its samples, its curve and the time left appear here."</p>
                <p><a class="button button-strong" href=Place::Train.hash()>"Go to Train"</a></p>
            </Empty>
        </Show>
    }
}

#[component]
pub fn GoneRun() -> impl IntoView {
    view! {
        <Empty title="This run is no longer here">
            <p>"It was deleted, or belongs to another server. Others are in the list of runs at the top."</p>
        </Empty>
    }
}

#[component]
fn WatchRun(live: Live, job: JobId) -> impl IntoView {
    announce_rounds(live);
    let job = StoredValue::new(job);
    let state = Memo::new(move |_| live.state());
    let class_prompt = Memo::new(move |_| {
        live.detail.with(|detail| {
            let concept = detail.ready()?.recipe.concepts.first()?.clone();
            concept.class_prompt
        })
    });
    let title = move || {
        live.detail
            .with(|d| d.ready().map(|d| d.summary.title.clone()).unwrap_or_default())
    };
    let situation = Memo::new(move |_| {
        // Only the list of jobs knows that a run is asked to stop, and how many wait before it.
        match state.get() {
            JobState::Stopping => "Stopping after this step. What was learned is saved.".to_owned(),
            JobState::Queued => waiting(live),
            _ => live
                .run
                .with(|run| words::situation(run, class_prompt.get().as_deref())),
        }
    });
    let warnings = Memo::new(move |_| live.run.with(|run| run.warnings.clone()));
    let over = move || state.with(JobState::is_over);
    let results = move || Place::Results(Some(job.get_value())).hash();
    view! {
        <div class="watch">
            <header class="watch-head">
                <div>
                    <p class="watch-title">{title}</p>
                    <h1 class="situation">{situation}</h1>
                </div>
                <Show when=over fallback=move || view! { <StopButton job=job.get_value() state=Signal::derive(move || state.get()) /> }>
                    <a class="button button-strong" href=results>"See the results"</a>
                </Show>
            </header>
            <RunBar live />
            <FailureNotice state />
            {move || warnings.get().into_iter().map(|words| view! { <Notice tone=Tone::Warning>{words}</Notice> }).collect_view()}
            <div class="watch-columns">
                <section class="watch-pictures" aria-label="Samples">
                    <Pictures live job=job.get_value() />
                </section>
                <section class="watch-figures" aria-label="Figures">
                    <LossChart live />
                    <Meters live />
                    <HeldOut live job=job.get_value() />
                    <Figures live />
                </section>
            </div>
        </div>
    }
}

fn waiting(live: Live) -> String {
    let Some(job) = live.watched.get() else {
        return String::new();
    };
    let before = live.jobs.with(|jobs| {
        let jobs = jobs.as_deref().unwrap_or_default();
        let open = |state: &JobState| !state.is_over();
        // The list is newest first: what comes after this one was there before it.
        jobs.iter()
            .skip_while(|j| j.id != job)
            .skip(1)
            .filter(|j| open(&j.state))
            .count() as u64
    });
    match before {
        0 => "Waiting for the trainer to take it.".into(),
        n => format!("Waiting for {} before it.", words::plural(n, "run", "runs")),
    }
}

/// How far it is, in a line across the page.
#[component]
fn RunBar(live: Live) -> impl IntoView {
    let share = Memo::new(move |_| live.run.with(share_done));
    let percent = move || (share.get() * 100.0).round() as u32;
    view! {
        <div class="progress" role="progressbar" aria-label="Training" aria-valuemin="0" aria-valuemax="100" aria-valuenow=percent>
            <div class="progress-done" style:--done=move || format!("{:.4}", share.get())></div>
        </div>
    }
}

/// A download first, then class images, then steps: each fills the bar once.
fn share_done(run: &Run) -> f64 {
    let of = |done: u32, total: u32| {
        if total == 0 {
            0.0
        } else {
            f64::from(done) / f64::from(total)
        }
    };
    if let Some(coming) = run.downloading() {
        return coming.done as f64 / coming.total.max(1) as f64;
    }
    match run.phase {
        Some(Phase::ClassImages) => of(run.class_images.done, run.class_images.total),
        _ => of(run.step(), run.steps),
    }
}

#[component]
fn FailureNotice(state: Memo<JobState>) -> impl IntoView {
    let hint = move || match state.get() {
        JobState::Failed { failure } => Some((failure.hint, failure.code)),
        _ => None,
    };
    move || {
        hint().map(|(hint, code)| {
            let words = hint.unwrap_or_else(|| {
                "Your photos and settings are kept: change what is named above and start again.".into()
            });
            view! {
                <Notice tone=Tone::Error>
                    <p>{words}</p>
                    <p class="quiet">"The trainer's own log is in the job's folder, trainer.log. Code: "{code}"."</p>
                </Notice>
            }
        })
    }
}

/// Samples when there are any; before that, the class images as they are drawn.
#[component]
fn Pictures(live: Live, job: JobId) -> impl IntoView {
    let job = StoredValue::new(job);
    let steps = Memo::new(move |_| live.run.with(|run| run.samples.keys().copied().collect::<Vec<_>>()));
    let has_samples = Memo::new(move |_| steps.with(|s| !s.is_empty()));
    // `None` follows the newest.
    let chosen = RwSignal::new(None::<u32>);
    let shown = Memo::new(move |_| chosen.get().or_else(|| steps.with(|s| s.last().copied())).unwrap_or(0));
    let choose = move |step: u32| {
        let newest = steps.with_untracked(|s| s.last() == Some(&step));
        chosen.set((!newest).then_some(step));
    };
    arrow_keys(steps, shown, choose);
    view! {
        <Show when=move || has_samples.get() fallback=move || view! { <BeforeSamples live job=job.get_value() /> }>
            <h2 class="round-title">
                {move || match shown.get() { 0 => "Before training".to_owned(), step => format!("After step {step}") }}
                <Show when=move || chosen.get().is_some()>
                    <button type="button" class="button button-quiet" on:click=move |_| chosen.set(None)>"Follow the newest"</button>
                </Show>
            </h2>
            <Round live job=job.get_value() step=shown />
            <RoundStrip live job=job.get_value() steps shown choose />
        </Show>
        <Show when=move || has_samples.get() && live.run.with(|run| run.phase == Some(Phase::ClassImages))>
            <ClassImages live job=job.get_value() />
        </Show>
    }
}

#[component]
fn BeforeSamples(live: Live, job: JobId) -> impl IntoView {
    let job = StoredValue::new(job);
    let any = Memo::new(move |_| live.run.with(|run| !run.class_image_files.is_empty()));
    let over = Memo::new(move |_| live.state().is_over());
    view! {
        <Show when=move || any.get() fallback=move || view! {
            <Show when=move || !over.get() fallback=|| view! { <p class="quiet">"It ended before the first sample."</p> }>
                <div class="round round-waiting" aria-hidden="true"><span></span><span></span><span></span><span></span></div>
                <p class="quiet">"The first samples come before the first step, drawn by the untrained model."</p>
            </Show>
        }>
            <ClassImages live job=job.get_value() />
        </Show>
    }
}

#[component]
fn ClassImages(live: Live, job: JobId) -> impl IntoView {
    let files = move || live.run.with(|run| run.class_image_files.clone());
    let progress = move || {
        live.run
            .with(|run| format!("{} of {}", run.class_images.done, run.class_images.total))
    };
    view! {
        <h2 class="round-title">"Class images" <span class="figures quiet">{progress}</span></h2>
        <div class="class-images">
            <For each=files key=|file| file.clone() let:file>
                <img class="develop" src=file_url(&job, &file) alt="" loading="lazy" />
            </For>
        </div>
    }
}

/// A finished round of samples is a milestone.
fn announce_rounds(live: Live) {
    let announcer = expect_context::<Announcer>();
    let newest = Memo::new(move |_| live.run.with(|run| run.samples.keys().next_back().copied()));
    Effect::new(move |before: Option<Option<u32>>| {
        let now = newest.get();
        if let (Some(Some(_)), Some(step)) = (before, now) {
            announcer.say(format!("New samples after step {step}."));
        }
        now
    });
}
