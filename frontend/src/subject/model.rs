//! The base model: one the server lists, a path on the server, or a model of the Hub.

use app::api::ModelInfo;
use app::recipe::{self, RecipeProblem};
use app::words;
use leptos::prelude::*;

use crate::net::http::Fetched;
use crate::net::live::Live;
use crate::prep::{Prep, reference_of};
use crate::ui::{Notice, Tone};

use super::hub::{HubLine, Token};
use super::vae::VaeField;

#[component]
pub fn ModelChoice(prep: Prep, live: Live) -> impl IntoView {
    let listed = move || {
        live.server
            .with(|s| s.ready().map(|s| s.models.clone()).unwrap_or_default())
    };
    let typed = TypedReference::new(prep);
    // Before the Hub asks for it, wherever something of the Hub is named.
    let offers_token = move || {
        let has_token = live.server.with(|s| s.ready().is_some_and(|s| s.has_hub_token));
        let vae_of_hub = || {
            prep.draft
                .with(|d| recipe::may_be_hub_id(&d.pretrained_vae_name_or_path))
        };
        has_token || typed.of_hub.get() || vae_of_hub() || prep.needs_token()
    };
    let ask_again = move || {
        if untrack(|| prep.model_needs_token()) {
            typed.ask(prep);
        }
        if untrack(|| prep.vae_needs_token()) {
            prep.inspect_vae();
        }
    };
    view! {
        <fieldset class="part">
            <legend>"Base model"</legend>
            <p class="quiet">"What it starts from. The starter is here already; any Stable Diffusion 1.x or 2.x model works too, from the server's disk or from the Hugging Face Hub."</p>
            {move || match live.server.get() {
                Fetched::Pending => Some(view! { <div class="skeleton skeleton-line" aria-label="Asking the server for its models"></div> }.into_any()),
                Fetched::Failed(trouble) => Some(view! { <Notice tone=Tone::Error>{trouble.sentence()}</Notice> }.into_any()),
                Fetched::Ready(_) => None,
            }}
            <div class="models">
                <For each=listed key=|model| model.pretrained_model_name_or_path.clone() let:model>
                    <ModelCard model prep />
                </For>
            </div>
            <ReferenceField prep typed listed=Signal::derive(listed) />
            <VaeField prep />
            <Show when=offers_token>
                <Token live needed=Signal::derive(move || prep.needs_token()) on_saved=ask_again />
            </Show>
        </fieldset>
    }
}

/// A model's name or path as it is typed, and its revision where the Hub has it.
#[derive(Clone, Copy)]
struct TypedReference {
    reference: RwSignal<String>,
    revision: RwSignal<String>,
    of_hub: Memo<bool>,
    problem: Memo<Option<String>>,
}

impl TypedReference {
    fn new(prep: Prep) -> Self {
        let chosen = prep.draft.with_untracked(|d| d.pretrained_model_name_or_path.clone());
        let of_starter = chosen == recipe::STARTER;
        let reference = RwSignal::new(if of_starter { String::new() } else { chosen });
        let revision = RwSignal::new(prep.draft.with_untracked(|d| d.revision.clone()));
        let of_hub = Memo::new(move |_| reference.with(|text| recipe::may_be_hub_id(text)));
        let problem = Memo::new(move |_| {
            let got = revision.get().trim().to_owned();
            let wrong = of_hub.get() && !got.is_empty() && !recipe::is_revision(&got);
            wrong.then(|| RecipeProblem::NoRevision { got }.to_string())
        });
        Self {
            reference,
            revision,
            of_hub,
            problem,
        }
    }

    /// Asks the server what it is, unless it cannot be anything.
    fn ask(self, prep: Prep) {
        let reference = self.reference.get_untracked().trim().to_owned();
        if reference.is_empty() || self.problem.get_untracked().is_some() {
            return;
        }
        let of_hub = self.of_hub.get_untracked();
        let revision = of_hub.then(|| self.revision.get_untracked().trim().to_owned());
        prep.inspect(reference, revision.unwrap_or_default());
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
fn ReferenceField(prep: Prep, typed: TypedReference, listed: Signal<Vec<ModelInfo>>) -> impl IntoView {
    let is_listed = move |path: &str| listed.with(|all| all.iter().any(|m| m.pretrained_model_name_or_path == path));
    let TypedReference {
        reference,
        revision,
        of_hub,
        problem,
    } = typed;
    let check = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        typed.ask(prep);
    };
    let answer = move || match prep.inspected.get() {
        None => ().into_any(),
        Some(Fetched::Pending) => view! { <p class="quiet" role="status">"Reading the model."</p> }.into_any(),
        Some(Fetched::Failed(trouble)) => view! { <Notice tone=Tone::Error>{trouble.sentence()}</Notice> }.into_any(),
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
    }
}
