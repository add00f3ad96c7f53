//! The page: one flow in five places (photos, subject, train, watch, results) around one store of server truth.
#![forbid(unsafe_code)]

mod memory;
mod net;
mod place;
mod prep;
mod results;
mod shell;
mod subject;
mod train;
mod ui;
mod watch;

/// Stands in until the real contact sheet is here.
mod studio {
    use leptos::prelude::*;

    /// The photos of the job being prepared. Owned by the shell, so that they outlive the place that shows them.
    #[derive(Clone, Copy)]
    pub struct Studio {
        /// The chosen model's resolution; crops follow it.
        _side_px: Signal<u32>,
    }

    impl Studio {
        pub fn new(side_px: Signal<u32>) -> Self {
            Self { _side_px: side_px }
        }

        /// The set in a few words, such as `9 photos, 2 look alike`; shown in the top bar.
        pub fn summary(self) -> Signal<String> {
            Signal::derive(|| "none yet".into())
        }

        /// Names (sha256) of the crops that are on the server, in order.
        pub fn uploaded(self) -> Signal<Vec<String>> {
            Signal::derive(Vec::new)
        }

        /// Why training cannot start with these photos, such as `add at least 3 photos`. `None`: it can.
        pub fn blocked(self) -> Signal<Option<String>> {
            Signal::derive(|| Some("add at least 3 photos".into()))
        }
    }

    #[component]
    pub fn PhotosPlace(studio: Studio) -> impl IntoView {
        let _ = studio;
        view! { <h1>"Photos"</h1> }
    }
}

fn main() {
    console_error_panic_hook::set_once();
    if let Some(boot) = leptos::prelude::document().get_element_by_id("boot") {
        boot.remove();
    }
    leptos::mount::mount_to_body(shell::App);
}
