//! The base model: one the server lists, or a path on the server.

use app::api::ModelInfo;
use app::words;
use leptos::prelude::*;

use crate::net::http::Fetched;
use crate::net::live::Live;
use crate::prep::Prep;
use crate::ui::{Notice, Tone};

#[component]
pub fn ModelChoice(prep: Prep, live: Live) -> impl IntoView {
    let listed = move || {
        live.server
            .with(|s| s.ready().map(|s| s.models.clone()).unwrap_or_default())
    };
    view! {
        <fieldset class="part">
            <legend>"Base model"</legend>
            <p class="quiet">"What it starts from. The starter is here already; any Stable Diffusion 1.5 model on the server's disk works too."</p>
            {move || match live.server.get() {
                Fetched::Pending => Some(view! { <div class="skeleton skeleton-line" aria-label="Asking the server for its models"></div> }.into_any()),
                Fetched::Failed(trouble) => Some(view! { <Notice tone=Tone::Error>{format!("{trouble}.")}</Notice> }.into_any()),
                Fetched::Ready(_) => None,
            }}
            <div class="models">
                <For each=listed key=|model| model.pretrained_model_name_or_path.clone() let:model>
                    <ModelCard model prep />
                </For>
            </div>
            <PathField prep listed=Signal::derive(listed) />
        </fieldset>
    }
}

#[component]
fn ModelCard(model: ModelInfo, prep: Prep) -> impl IntoView {
    let reference = StoredValue::new(model.pretrained_model_name_or_path.clone());
    let chosen = move || {
        prep.draft
            .with(|d| d.pretrained_model_name_or_path == reference.get_value())
    };
    view! {
        <label class="model">
            <input
                type="radio"
                name="model"
                prop:checked=chosen
                on:change=move |_| prep.choose_model(&reference.get_value())
            />
            <ModelFacts model />
        </label>
    }
}

#[component]
fn ModelFacts(model: ModelInfo) -> impl IntoView {
    let side = model.resolution;
    let facts = format!(
        "{side} \u{d7} {side} pixels, {} parameters",
        words::count(model.parameters)
    );
    let leads_to = if model.loads_in_webuis {
        "Its checkpoints load in any Stable Diffusion WebUI."
    } else {
        "Small and quick, to learn how it works. Only Likeness draws from its checkpoints."
    };
    view! {
        <span class="model-facts">
            <strong>{model.title}</strong>
            <span class="figures">{facts}</span>
            <span class="quiet">{leads_to}</span>
        </span>
    }
}

/// A diffusers folder or single file on the server, checked before it is taken.
#[component]
fn PathField(prep: Prep, listed: Signal<Vec<ModelInfo>>) -> impl IntoView {
    let is_listed = move |path: &str| listed.with(|all| all.iter().any(|m| m.pretrained_model_name_or_path == path));
    let chosen = prep.draft.with_untracked(|d| d.pretrained_model_name_or_path.clone());
    let path = RwSignal::new(if chosen == app::recipe::STARTER {
        String::new()
    } else {
        chosen
    });
    let check = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        let path = path.get_untracked().trim().to_owned();
        if !path.is_empty() {
            prep.inspect(path);
        }
    };
    let answer = move || match prep.inspected.get() {
        None => ().into_any(),
        Some(Fetched::Pending) => view! { <p class="quiet" role="status">"Reading the model."</p> }.into_any(),
        Some(Fetched::Failed(trouble)) => {
            view! { <Notice tone=Tone::Error>{format!("{trouble}.")}</Notice> }.into_any()
        }
        Some(Fetched::Ready(model)) if is_listed(&model.pretrained_model_name_or_path) => ().into_any(),
        Some(Fetched::Ready(model)) => view! { <div class="models"><ModelCard model prep /></div> }.into_any(),
    };
    view! {
        <form class="field" on:submit=check>
            <label for="model-path">"Or a model on the server"</label>
            <div class="field-row">
                <input
                    id="model-path"
                    type="text"
                    autocomplete="off"
                    spellcheck="false"
                    placeholder="/models/v1-5-pruned-emaonly.safetensors"
                    bind:value=path
                />
                <button type="submit" class="button" disabled=move || path.with(|p| p.trim().is_empty())>"Check"</button>
            </div>
            <p class="quiet">"A diffusers folder, a .safetensors or a .ckpt file, by its path on the machine that trains."</p>
        </form>
        {answer}
    }
}
