//! The meters of a run: how like the photos its samples are, and how far its kind has drifted, round by round.

use app::event::Overfit;
use app::job::JobId;
use app::meters;
use app::run::Reading;
use app::words;
use leptos::prelude::*;

use crate::net::live::Live;

use super::file_url;

/// The drawing's own units; it is stretched to the room there is.
const WIDTH: f64 = 100.0;
const HEIGHT: f64 = 40.0;

/// A curve through the rounds, values outside 0 to 1 at the edge.
fn path(readings: &[(u32, f32)], steps: u32) -> String {
    let mut path = String::new();
    for (i, (step, value)) in readings.iter().enumerate() {
        let command = if i == 0 { 'M' } else { 'L' };
        let (x, y) = place(*step, *value, steps);
        path.push_str(&format!("{command}{x:.2} {y:.2}"));
    }
    path
}

fn place(step: u32, value: f32, steps: u32) -> (f64, f64) {
    let x = f64::from(step) / f64::from(steps.max(1)) * WIDTH;
    (x.min(WIDTH), (1.0 - f64::from(value.clamp(0.0, 1.0))) * HEIGHT)
}

#[component]
pub fn Meters(live: Live) -> impl IntoView {
    let readings = Memo::new(move |_| live.run.with(|run| run.readings.clone()));
    let steps = Memo::new(move |_| live.run.with(|run| run.steps));
    let newest = move |pick: fn(&Reading) -> Option<f32>| {
        move || {
            let value = readings.with(|all| all.last_key_value().and_then(|(_, reading)| pick(reading)));
            value.map(|value| format!("{:.2}", value.max(0.0)))
        }
    };
    let likeness = newest(|r| Some(r.likeness));
    let drift = newest(|r| r.drift);
    let by_heart = newest(|r| r.overfit.map(Overfit::share));
    let curve = move |pick: fn(&Reading) -> Option<f32>| {
        move || {
            let points = readings.with(|all| {
                let point = |(step, reading): (&u32, &Reading)| Some((*step, pick(reading)?));
                all.iter().filter_map(point).collect::<Vec<_>>()
            });
            path(&points, steps.get())
        }
    };
    let words = Memo::new(move |_| readings.with(meters::sentence));
    view! {
        <Show when=move || readings.with(|all| !all.is_empty())>
            <figure class="chart meters-chart">
                <figcaption>
                    <span class="chart-name">"Likeness"</span>
                    <span class="key key-instance">"like your photos " <b class="figures">{likeness}</b></span>
                    <Show when=move || drift().is_some()>
                        <span class="key key-class">"its kind drifted " <b class="figures">{drift}</b></span>
                    </Show>
                    <Show when=move || by_heart().is_some()>
                        <span class="key key-heart">"learned by heart " <b class="figures">{by_heart}</b></span>
                    </Show>
                </figcaption>
                <svg viewBox=format!("0 0 {WIDTH} {HEIGHT}") preserveAspectRatio="none" role="img" aria-label=move || words.get()>
                    {[0.0, 0.5, 1.0].map(|share| view! { <line class="grid" x1="0" x2=WIDTH y1=share * HEIGHT y2=share * HEIGHT /> }).collect_view()}
                    <path class="curve class" d=curve(|r| r.drift) />
                    <path class="curve heart" d=curve(|r| r.overfit.map(Overfit::share)) />
                    <path class="curve instance" d=curve(|r| Some(r.likeness)) />
                </svg>
                <p class="meters-words">{move || words.get()}</p>
            </figure>
        </Show>
    }
}

/// The photo that is not trained on.
#[component]
pub fn HeldOut(live: Live, job: JobId) -> impl IntoView {
    let photo = Memo::new(move |_| live.run.with(|run| run.held_out.clone()));
    move || {
        photo.get().map(|file| {
            view! {
                <div class="held-out">
                    <img src=file_url(&job, &file) alt=words::photo_of(&file) />
                    <p class="quiet">{words::photo_of(&file)}" is held out: it is not trained on, and shows when the others are learned by heart."</p>
                </div>
            }
        })
    }
}
