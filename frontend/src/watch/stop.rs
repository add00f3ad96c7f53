//! Stop and keep what there is, confirmed in place.

use app::job::{JobId, JobState, JobSummary};
use leptos::prelude::*;
use leptos::task::spawn_local;
use serde_json::json;

use crate::net::http;

#[component]
pub fn StopButton(job: JobId, state: Signal<JobState>) -> impl IntoView {
    let job = StoredValue::new(job);
    let asking = RwSignal::new(false);
    let sent = RwSignal::new(false);
    let failed = RwSignal::new(None::<String>);
    let stopping = move || sent.get() || state.get() == JobState::Stopping;
    let stop = move |_| {
        asking.set(false);
        sent.set(true);
        failed.set(None);
        spawn_local(async move {
            let path = format!("/api/jobs/{}/stop", job.get_value());
            let answer = http::post::<JobSummary>(&path, &json!({})).await;
            if let Err(trouble) = answer {
                sent.try_set(false);
                failed.try_set(Some(format!("{trouble}.")));
            }
        });
    };
    let cancel_on_escape = move |event: leptos::ev::KeyboardEvent| {
        if event.key() == "Escape" {
            asking.set(false);
        }
    };
    let question = move || match state.get() {
        JobState::Queued => "Take it out of the queue?",
        _ => "Stop after this step and keep what was learned?",
    };
    view! {
        <div class="stop" on:keydown=cancel_on_escape>
            <Show
                when=move || asking.get()
                fallback=move || view! {
                    <button type="button" class="button" disabled=stopping on:click=move |_| asking.set(true)>
                        {move || if stopping() { "Stopping" } else { "Stop" }}
                    </button>
                }
            >
                <span class="stop-question">{question}</span>
                <button type="button" class="button button-strong" autofocus on:click=stop>"Stop and keep"</button>
                <button type="button" class="button" on:click=move |_| asking.set(false)>"Go on training"</button>
            </Show>
            {move || failed.get().map(|words| view! { <p class="field-problem" role="alert">{words}</p> })}
        </div>
    }
}
