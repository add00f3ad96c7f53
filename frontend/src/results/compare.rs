//! The untrained model's sample beside the trained one's, from the same seed, with a slider between them.

use app::job::JobId;
use app::run::SampleShot;
use leptos::prelude::*;

use crate::net::live::Live;
use crate::watch::file_url;

#[component]
pub fn Compare(live: Live, job: JobId, step: Memo<u32>) -> impl IntoView {
    let job = StoredValue::new(job);
    let index = RwSignal::new(0_usize);
    let shots = Memo::new(move |_| {
        live.run
            .with(|run| run.samples.get(&step.get()).cloned().unwrap_or_default())
    });
    let shot = Memo::new(move |_| shots.with(|s| s.get(index.get().min(s.len().saturating_sub(1))).cloned()));
    let base = Memo::new(move |_| {
        let wanted = shot.with(|s| s.as_ref().map(|s| s.index))?;
        let untrained = live.run.with(|run| run.samples.get(&0).cloned())?;
        untrained.into_iter().find(|s| s.index == wanted)
    });
    let picks = move || shots.get().into_iter().enumerate().collect::<Vec<_>>();
    let url = move |shot: &SampleShot| file_url(&job.get_value(), &shot.file);
    let after = Signal::derive(move || shot.with(|s| s.as_ref().map(url)));
    let before = Signal::derive(move || base.with(|s| s.as_ref().map(url)).filter(|_| step.get() != 0));
    let caption = move || {
        shot.with(|s| {
            s.as_ref()
                .map(|s| format!("\u{201c}{}\u{201d}, seed {}", s.prompt, s.seed))
        })
    };
    view! {
        <Slider before after step />
        <p class="quiet round-prompt">{caption}</p>
        <div class="compare-picks" role="group" aria-label="Sample">
            <For each=picks key=|(_, shot)| shot.file.clone() let((at, shot))>
                <button type="button" class="compare-pick" aria-current=move || (index.get() == at).then_some("true") aria-label=format!("Sample {}", at + 1) on:click=move |_| index.set(at)>
                    <img src=file_url(&job.get_value(), &shot.preview) alt="" />
                </button>
            </For>
        </div>
    }
}

#[component]
fn Slider(before: Signal<Option<String>>, after: Signal<Option<String>>, step: Memo<u32>) -> impl IntoView {
    let split = RwSignal::new(50_u32);
    let both = Memo::new(move |_| before.with(Option::is_some));
    let after_name = move || match step.get() {
        0 => "Before training".to_owned(),
        step => format!("After step {step}"),
    };
    view! {
        <div class="compare" style:--split=move || format!("{}%", split.get())>
            <img class="compare-after" src=move || after.get().unwrap_or_default() alt=after_name />
            <Show when=move || both.get()>
                <img class="compare-before" src=move || before.get().unwrap_or_default() alt="The same seed before training" />
                <span class="compare-line" aria-hidden="true"></span>
                <span class="compare-name compare-name-before" aria-hidden="true">"Before training"</span>
                <input
                    type="range"
                    min="0"
                    max="100"
                    class="compare-handle"
                    aria-label="How much of the untrained picture is shown"
                    prop:value=move || split.get().to_string()
                    on:input=move |event| split.set(event_target_value(&event).parse().unwrap_or(50))
                />
            </Show>
            <span class="compare-name compare-name-after" aria-hidden="true">{after_name}</span>
        </div>
    }
}
