//! The Hub: what its models cost to have, and the token that some ask for.

use app::api::{HubFacts, HubToken};
use app::words;
use leptos::prelude::*;
use leptos::task::spawn_local;

use crate::net::http::{self, Trouble};
use crate::net::live::Live;
use crate::ui::{Announcer, Notice, Tone};

/// Licence and size, before anything is downloaded.
#[component]
pub fn HubLine(facts: HubFacts) -> impl IntoView {
    let size = words::download(&facts);
    let license = match facts.license {
        Some(license) => format!("Licence: {license}."),
        None => "Its card names no licence.".into(),
    };
    view! {
        <span class="figures">{size}</span>
        <span class="quiet">
            {license}" "
            <a href=facts.card target="_blank" rel="noreferrer">"Read its card"</a>
        </span>
    }
}

/// The token, folded away until the Hub asks for it.
#[component]
pub fn Token(live: Live, needed: Signal<bool>, on_saved: impl Fn() + Copy + Send + Sync + 'static) -> impl IntoView {
    let known = Memo::new(move |_| live.server.with(|s| s.ready().is_some_and(|s| s.has_hub_token)));
    let state = move || match (known.get(), needed.get()) {
        (true, _) => "kept on the server",
        (false, true) => "asked for",
        (false, false) => "only some models ask for one",
    };
    view! {
        <details class="token" prop:open=needed>
            <summary class="disclosure">"Token for the Hub"<span class="quiet">{state}</span></summary>
            <TokenField live known on_saved />
        </details>
    }
}

/// Enters, replaces or forgets the token. It goes to the server and never comes back.
#[component]
fn TokenField(live: Live, known: Memo<bool>, on_saved: impl Fn() + Copy + Send + Sync + 'static) -> impl IntoView {
    let announcer = expect_context::<Announcer>();
    let text = RwSignal::new(String::new());
    let sending = RwSignal::new(false);
    let trouble = RwSignal::new(None::<Trouble>);
    let ended = move |answer: Result<(), Trouble>, said: &'static str| {
        sending.set(false);
        match answer {
            Ok(()) => {
                text.set(String::new());
                trouble.set(None);
                announcer.say(said);
                live.refresh_server();
                on_saved();
            }
            Err(error) => trouble.set(Some(error)),
        }
    };
    let save = move |event: leptos::ev::SubmitEvent| {
        event.prevent_default();
        let token = text.get_untracked();
        sending.set(true);
        spawn_local(async move {
            ended(
                http::put("/api/hub/token", &HubToken { token }).await,
                "The token is saved.",
            )
        });
    };
    let forget = move |_| {
        sending.set(true);
        spawn_local(async move { ended(http::delete("/api/hub/token").await, "The token is forgotten.") });
    };
    view! {
        <form class="field" on:submit=save>
            <div class="field-row">
                <input
                    id="hub-token"
                    aria-label="Token for the Hub"
                    type="password"
                    autocomplete="off"
                    spellcheck="false"
                    placeholder=move || if known.get() { "A token is kept; enter another to replace it" } else { "hf_" }
                    aria-describedby="hub-token-about"
                    bind:value=text
                />
                <button type="submit" class="button" disabled=move || sending.get() || text.with(|t| t.trim().is_empty())>"Save"</button>
                <Show when=move || known.get()>
                    <button type="button" class="button button-quiet" disabled=sending on:click=forget>"Forget"</button>
                </Show>
            </div>
            <p class="quiet" id="hub-token-about">
                "Some models ask you to agree to their licence first; the token shows that you did. It stays on the server, in a file that only it reads: in no recipe, event or log."
            </p>
        </form>
        {move || trouble.get().map(|trouble| view! { <Notice tone=Tone::Error>{trouble.sentence()}</Notice> })}
    }
}
