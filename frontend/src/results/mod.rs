use crate::net::live::Live;
use crate::prep::Prep;
use leptos::prelude::*;
#[component]
pub fn ResultsPlace(live: Live, prep: Prep) -> impl IntoView {
    let _ = (live, prep);
    view! { <h1>"Results"</h1> }
}
