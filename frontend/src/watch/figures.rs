//! Step, speed, time: the figures beside the curve.

use app::event::Phase;
use app::job::JobState;
use app::words;
use leptos::prelude::*;

use crate::net::live::Live;

/// The time, each second, while shown.
fn clock() -> ReadSignal<f64> {
    let (now, set_now) = signal(js_sys::Date::now());
    let ticking = set_interval_with_handle(
        move || set_now.set(js_sys::Date::now()),
        std::time::Duration::from_secs(1),
    );
    if let Ok(handle) = ticking {
        on_cleanup(move || handle.clear());
    }
    now
}

fn phase_name(phase: Option<Phase>) -> &'static str {
    match phase {
        None => "starting",
        Some(Phase::Loading) => "reading the model",
        Some(Phase::ClassImages) => "class images",
        Some(Phase::CachingLatents) => "preparing photos",
        Some(Phase::Training) => "training",
        Some(Phase::Sampling) => "drawing samples",
        Some(Phase::Exporting) => "writing checkpoints",
    }
}

#[component]
pub fn Figures(live: Live) -> impl IntoView {
    let now = clock();
    let phase = move || match live.state() {
        JobState::Queued => "waiting".to_owned(),
        JobState::Running => phase_name(live.run.with(|run| run.phase)).to_owned(),
        JobState::Stopping => "stopping".into(),
        JobState::Done => "done".into(),
        JobState::Stopped => "stopped".into(),
        JobState::Failed { .. } => "failed".into(),
    };
    let step = move || {
        live.run.with(|run| match run.steps {
            0 => "\u{2013}".into(),
            steps => format!("{} of {steps}", run.step()),
        })
    };
    let rate = move || {
        live.run
            .with(|run| run.points.last().map(|p| words::small(p.learning_rate)))
    };
    let speed = move || live.run.with(|run| run.ms_per_step().map(words::speed));
    let over = Memo::new(move |_| live.state().is_over());
    let left = move || match over.get() {
        true => None,
        false => live
            .run
            .with(|run| run.remaining_ms().map(|ms| words::duration(f64::from(ms)))),
    };
    let elapsed = move || {
        let (from, last) = live.run.with(|run| (run.started_ms, run.last_ms));
        let until = if over.get() { last as f64 } else { now.get() };
        // The server's clock may be a little ahead of this one.
        from.map(|from| words::duration((until - from as f64).max(0.0)))
    };
    let trained = move || {
        live.run.with(|run| match run.trained_parameters {
            0 => None,
            n => Some(format!("{} parameters", words::count(n))),
        })
    };
    let left_out = Memo::new(move |_| live.run.with(|run| run.skipped_updates));
    let device = move || live.run.with(|run| run.device.clone());
    let memory = move || live.run.with(|run| run.memory.as_ref().map(words::memory_plan));
    let saved = move || live.run.with(|run| run.saved_step.map(|step| format!("step {step}")));
    let line = |name: &'static str, figure: Signal<Option<String>>| {
        view! { <div><dt>{name}</dt><dd>{move || figure.get().unwrap_or_else(|| "\u{2013}".into())}</dd></div> }
    };
    view! {
        <dl class="meters">
            {line("Phase", Signal::derive(move || Some(phase())))}
            {line("Step", Signal::derive(move || Some(step())))}
            {line("Time left", Signal::derive(left))}
            {line("Elapsed", Signal::derive(elapsed))}
            {line("Speed", Signal::derive(speed))}
            {line("Learning rate", Signal::derive(rate))}
            {line("Trained", Signal::derive(trained))}
            {line("Safe up to", Signal::derive(saved))}
            <Show when=move || left_out.get() != 0>
                {line("Updates left out", Signal::derive(move || Some(format!("{} that overflowed", left_out.get()))))}
            </Show>
            {line("Device", Signal::derive(device))}
            {line("Memory", Signal::derive(memory))}
        </dl>
    }
}
