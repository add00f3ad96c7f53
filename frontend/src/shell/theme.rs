//! Light, dark, or as the system has it.

use leptos::prelude::*;
use serde::{Deserialize, Serialize};

use crate::memory;
use crate::ui::{Icon, IconView};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Theme {
    #[default]
    System,
    Light,
    Dark,
}

impl Theme {
    fn attribute(self) -> Option<&'static str> {
        match self {
            Self::System => None,
            Self::Light => Some("light"),
            Self::Dark => Some("dark"),
        }
    }
}

fn system_is_dark() -> bool {
    let query = window().match_media("(prefers-color-scheme: dark)");
    query.ok().flatten().is_some_and(|query| query.matches())
}

#[component]
pub fn ThemeToggle() -> impl IntoView {
    let theme: RwSignal<Theme> = memory::remembered("likeness.theme");
    Effect::new(move |_| {
        let Some(root) = document().document_element() else {
            return;
        };
        let _only_fails_on_bad_names = match theme.get().attribute() {
            Some(name) => root.set_attribute("data-theme", name),
            None => root.remove_attribute("data-theme"),
        };
    });
    let is_dark = move || match theme.get() {
        Theme::System => system_is_dark(),
        chosen => chosen == Theme::Dark,
    };
    // Going back to what the system has is going back to following it.
    let toggle = move |_| {
        let wanted_dark = !is_dark();
        theme.set(match (wanted_dark, system_is_dark()) {
            (dark, system) if dark == system => Theme::System,
            (true, _) => Theme::Dark,
            (false, _) => Theme::Light,
        });
    };
    let label = move || {
        if is_dark() {
            "Use the light theme"
        } else {
            "Use the dark theme"
        }
    };
    view! {
        <button type="button" class="button button-icon" title=label aria-label=label on:click=toggle>
            <IconView icon=Icon::Theme />
        </button>
    }
}
