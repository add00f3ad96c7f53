use crate::net::live::Live;
use crate::prep::Prep;
use crate::studio::Studio;
use leptos::prelude::*;
#[component]
pub fn TrainPlace(live: Live, prep: Prep, studio: Studio) -> impl IntoView {
    let _ = (live, prep, studio.uploaded(), studio.blocked());
    view! { <h1>"Train"</h1> }
}
