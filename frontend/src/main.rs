//! The page: one flow in five places (photos, subject, train, watch, results) around one store of server truth.
#![forbid(unsafe_code)]

use leptos::prelude::*;

/// Stands in until the real contact sheet is here.
mod studio {
    use leptos::prelude::*;

    /// The photos of the job being prepared. Owned by the shell, so that they outlive the place that shows them.
    #[derive(Clone, Copy)]
    pub struct Studio {
        _side_px: Signal<u32>,
    }

    impl Studio {
        /// `side_px`: the chosen model's resolution; crops follow it.
        pub fn new(side_px: Signal<u32>) -> Self {
            Self { _side_px: side_px }
        }
    }

    #[component]
    pub fn PhotosPlace(studio: Studio) -> impl IntoView {
        let _ = studio;
        view! { <p>"Photos"</p> }
    }
}

use studio::{PhotosPlace, Studio};

#[component]
fn App() -> impl IntoView {
    let studio = Studio::new(Signal::derive(|| 512));
    view! {
        <main>
            <PhotosPlace studio />
        </main>
    }
}

fn main() {
    console_error_panic_hook::set_once();
    if let Some(boot) = document().get_element_by_id("boot") {
        boot.remove();
    }
    leptos::mount::mount_to_body(App);
}
