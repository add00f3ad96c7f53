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
                failed.try_set(Some(trouble.sentence()));
            }
        });
    };
    let (asks, refuses) = (
        NodeRef::<leptos::html::Button>::new(),
        NodeRef::<leptos::html::Button>::new(),
    );
    // The button in focus goes away: focus stays with the question, on the answer that loses nothing.
    let focus = move |button: NodeRef<leptos::html::Button>| {
        request_animation_frame(move || {
            if let Some(button) = button.get_untracked() {
                let _gone = button.focus();
            }
        });
    };
    let ask = move |_| {
        asking.set(true);
        focus(refuses);
    };
    let go_on = move || {
        asking.set(false);
        focus(asks);
    };
    let on_escape = move |event: leptos::ev::KeyboardEvent| {
        if event.key() == "Escape" {
            go_on();
        }
    };
    let queued = Memo::new(move |_| state.get() == JobState::Queued);
    let words = move |waiting: &'static str, running: &'static str| if queued.get() { waiting } else { running };
    view! {
        <div class="stop" on:keydown=on_escape>
            <Show
                when=move || asking.get()
                fallback=move || view! {
                    <button node_ref=asks type="button" class="button" disabled=stopping on:click=ask>
                        {move || if stopping() { "Stopping" } else { "Stop" }}
                    </button>
                }
            >
                <span class="stop-question">
                    {move || words("Take it out of the queue?", "Stop after this step and keep what was learned?")}
                </span>
                <button type="button" class="button button-strong" on:click=stop>{move || words("Take it out", "Stop and keep")}</button>
                <button node_ref=refuses type="button" class="button" on:click=move |_| go_on()>{move || words("Leave it", "Go on")}</button>
            </Show>
            {move || failed.get().map(|words| view! { <p class="field-problem" role="alert">{words}</p> })}
        </div>
    }
}
