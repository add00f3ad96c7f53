//! The expert view: every setting by the tutorial's own name, with our default and the tutorial's value beside it.

use app::settings::{self, Group, SETTINGS, Setting, SettingKind};
use leptos::prelude::*;

use crate::memory;
use crate::prep::Prep;

#[component]
pub fn AllSettings(prep: Prep) -> impl IntoView {
    let open: RwSignal<bool> = memory::remembered("likeness.all_settings");
    let search = RwSignal::new(String::new());
    let only_changed = RwSignal::new(false);
    let changed = Memo::new(move |_| prep.draft.with(|d| d.typed.len()));
    let reset_all = move |_| prep.draft.update(|draft| draft.typed.clear());
    // A problem must never hide behind a closed door.
    let shown = move || {
        open.get()
            || prep
                .plan
                .with(|plan| plan.problems.keys().any(|f| settings::find(f).is_some()))
    };
    view! {
        <section class="part all-settings">
            <h2>
                <button type="button" class="disclosure" aria-expanded=move || shown().to_string() aria-controls="settings-list" on:click=move |_| open.update(|o| *o = !*o)>
                    "All settings"
                    <span class="quiet">{move || match changed.get() { 0 => String::new(), n => format!("{n} changed") }}</span>
                </button>
            </h2>
            <div id="settings-list" hidden=move || !shown()>
                <div class="settings-tools">
                    <input type="search" aria-label="Search the settings" placeholder="Search, such as learning" bind:value=search />
                    <label class="with-box"><input type="checkbox" bind:checked=only_changed />"Only changed"</label>
                    <button type="button" class="button button-quiet" disabled=move || changed.get() == 0 on:click=reset_all>"Reset all"</button>
                </div>
                {Group::ALL.map(|group| view! { <SettingGroup group prep search only_changed /> }).collect_view()}
            </div>
        </section>
    }
}

#[component]
fn SettingGroup(group: Group, prep: Prep, search: RwSignal<String>, only_changed: RwSignal<bool>) -> impl IntoView {
    let found = Memo::new(move |_| {
        let wanted = search.get().trim().to_lowercase().replace(' ', "_");
        let in_words = wanted.replace('_', " ");
        let fits = |s: &&Setting| {
            s.group == group
                && (s.name.contains(&wanted) || s.help.to_lowercase().contains(&in_words))
                && (!only_changed.get() || prep.draft.with(|d| d.typed.contains_key(s.path)))
        };
        SETTINGS.iter().filter(fits).map(|s| s.path).collect::<Vec<_>>()
    });
    let lines = move || found.get().into_iter().filter_map(settings::find).collect::<Vec<_>>();
    view! {
        <Show when=move || found.with(|f| !f.is_empty())>
            <h3>{group.title()}</h3>
            <For each=lines key=|setting| setting.path let:setting>
                <SettingLine setting prep />
            </For>
        </Show>
    }
}

#[component]
fn SettingLine(setting: &'static Setting, prep: Prep) -> impl IntoView {
    let path = setting.path;
    let default = Memo::new(move |_| prep.plan.with(|plan| settings::value(&plan.defaults, setting)));
    let value = Memo::new(move |_| {
        let typed = prep.draft.with(|d| d.typed.get(path).cloned());
        typed.unwrap_or_else(|| default.get())
    });
    let changed = Memo::new(move |_| prep.draft.with(|d| d.typed.contains_key(path)));
    let without_prior = move || path.starts_with("prior.") && prep.plan.with(|plan| plan.recipe.prior.is_none());
    let problem = prep.problem(path);
    let said = |text: &str| {
        if text.is_empty() {
            "empty".to_owned()
        } else {
            text.to_owned()
        }
    };
    let defaults = move || format!("ours {}, tutorial {}", said(&default.get()), said(setting.tutorial));
    view! {
        <div class="setting" class:changed=changed>
            <label for=path class="setting-name">{setting.name}</label>
            <div class="setting-field">
                <SettingInput setting value problem disabled=Signal::derive(without_prior) set=move |text| prep.type_setting(path, text) />
                <Show when=move || changed.get()>
                    <button type="button" class="button button-quiet" aria-label=format!("Reset {}", setting.name) on:click=move |_| prep.type_setting(path, default.get_untracked())>"Reset"</button>
                </Show>
            </div>
            <p class="setting-about" id=format!("{path}-about")>
                {move || problem.get().map(|words| view! { <span class="field-problem">{words}</span> })}
                <span>{setting.help}</span>
                <span class="figures">{defaults}</span>
            </p>
        </div>
    }
}

#[component]
fn SettingInput(
    setting: &'static Setting,
    value: Memo<String>,
    problem: Signal<Option<String>>,
    disabled: Signal<bool>,
    set: impl Fn(String) + Copy + Send + 'static,
) -> impl IntoView {
    let id = setting.path;
    let about = format!("{id}-about");
    let invalid = move || problem.with(Option::is_some).then_some("true");
    match setting.kind {
        SettingKind::Switch => view! {
            <input id=id type="checkbox" role="switch" class="switch" aria-describedby=about disabled=disabled
                prop:checked=move || value.get() == "on"
                on:change=move |event| set(if event_target_checked(&event) { "on" } else { "off" }.into()) />
        }
        .into_any(),
        SettingKind::Choice(choices) => view! {
            <select id=id aria-describedby=about disabled=disabled prop:value=value on:change=move |event| set(event_target_value(&event))>
                {choices.iter().map(|choice| view! { <option value=*choice selected=move || value.get() == *choice>{*choice}</option> }).collect_view()}
            </select>
        }
        .into_any(),
        kind => {
            let is_text = kind == SettingKind::Text;
            view! {
                <input id=id type="text" autocomplete="off" class:figure-field=!is_text disabled=disabled
                    inputmode=if matches!(kind, SettingKind::Whole { .. }) { "numeric" } else { "text" }
                    aria-describedby=about aria-invalid=invalid
                    prop:value=value on:input=move |event| set(event_target_value(&event)) />
            }
            .into_any()
        }
    }
}
