//! The page: one flow in five places (photos, subject, train, watch, results) around one store of server truth.
#![forbid(unsafe_code)]

mod memory;
mod net;
mod place;
mod prep;
mod results;
mod shell;
mod studio;
mod subject;
mod train;
mod ui;
mod watch;

fn main() {
    console_error_panic_hook::set_once();
    if let Some(boot) = leptos::prelude::document().get_element_by_id("boot") {
        boot.remove();
    }
    leptos::mount::mount_to_body(shell::App);
}
