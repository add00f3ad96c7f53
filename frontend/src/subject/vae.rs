//! Another VAE in the place of the base model's own: looked at before it is taken, like a model.

use app::api::VaeInfo;
use app::words;
use leptos::prelude::*;

use crate::net::http::{Fetched, Trouble};
use crate::prep::Prep;
use crate::ui::{Notice, Tone};

use super::hub::HubLine;

/// For samples and the finished checkpoint; empty keeps the model's own.
#[component]
pub fn VaeField(prep: Prep) -> impl IntoView {
    let vae = Signal::derive(move || prep.draft.with(|d| d.pretrained_vae_name_or_path.clone()));
    let problem = prep.vae_problem();
    let check = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        prep.inspect_vae();
    };
    view! {
        <form class="field" on:submit=check>
            <label for="vae">"Another VAE"</label>
            <div class="field-row">
                <input
                    id="vae"
                    type="text"
                    autocomplete="off"
                    autocapitalize="off"
                    spellcheck="false"
                    placeholder="The model's own"
                    prop:value=vae
                    aria-invalid=move || problem.with(Option::is_some).then_some("true")
                    aria-describedby="vae-about"
                    on:input=move |event| prep.type_vae(event_target_value(&event))
                />
                <button type="submit" class="button" disabled=move || vae.with(|text| text.trim().is_empty())>"Check"</button>
            </div>
            <p class="quiet" id="vae-about">
                {move || problem.get().map(|found| view! { <span class="field-problem" role="alert">{words::sentence(&found)}</span> })}
                "The part that turns numbers into pixels, for samples and the checkpoint. A path, or a name on the Hub such as stabilityai/sd-vae-ft-mse."
            </p>
        </form>
        {move || match prep.vae.get() {
            Some(Fetched::Pending) => view! { <p class="quiet" role="status">"Reading the VAE."</p> }.into_any(),
            Some(Fetched::Ready(vae)) => view! { <VaeFacts vae /> }.into_any(),
            // Said at the field.
            Some(Fetched::Failed(Trouble::Refused(_))) | None => ().into_any(),
            Some(Fetched::Failed(trouble)) => view! { <Notice tone=Tone::Error>{trouble.sentence()}</Notice> }.into_any(),
        }}
    }
}

#[component]
fn VaeFacts(vae: VaeInfo) -> impl IntoView {
    let parameters = format!("{} parameters", words::count(vae.parameters));
    view! {
        <div class="vae-facts" role="status">
            <span class="model-facts">
                <strong>{vae.pretrained_vae_name_or_path}</strong>
                <span class="figures">{parameters}</span>
                {vae.hub.map(|facts| view! { <HubLine facts /> })}
            </span>
        </div>
    }
}
