use crate::net::live::Live;
use leptos::prelude::*;
#[component]
pub fn WatchPlace(live: Live) -> impl IntoView {
    let _ = live;
    view! { <h1>"Watch"</h1> }
}
