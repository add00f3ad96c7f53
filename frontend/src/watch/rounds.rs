//! Rounds of samples: one large, all of them as a strip.

use app::job::JobId;
use app::meters;
use app::run::SampleShot;
use leptos::prelude::*;

use crate::net::live::Live;
use crate::shell::while_shown;

/// A file of a job by its path in the events.
pub fn file_url(job: &JobId, file: &str) -> String {
    format!("/api/jobs/{job}/files/{file}")
}

/// The preview that came over the live connection, else the one by URL.
fn preview_url(live: Live, job: &JobId, step: u32, shot: &SampleShot) -> String {
    let sent = live.previews.with_untracked(|p| p.get(&(step, shot.index)).cloned());
    sent.unwrap_or_else(|| file_url(job, &shot.preview))
}

/// Arrow keys go through the rounds.
pub fn arrow_keys(steps: Memo<Vec<u32>>, shown: Memo<u32>, choose: impl Fn(u32) + Copy + 'static) {
    while_shown(move |event| {
        let by = match event.key().as_str() {
            "ArrowLeft" => -1,
            "ArrowRight" => 1,
            _ => return,
        };
        let next = steps.with_untracked(|steps| {
            let at = steps.iter().position(|s| *s == shown.get_untracked())?;
            steps.get(at.checked_add_signed(by)?).copied()
        });
        if let Some(step) = next {
            event.prevent_default();
            choose(step);
        }
    });
}

/// The samples of one step, large.
#[component]
pub fn Round(live: Live, job: JobId, step: Memo<u32>) -> impl IntoView {
    let job = StoredValue::new(job);
    let shots = Memo::new(move |_| {
        let step = step.get();
        let shots = live.run.with(|run| run.samples.get(&step).cloned().unwrap_or_default());
        shots.into_iter().map(|shot| (step, shot)).collect::<Vec<_>>()
    });
    let prompt = move || shots.with(|s| s.first().map(|(_, shot)| shot.prompt.clone()));
    view! {
        <div class="round" data-count=move || shots.with(Vec::len).to_string()>
            <For each=move || shots.get() key=|(step, shot)| (*step, shot.index, shot.file.clone()) let((step, shot))>
                <Shot live job=job.get_value() step shot />
            </For>
        </div>
        <p class="quiet round-prompt">{move || prompt().map(|p| format!("\u{201c}{p}\u{201d}"))}</p>
    }
}

/// One sample: its preview at once, developing; the full picture over it as soon as it is here.
#[component]
fn Shot(live: Live, job: JobId, step: u32, shot: SampleShot) -> impl IntoView {
    let loaded = RwSignal::new(false);
    let preview = preview_url(live, &job, step, &shot);
    let full = file_url(&job, &shot.file);
    let href = full.clone();
    let alt = match step {
        0 => format!("Sample {} before training", shot.index + 1),
        _ => format!("Sample {} after step {step}", shot.index + 1),
    };
    let about = format!("Seed {}, {} \u{d7} {}", shot.seed, shot.width, shot.height);
    view! {
        <a class="shot develop" href=href target="_blank" rel="noopener" title=about>
            <img class="shot-preview" src=preview alt="" />
            <img class="shot-full" class:shot-loaded=loaded src=full alt=alt on:load=move |_| loaded.set(true) />
        </a>
    }
}

/// One small picture for each round, oldest first.
#[component]
pub fn RoundStrip(
    live: Live,
    job: JobId,
    steps: Memo<Vec<u32>>,
    shown: Memo<u32>,
    choose: impl Fn(u32) + Copy + Send + Sync + 'static,
) -> impl IntoView {
    let job = StoredValue::new(job);
    let first = move |step: u32| {
        live.run
            .with_untracked(|run| run.samples.get(&step).and_then(|shots| shots.first().cloned()))
    };
    let best = Memo::new(move |_| live.run.with(|run| meters::best(&run.readings)));
    view! {
        <ol class="strip" aria-label="Rounds of samples">
            <For each=move || steps.get() key=|step| *step let:step>
                <li>
                    <button type="button" class="strip-round" aria-current=move || (shown.get() == step).then_some("true") on:click=move |_| choose(step)>
                        {first(step).map(|shot| view! { <img class="develop" src=preview_url(live, &job.get_value(), step, &shot) alt="" /> })}
                        <span class="figures"><span class="spoken">"Step "</span>{step}</span>
                        <Show when=move || best.get() == Some(step)>
                            <span class="strip-best" title="Most like your photos while its kind is still itself and they are not learned by heart">"best"</span>
                        </Show>
                    </button>
                </li>
            </For>
        </ol>
    }
}
