//! The base model: one the server lists, a path on the server, or a model of the Hub; and a VAE in place of its own.

use app::api::ModelInfo;
use app::recipe::{self, RecipeProblem};
use app::words;
use leptos::prelude::*;

use crate::net::http::Fetched;
use crate::net::live::Live;
use crate::prep::{Prep, reference_of};
use crate::ui::{Notice, Tone};

use super::hub::{HubLine, TokenField, asks_for_token};

#[component]
pub fn ModelChoice(prep: Prep, live: Live) -> impl IntoView {
    let listed = move || {
        live.server
            .with(|s| s.ready().map(|s| s.models.clone()).unwrap_or_default())
    };
    view! {
        <fieldset class="part">
            <legend>"Base model"</legend>
            <p class="quiet">"What it starts from. The starter is here already; any Stable Diffusion 1.x or 2.x model works too, from the server's disk or from the Hugging Face Hub."</p>
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
            <ReferenceField prep live listed=Signal::derive(listed) />
            <VaeField prep />
        </fieldset>
    }
}

#[component]
fn ModelCard(model: ModelInfo, prep: Prep) -> impl IntoView {
    let reference = StoredValue::new(reference_of(&model));
    let chosen = move || {
        let (name, revision) = reference.get_value();
        prep.draft
            .with(|d| d.pretrained_model_name_or_path == name && d.revision == revision)
    };
    view! {
        <label class="model">
            <input
                type="radio"
                name="model"
                prop:checked=chosen
                on:change=move |_| prep.choose_model(reference.get_value())
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
            {model.hub.map(|facts| view! { <HubLine facts /> })}
        </span>
    }
}

/// A model on the server's disk or of the Hub, looked at before it is taken. Nothing large is downloaded for that.
#[component]
fn ReferenceField(prep: Prep, live: Live, listed: Signal<Vec<ModelInfo>>) -> impl IntoView {
    let is_listed = move |path: &str| listed.with(|all| all.iter().any(|m| m.pretrained_model_name_or_path == path));
    let chosen = prep.draft.with_untracked(|d| d.pretrained_model_name_or_path.clone());
    let reference = RwSignal::new(if chosen == app::recipe::STARTER {
        String::new()
    } else {
        chosen
    });
    let revision = RwSignal::new(prep.draft.with_untracked(|d| d.revision.clone()));
    let of_hub = Memo::new(move |_| reference.with(|text| recipe::may_be_hub_id(text)));
    let problem = Memo::new(move |_| {
        let got = revision.get().trim().to_owned();
        let wrong = of_hub.get() && !got.is_empty() && !recipe::is_revision(&got);
        wrong.then(|| RecipeProblem::NoRevision { got }.to_string())
    });
    let ask = move || {
        let reference = reference.get_untracked().trim().to_owned();
        if !reference.is_empty() && problem.get_untracked().is_none() {
            let revision = of_hub
                .get_untracked()
                .then(|| revision.get_untracked().trim().to_owned());
            prep.inspect(reference, revision.unwrap_or_default());
        }
    };
    let check = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        ask();
    };
    let needs_token = Memo::new(move |_| {
        prep.inspected
            .with(|asked| matches!(asked, Some(Fetched::Failed(trouble)) if asks_for_token(trouble)))
    });
    let has_token = move || live.server.with(|s| s.ready().is_some_and(|s| s.has_hub_token));
    let answer = move || match prep.inspected.get() {
        None => ().into_any(),
        Some(Fetched::Pending) => view! { <p class="quiet" role="status">"Reading the model."</p> }.into_any(),
        Some(Fetched::Failed(trouble)) => {
            view! { <Notice tone=Tone::Error>{format!("{trouble}.")}</Notice> }.into_any()
        }
        Some(Fetched::Ready(model)) if model.hub.is_none() && is_listed(&model.pretrained_model_name_or_path) => {
            ().into_any()
        }
        Some(Fetched::Ready(model)) => view! { <div class="models"><ModelCard model prep /></div> }.into_any(),
    };
    view! {
        <form class="field" on:submit=check>
            <label for="model-path">"Or another model"</label>
            <div class="field-row">
                <input
                    id="model-path"
                    type="text"
                    autocomplete="off"
                    spellcheck="false"
                    placeholder="stable-diffusion-v1-5/stable-diffusion-v1-5"
                    bind:value=reference
                />
                <Show when=move || of_hub.get()>
                    <input
                        id="revision"
                        class="revision"
                        type="text"
                        autocomplete="off"
                        spellcheck="false"
                        placeholder="main"
                        aria-label="Revision: a branch, tag or commit"
                        title="Revision: a branch, tag or commit"
                        aria-describedby="model-about"
                        bind:value=revision
                    />
                </Show>
                <button type="submit" class="button" disabled=move || reference.with(|r| r.trim().is_empty()) || problem.with(Option::is_some)>"Check"</button>
            </div>
            <p class="quiet" id="model-about">
                {move || problem.get().map(|words| view! { <span class="field-problem">{words}</span> })}
                "The path of a diffusers folder, .safetensors or .ckpt file on the machine that trains, or the name of a model on the Hugging Face Hub and, beside it, its branch, tag or commit. Its licence and size are shown before anything large is downloaded."
            </p>
        </form>
        {answer}
        <Show when=move || needs_token.get() || has_token()>
            <TokenField live on_saved=move || if needs_token.get_untracked() { ask() } />
        </Show>
    }
}

/// For samples and the finished checkpoint; empty keeps the model's own.
#[component]
fn VaeField(prep: Prep) -> impl IntoView {
    let vae = Signal::derive(move || prep.draft.with(|d| d.pretrained_vae_name_or_path.clone()));
    let problem = prep.problem("pretrained_vae_name_or_path");
    view! {
        <div class="field">
            <label for="vae">"Another VAE"</label>
            <div class="field-row">
                <input
                    id="vae"
                    type="text"
                    autocomplete="off"
                    spellcheck="false"
                    placeholder="The model's own"
                    prop:value=vae
                    aria-describedby="vae-about"
                    on:input=move |event| prep.draft.update(|d| d.pretrained_vae_name_or_path = event_target_value(&event))
                />
            </div>
            <p class="quiet" id="vae-about">
                {move || problem.get().map(|words| view! { <span class="field-problem">{words}</span> })}
                "The part that turns numbers into pixels, for samples and the checkpoint. A path, or a name on the Hub such as stabilityai/sd-vae-ft-mse."
            </p>
        </div>
    }
}
