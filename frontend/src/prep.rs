//! The job being prepared: the draft, the chosen base model, and what follows from both.

use app::api::{InspectModel, ModelInfo, NewJob};
use app::draft::{JobDraft, Plan, Problems};
use app::job::JobDetail;
use app::recipe::RecipeDraft;
use leptos::prelude::*;
use leptos::task::spawn_local;

use crate::memory;
use crate::net::http::{self, Fetched, Trouble};
use crate::net::live::Live;

/// Side that crops get until the server has said what its models want.
const SIDE_UNTIL_KNOWN_PX: u32 = 512;

/// What a model is chosen by: name or path, and revision; `main` and what has none are empty.
pub fn reference_of(model: &ModelInfo) -> (String, String) {
    let revision = model.hub.as_ref().and_then(|facts| facts.revision.clone());
    (
        model.pretrained_model_name_or_path.clone(),
        revision.unwrap_or_default(),
    )
}

#[derive(Clone, Copy)]
pub struct Prep {
    pub draft: RwSignal<JobDraft>,
    /// The base model, once known.
    pub model: Memo<Option<ModelInfo>>,
    /// The answer about a model that the server does not list. `None`: not asked.
    pub inspected: RwSignal<Option<Fetched<ModelInfo>>>,
    pub plan: Memo<Plan>,
    /// What the server refused, by field, until the next attempt.
    pub refused: RwSignal<Problems>,
}

impl Prep {
    pub fn new(live: Live) -> Self {
        let draft: RwSignal<JobDraft> = memory::remembered("likeness.draft");
        let inspected = RwSignal::new(None::<Fetched<ModelInfo>>);
        let chosen = Memo::new(move |_| draft.with(|d| (d.pretrained_model_name_or_path.clone(), d.revision.clone())));
        let model = Memo::new(move |_| {
            let chosen = chosen.get();
            let fits = |m: &ModelInfo| reference_of(m) == chosen;
            let listed = live
                .server
                .with(|s| s.ready().and_then(|s| s.models.iter().find(|m| fits(m)).cloned()));
            listed.or_else(|| {
                let asked = inspected.get();
                asked.as_ref().and_then(Fetched::ready).filter(|m| fits(m)).cloned()
            })
        });
        let plan = Memo::new(move |_| {
            let defaults = model.with(|m| m.as_ref().map_or_else(RecipeDraft::default, |m| m.defaults.clone()));
            draft.with(|draft| draft.plan(&defaults))
        });
        let prep = Self {
            draft,
            model,
            inspected,
            plan,
            refused: RwSignal::new(Problems::new()),
        };
        // A path remembered from the last visit is asked about once the server is there.
        Effect::new(move |_| {
            let server_is_there = live.server.with(|s| s.ready().is_some());
            if server_is_there && model.with_untracked(Option::is_none) && inspected.with_untracked(Option::is_none) {
                let (reference, revision) = chosen.get_untracked();
                prep.inspect(reference, revision);
            }
        });
        prep
    }

    /// Side of the training images in pixels.
    pub fn side_px(self) -> Signal<u32> {
        Signal::derive(move || {
            let typed = self.plan.with(|plan| plan.recipe.resolution);
            let of_model = self.model.with(|model| model.as_ref().map(|m| m.resolution));
            typed.or(of_model).unwrap_or(SIDE_UNTIL_KNOWN_PX)
        })
    }

    pub fn choose_model(self, (reference, revision): (String, String)) {
        self.draft.update(|d| {
            d.pretrained_model_name_or_path = reference;
            d.revision = revision;
        });
    }

    /// Asks the server what `reference` is, and chooses it when it is a model. An empty `revision` is the usual one.
    pub fn inspect(self, reference: String, revision: String) {
        self.inspected.set(Some(Fetched::Pending));
        spawn_local(async move {
            let body = InspectModel {
                pretrained_model_name_or_path: reference,
                revision: (!revision.is_empty()).then_some(revision),
            };
            let answer: Result<ModelInfo, Trouble> = http::post("/api/models/inspect", &body).await;
            if let Ok(model) = &answer {
                self.choose_model(reference_of(model));
            }
            self.inspected.set(Some(answer.into()));
        });
    }

    /// What is wrong with a field, by its path in the recipe.
    pub fn problem(self, field: &'static str) -> Signal<Option<String>> {
        Signal::derive(move || {
            let ours = self.plan.with(|plan| plan.problems.get(field).cloned());
            ours.or_else(|| self.refused.with(|refused| refused.get(field).cloned()))
        })
    }

    pub fn type_setting(self, path: &'static str, text: String) {
        self.refused.update(|refused| {
            refused.remove(path);
        });
        let default = self.plan.with_untracked(|plan| {
            let setting = app::settings::find(path);
            setting.map(|s| app::settings::value(&plan.defaults, s))
        });
        self.draft.update(|draft| {
            if default.as_deref() == Some(&text) {
                draft.typed.remove(path);
            } else {
                draft.typed.insert(path.to_owned(), text);
            }
        });
    }

    /// Sends the job.
    ///
    /// # Errors
    /// The server does not answer or refuses; refused fields are kept in `refused`.
    pub async fn start(self, photos: Vec<String>) -> Result<JobDetail, Trouble> {
        let mut recipe = self.plan.with_untracked(|plan| plan.recipe.clone());
        for concept in &mut recipe.concepts {
            // The page's placeholders; the server knows the folders.
            concept.instance_data_dir.clear();
            concept.class_data_dir = None;
        }
        let job = NewJob {
            recipe,
            photos: vec![photos],
        };
        self.refused.set(Problems::new());
        let answer = http::post("/api/jobs", &job).await;
        if let Err(trouble) = &answer {
            let by_field = trouble.problems().into_iter().filter_map(|problem| {
                let field = problem.field?;
                Some((field.trim_start_matches("recipe.").to_owned(), problem.message))
            });
            self.refused.set(by_field.collect());
        }
        answer
    }
}
