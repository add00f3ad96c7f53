//! Line drawings of the four kinds.

use app::preset::SubjectKind;
use leptos::prelude::*;

fn path(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Person => "M32 34a10 10 0 1 0 0-20 10 10 0 0 0 0 20zM14 54c1-10 8-15 18-15s17 5 18 15",
        SubjectKind::Animal => {
            "M20 26c-2-8-4-12-3-14 4 0 8 4 10 6 3-1 7-1 10 0 2-2 6-6 10-6 1 2-1 6-3 14 2 4 2 8 0 12-2 6-7 10-12 10s-10-4-12-10c-2-4-2-8 0-12zM27 31v1M37 31v1M29.500 39h5L32 42zM32 42v2"
        }
        SubjectKind::Object => {
            "M24 18c0-5 3-8 8-8s8 3 8 8M18 24c0-4 3-6 6-6h16c3 0 6 2 6 6v24c0 3-2 5-5 5H23c-3 0-5-2-5-5zM24 38h16v15M24 38v15M28 27h8"
        }
        SubjectKind::Style => {
            "M32 12c-12 0-20 8-20 19 0 10 8 17 18 17 4 0 4-3 3-5-2-4 0-7 4-7h6c6 0 9-3 9-8 0-9-9-16-20-16zM21 33v.2M23 24v.2M32 20v.2M41 24v.2"
        }
    }
}

#[component]
pub fn Drawing(kind: SubjectKind) -> impl IntoView {
    view! {
        <svg class="drawing" viewBox="0 0 64 64" aria-hidden="true" focusable="false">
            <path d=path(kind) />
        </svg>
    }
}
