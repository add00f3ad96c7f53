//! Who or what is learned: its kind, two words, the prompts they make, and the base model.

mod drawings;
mod hub;
mod model;
mod vae;

use app::preset::SubjectKind;
use app::recipe;
use leptos::prelude::*;

use crate::net::live::Live;
use crate::place::Place;
use crate::prep::Prep;
use drawings::Drawing;
use model::ModelChoice;

#[component]
pub fn SubjectPlace(prep: Prep, live: Live) -> impl IntoView {
    view! {
        <div class="place">
            <h1>"Subject"</h1>
            <p class="lede">"Two words name what your photos show. With them you ask for it later."</p>
            <Sentence prep />
            <Kinds prep />
            <Prompts prep />
            <ModelChoice prep live />
            <p class="onward"><a class="button button-strong" href=Place::Train.hash()>"Next: Train"</a></p>
        </div>
    }
}

/// The prompt as it will be used, with the two words to fill in.
#[component]
fn Sentence(prep: Prep) -> impl IntoView {
    let word = move |id: &'static str,
                     label: &'static str,
                     value: Signal<String>,
                     set: fn(&mut app::draft::JobDraft, String)| {
        let problem = prep.problem(id);
        let size = move || value.with(|text| text.chars().count()).clamp(3, 16).to_string();
        view! {
            <span class="word">
                <input
                    id=id
                    type="text"
                    size=size
                    autocomplete="off"
                    autocapitalize="off"
                    spellcheck="false"
                    prop:value=value
                    aria-invalid=move || problem.with(Option::is_some).then_some("true")
                    aria-describedby=format!("{id}-about")
                    on:input=move |event| prep.draft.update(|draft| set(draft, event_target_value(&event)))
                />
                <label for=id>{label}</label>
                <span class="field-problem" id=format!("{id}-about")>{problem}</span>
            </span>
        }
    };
    let token = Signal::derive(move || prep.draft.with(|d| d.token.clone()));
    let noun = Signal::derive(move || prep.draft.with(|d| d.class_noun.clone()));
    view! {
        <div class="sentence">
            <span class="sentence-start">"photo of"</span>
            {word("token", "its own word: rare, so that it means nothing else yet", token, |d, text| d.token = text)}
            {word("class_noun", "what it is, in a plain word", noun, |d, text| d.class_noun = text)}
        </div>
    }
}

#[component]
fn Kinds(prep: Prep) -> impl IntoView {
    let chosen = Memo::new(move |_| prep.draft.with(|d| d.kind));
    let kind = move |kind: SubjectKind| {
        view! {
            <label class="kind">
                <input
                    type="radio"
                    name="kind"
                    prop:checked=move || chosen.get() == kind
                    on:change=move |_| prep.draft.update(|draft| draft.set_kind(kind))
                />
                <Drawing kind />
                <span>{kind.title()}</span>
            </label>
        }
    };
    view! {
        <fieldset class="part">
            <legend>"What kind of subject"</legend>
            <div class="kinds">{SubjectKind::ALL.map(kind).collect_view()}</div>
            <p class="quiet">{move || chosen.get().effect()}</p>
        </fieldset>
    }
}

#[component]
fn Prompts(prep: Prep) -> impl IntoView {
    let instance = Signal::derive(move || prep.draft.with(|d| d.instance_prompt()));
    let class = Signal::derive(move || prep.draft.with(|d| d.class_prompt()));
    let prior = Signal::derive(move || prep.plan.with(|plan| plan.recipe.prior.is_some()));
    let (token, noun) = (prep.problem("token"), prep.problem("class_noun"));
    let word_missing = Signal::derive(move || token.with(Option::is_some) || noun.with(Option::is_some));
    let with_words = move |make: fn(&app::draft::JobDraft) -> String| prep.draft.with(make);
    view! {
        <fieldset class="part">
            <legend>"The prompts, as they will be used"</legend>
            <Prompt
                name="instance_prompt"
                label="Your photos are captioned"
                value=instance
                follows=Signal::derive(move || with_words(|d| recipe::instance_prompt(&d.token, &d.class_noun)))
                problem=prep.problem("concepts.0.instance_prompt")
                edit=move |text| prep.draft.update(|d| d.instance_prompt = text)
                about=Signal::derive(move || if word_missing.get() {
                    "It is whole when both words are there.".into()
                } else {
                    format!("Use it in your prompts later, and build on it: “{}, in a garden”.", instance.get())
                })
            />
            <Show when=move || prior.get() fallback=|| view! { <p class="quiet">"Without prior preservation there are no pictures of the kind, and no caption for them."</p> }>
                <Prompt
                    name="class_prompt"
                    label="Pictures of its kind are captioned"
                    value=class
                    follows=Signal::derive(move || with_words(|d| recipe::class_prompt(&d.class_noun)))
                    problem=prep.problem("concepts.0.class_prompt")
                    edit=move |text| prep.draft.update(|d| d.class_prompt = text)
                    about=Signal::stored("The base model draws these, so that it does not forget what others of the kind look like.".to_owned())
                />
            </Show>
        </fieldset>
    }
}

/// A prompt that follows the two words until it is edited.
#[component]
fn Prompt(
    name: &'static str,
    label: &'static str,
    value: Signal<String>,
    follows: Signal<String>,
    problem: Signal<Option<String>>,
    edit: impl Fn(Option<String>) + Copy + Send + Sync + 'static,
    about: Signal<String>,
) -> impl IntoView {
    let edited = move || value.get() != follows.get();
    view! {
        <div class="field">
            <label for=name>{label}</label>
            <div class="field-row">
                <input
                    id=name
                    type="text"
                    autocomplete="off"
                    prop:value=value
                    aria-invalid=move || problem.with(Option::is_some).then_some("true")
                    aria-describedby=format!("{name}-about")
                    on:input=move |event| {
                        let text = event_target_value(&event);
                        edit((text != follows.get_untracked()).then_some(text));
                    }
                />
                <Show when=edited>
                    <button type="button" class="button button-quiet" on:click=move |_| edit(None)>"Reset"</button>
                </Show>
            </div>
            <p class="quiet" id=format!("{name}-about")>
                {move || match problem.get() {
                    Some(words) => view! { <span class="field-problem">{words}</span> }.into_any(),
                    None => about.get().into_any(),
                }}
            </p>
        </div>
    }
}
