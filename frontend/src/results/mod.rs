//! What came out: samples by step beside the untrained model, and the checkpoint to download.

mod compare;
mod downloads;

use app::job::{JobId, JobState};
use leptos::prelude::*;

use crate::net::http::Fetched;
use crate::net::live::Live;
use crate::place::{self, Place};
use crate::prep::Prep;
use crate::ui::Empty;
use crate::watch::{GoneRun, RoundStrip, arrow_keys};
use compare::Compare;
use downloads::Downloads;

#[component]
pub fn ResultsPlace(live: Live, prep: Prep) -> impl IntoView {
    let watched = Memo::new(move |_| live.watched.get());
    let gone = Memo::new(move |_| live.gone.get());
    move || match (watched.get(), gone.get()) {
        (None, _) => view! {
            <Empty title="No result yet">
                <p>"A trained checkpoint and its samples appear here."</p>
                <p><a class="button button-strong" href=Place::Train.hash()>"Go to Train"</a></p>
            </Empty>
        }
        .into_any(),
        (_, true) => view! { <GoneRun /> }.into_any(),
        (Some(job), false) => view! { <ResultOf live prep job /> }.into_any(),
    }
}

#[component]
fn ResultOf(live: Live, prep: Prep, job: JobId) -> impl IntoView {
    let job = StoredValue::new(job);
    let title = move || {
        live.detail
            .with(|d| d.ready().map(|d| d.summary.title.clone()).unwrap_or_default())
    };
    let situation = move || {
        live.run.with(|run| match (&run.state, run.exported_step) {
            (_, Some(step)) => format!("Trained for {step} steps."),
            (JobState::Failed { failure }, None) => {
                format!("There is no checkpoint: {}.", failure.message.trim_end_matches('.'))
            }
            (state, None) if state.is_over() => "It ended before a checkpoint was written.".into(),
            (_, None) => "Still training; the checkpoint comes at the end.".into(),
        })
    };
    let over = Memo::new(move |_| live.state().is_over());
    view! {
        <div class="results">
            <header class="watch-head">
                <div>
                    <p class="watch-title">{title}</p>
                    <h1 class="situation">{situation}</h1>
                </div>
                <Show when=move || over.get() fallback=move || view! { <a class="button" href=Place::Run(Some(job.get_value())).hash()>"Watch it"</a> }>
                    <Again live prep />
                </Show>
            </header>
            <div class="watch-columns">
                <section class="watch-pictures" aria-label="Samples by step">
                    <SamplesByStep live job=job.get_value() />
                </section>
                <section class="watch-figures" aria-label="Downloads">
                    <Downloads live job=job.get_value() />
                </section>
            </div>
        </div>
    }
}

/// The same photos and settings once more, to change one thing.
#[component]
fn Again(live: Live, prep: Prep) -> impl IntoView {
    let recipe = move || {
        live.detail.with(|d| match d {
            Fetched::Ready(detail) => Some(detail.recipe.clone()),
            _ => None,
        })
    };
    let again = move |_| {
        let Some(recipe) = recipe() else { return };
        let defaults = prep
            .model
            .with_untracked(|m| m.as_ref().map(|m| m.defaults.clone()))
            .unwrap_or_default();
        prep.draft.update(|draft| *draft = draft.again(&recipe, &defaults));
        prep.inspect_vae();
        // A model of an earlier visit may not be known to this one.
        if prep.model.with_untracked(Option::is_none) {
            prep.inspect(
                recipe.pretrained_model_name_or_path.clone(),
                recipe.revision.clone().unwrap_or_default(),
            );
        }
        place::go(&Place::Train);
    };
    view! {
        <button type="button" class="button" disabled=move || recipe().is_none() on:click=again>
            "Start again with the same photos"
        </button>
    }
}

#[component]
fn SamplesByStep(live: Live, job: JobId) -> impl IntoView {
    let job = StoredValue::new(job);
    let steps = Memo::new(move |_| live.run.with(|run| run.samples.keys().copied().collect::<Vec<_>>()));
    let chosen = RwSignal::new(None::<u32>);
    let shown = Memo::new(move |_| chosen.get().or_else(|| steps.with(|s| s.last().copied())).unwrap_or(0));
    let choose = move |step: u32| chosen.set(Some(step));
    arrow_keys(steps, shown, choose);
    let none = move || steps.with(Vec::is_empty);
    view! {
        <Show when=move || !none() fallback=|| view! { <p class="quiet">"This run drew no samples."</p> }>
            <Compare live job=job.get_value() step=shown />
            <RoundStrip live job=job.get_value() steps shown choose />
        </Show>
    }
}
