use crate::net::live::Live;
use crate::prep::Prep;
use leptos::prelude::*;
#[component]
pub fn SubjectPlace(live: Live, prep: Prep) -> impl IntoView {
    let _ = (live, prep);
    view! { <h1>"Subject"</h1> }
}
