//! The whole plan in a sentence, what is missing, and Start.

mod all_settings;

use app::job::JobState;
use app::words;
use leptos::prelude::*;
use leptos::task::spawn_local;

use crate::net::http::Trouble;
use crate::net::live::{Link, Live};
use crate::place::{self, Place};
use crate::prep::Prep;
use crate::studio::Studio;
use crate::ui::{Announcer, Icon, IconView, Notice, Tone};
use all_settings::AllSettings;

#[component]
pub fn TrainPlace(live: Live, prep: Prep, studio: Studio) -> impl IntoView {
    let uploaded = studio.uploaded();
    let plan = move || {
        let photos = uploaded.with(Vec::len);
        let noun = prep.draft.with(|draft| draft.class_noun.clone());
        prep.plan.with(|plan| words::plan(&plan.recipe, photos, &noun))
    };
    view! {
        <div class="place">
            <h1>"Train"</h1>
            <p class="plan">{plan}</p>
            <Start live prep studio />
            <Preflight live prep studio />
            <AllSettings prep />
        </div>
    }
}

#[component]
fn Start(live: Live, prep: Prep, studio: Studio) -> impl IntoView {
    let announcer = expect_context::<Announcer>();
    let sending = RwSignal::new(false);
    let refusal = RwSignal::new(None::<Trouble>);
    let uploaded = studio.uploaded();
    let blocked = studio.blocked();
    let vae_misfit = prep.vae_misfit();
    let ready = Memo::new(move |_| {
        blocked.with(Option::is_none)
            && vae_misfit.with(Option::is_none)
            && prep.plan.with(|plan| plan.problems.is_empty())
            && live.link.get() == Link::Open
    });
    let start = move |_| {
        sending.set(true);
        refusal.set(None);
        spawn_local(async move {
            match prep.start(uploaded.get_untracked()).await {
                Ok(job) => {
                    announcer.say("Training is started.");
                    place::go(&Place::Run(Some(job.summary.id)));
                }
                Err(trouble) => drop(refusal.try_set(Some(trouble))),
            }
            sending.try_set(false);
        });
    };
    let busy = move || {
        let ahead = live.jobs.with(|jobs| {
            let waiting = |state: &JobState| !state.is_over();
            jobs.iter().flatten().filter(|job| waiting(&job.state)).count() as u64
        });
        (ahead > 0).then(|| format!("It waits for {} before it.", words::plural(ahead, "run", "runs")))
    };
    view! {
        <div class="start">
            <button type="button" class="button button-strong button-large" disabled=move || !ready.get() || sending.get() on:click=start>
                {move || if sending.get() { "Starting" } else { "Start training" }}
            </button>
            <p class="quiet">{move || if ready.get() { busy() } else { Some("See below what is missing.".into()) }}</p>
        </div>
        {move || refusal.get().map(|trouble| {
            let others = trouble.problems().into_iter().skip(1);
            let others = others.map(|p| view! { <p>{words::sentence(&p.message)}</p> }).collect_view();
            view! { <Notice tone=Tone::Error><p>{trouble.sentence()}</p>{others}</Notice> }
        })}
    }
}

/// One line of the pre-flight list.
#[component]
fn Check(
    good: Signal<bool>,
    what: &'static str,
    figure: Signal<String>,
    #[prop(optional, into)] fix: Option<String>,
) -> impl IntoView {
    let icon = move || {
        let icon = if good.get() { Icon::Check } else { Icon::Problem };
        view! { <IconView icon /> }
    };
    let spoken = move || if good.get() { "ready: " } else { "missing: " };
    view! {
        <li class="check" class:check-good=good>
            {icon}
            <span class="check-what"><span class="spoken">{spoken}</span>{what}</span>
            <span class="check-figure">{figure}</span>
            {fix.map(|href| view! { <a href=href>{move || if good.get() { "Change" } else { "Fix" }}</a> })}
        </li>
    }
}

#[component]
fn Preflight(live: Live, prep: Prep, studio: Studio) -> impl IntoView {
    let (uploaded, blocked) = (studio.uploaded(), studio.blocked());
    let photos = Signal::derive(move || {
        blocked.get().unwrap_or_else(|| {
            format!(
                "{} ready",
                words::plural(uploaded.with(Vec::len) as u64, "photo", "photos")
            )
        })
    });
    let is_prompt = |field: &str| field.starts_with("concepts") || field == "token" || field == "class_noun";
    let prompt_problem = move || {
        prep.plan
            .with(|p| p.problems.iter().find(|(f, _)| is_prompt(f)).map(|(_, w)| w.clone()))
    };
    let prompts = Signal::derive(move || prompt_problem().unwrap_or_else(|| prep.draft.with(|d| d.instance_prompt())));
    let model_known = Signal::derive(move || prep.model.with(Option::is_some));
    let model = Signal::derive(move || {
        prep.model.with(|model| match model {
            Some(m) => {
                let side = prep.side_px().get();
                let missing = m.hub.as_ref().map_or(0, |facts| facts.missing_bytes);
                let first = match missing {
                    0 => String::new(),
                    bytes => format!(", {} are downloaded first", words::bytes(bytes)),
                };
                format!("{}, {side} \u{d7} {side}{first}", m.title)
            }
            None => "not checked yet".into(),
        })
    });
    let vae_problem = prep.vae_problem();
    let other_vae = move || prep.draft.with(|d| !d.pretrained_vae_name_or_path.trim().is_empty());
    let vae = Signal::derive(move || {
        let name = prep.draft.with(|d| d.pretrained_vae_name_or_path.trim().to_owned());
        let missing = prep.vae.with(|asked| {
            let facts = asked.as_ref()?.ready()?.hub.as_ref()?;
            (facts.missing_bytes > 0).then_some(facts.missing_bytes)
        });
        match (vae_problem.get(), missing) {
            (Some(words), _) => words,
            (None, Some(bytes)) => format!("{name}, {} are downloaded first", words::bytes(bytes)),
            (None, None) => name,
        }
    });
    let settings_wrong = move || {
        prep.plan
            .with(|p| p.problems.keys().filter(|f| !is_prompt(f)).count() as u64)
    };
    let changed = move || prep.draft.with(|d| d.typed.len() as u64);
    let settings = Signal::derive(move || match (settings_wrong(), changed()) {
        (0, 0) => "our defaults".into(),
        (0, n) => format!("{n} changed"),
        (n, _) => format!("{} below", words::plural(n, "thing to fix", "things to fix")),
    });
    let device = Signal::derive(move || {
        if live.link.get() != Link::Open {
            return "no connection to the server".to_owned();
        }
        live.server
            .with(|s| s.ready().map_or("no server".to_owned(), |s| s.device.name.clone()))
    });
    let good = |f: Box<dyn Fn() -> bool + Send + Sync>| Signal::derive(f);
    view! {
        <ul class="preflight" aria-label="What is ready">
            <Check what="Photos" figure=photos good=good(Box::new(move || blocked.with(Option::is_none))) fix=Place::Photos.hash() />
            <Check what="Prompts" figure=prompts good=good(Box::new(move || prompt_problem().is_none())) fix=Place::Subject.hash() />
            <Check what="Base model" figure=model good=model_known fix=Place::Subject.hash() />
            <Show when=other_vae>
                <Check what="VAE" figure=vae good=Signal::derive(move || vae_problem.with(Option::is_none)) fix=Place::Subject.hash() />
            </Show>
            <Check what="Settings" figure=settings good=good(Box::new(move || settings_wrong() == 0)) />
            <Check what="Device" figure=device good=good(Box::new(move || live.link.get() == Link::Open)) />
        </ul>
    }
}
