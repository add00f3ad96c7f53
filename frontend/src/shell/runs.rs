//! All jobs the server knows: the queue, the running one, earlier ones.

use app::job::{JobState, JobSummary};
use app::words;
use leptos::html::Dialog;
use leptos::prelude::*;
use leptos::task::spawn_local;

use crate::net::http;
use crate::net::live::Live;
use crate::place::Place;
use crate::ui::{Announcer, Icon, IconView};

#[component]
pub fn RunsMenu(live: Live) -> impl IntoView {
    let dialog = NodeRef::<Dialog>::new();
    let open = move |_| {
        if let Some(dialog) = dialog.get_untracked() {
            let _already_open = dialog.show_modal();
        }
    };
    let close = move || {
        if let Some(dialog) = dialog.get_untracked() {
            dialog.close();
        }
    };
    let jobs = move || live.jobs.get().unwrap_or_default();
    let empty = move || live.jobs.with(|jobs| jobs.as_ref().is_none_or(Vec::is_empty));
    view! {
        <button type="button" class="button button-icon" title="All runs" aria-label="Show all runs" on:click=open>
            <IconView icon=Icon::Runs />
        </button>
        <dialog node_ref=dialog class="dialog runs" aria-labelledby="runs-title">
            <h2 id="runs-title">"Runs"</h2>
            <Show when=empty>
                <p class="quiet">"No run yet. The first one appears here as soon as it is started."</p>
            </Show>
            <ul class="run-list">
                <For each=jobs key=|job| (job.id.clone(), words::state(job)) let:job>
                    <RunLine job live close />
                </For>
            </ul>
            <button type="button" class="button" on:click=move |_| close()>"Close"</button>
        </dialog>
    }
}

#[component]
fn RunLine(job: JobSummary, live: Live, close: impl Fn() + Copy + 'static) -> impl IntoView {
    let announcer = expect_context::<Announcer>();
    let id = StoredValue::new(job.id.clone());
    let sure = RwSignal::new(false);
    let failed = RwSignal::new(None::<String>);
    let remove = move |_| {
        if !sure.get_untracked() {
            sure.set(true);
            return;
        }
        spawn_local(async move {
            match http::delete(&format!("/api/jobs/{}", id.get_value())).await {
                Ok(()) => announcer.say("The run was deleted."),
                Err(trouble) => drop(failed.try_set(Some(trouble.to_string()))),
            }
        });
    };
    let place = match job.state {
        JobState::Done | JobState::Stopped => Place::Results(Some(job.id.clone())),
        _ => Place::Run(Some(job.id.clone())),
    };
    let when = words::ago(js_sys::Date::now() as u64, job.created_ms);
    let here = {
        let id = job.id.clone();
        move || live.watched.with(|w| w.as_ref() == Some(&id)).then_some("true")
    };
    view! {
        <li class="run-line">
            <a href=place.hash() aria-current=here on:click=move |_| close()>
                <span class="run-title">{job.title.clone()}</span>
                <span class="run-state" data-state=state_name(&job.state)>{words::state(&job)}</span>
                <span class="run-when">{when}</span>
            </a>
            {job.state.is_over().then(|| view! {
                <button type="button" class="button button-quiet" on:click=remove>
                    {move || if sure.get() { "Delete for good" } else { "Delete" }}
                </button>
            })}
            {move || failed.get().map(|words| view! { <p class="field-problem" role="alert">{words}</p> })}
        </li>
    }
}

fn state_name(state: &JobState) -> &'static str {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Stopping => "stopping",
        JobState::Done => "done",
        JobState::Stopped => "stopped",
        JobState::Failed { .. } => "failed",
    }
}
