//! The job being prepared: the draft, the chosen base model, and what follows from both.

use app::api::{InspectModel, InspectVae, ModelInfo, NewJob, VaeInfo, hub_codes};
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

/// The VAE's field in a recipe.
const VAE: &str = "pretrained_vae_name_or_path";

fn asks_for_token<T>(asked: Option<&Fetched<T>>) -> bool {
    matches!(asked, Some(Fetched::Failed(Trouble::Refused(problem))) if hub_codes::asks_for_token(&problem.code))
}

#[derive(Clone, Copy)]
pub struct Prep {
    pub draft: RwSignal<JobDraft>,
    /// The base model, once known.
    pub model: Memo<Option<ModelInfo>>,
    /// The answer about a model that the server does not list. `None`: not asked.
    pub inspected: RwSignal<Option<Fetched<ModelInfo>>>,
    /// The answer about the VAE that takes the place of the model's own. `None`: not asked since it was typed.
    pub vae: RwSignal<Option<Fetched<VaeInfo>>>,
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
            vae: RwSignal::new(None),
            plan,
            refused: RwSignal::new(Problems::new()),
        };
        // What is remembered from the last visit is asked about once the server is there.
        Effect::new(move |_| {
            let server_is_there = live.server.with(|s| s.ready().is_some());
            if server_is_there && model.with_untracked(Option::is_none) && inspected.with_untracked(Option::is_none) {
                let (reference, revision) = chosen.get_untracked();
                prep.inspect(reference, revision);
            }
            if server_is_there && prep.vae.with_untracked(Option::is_none) {
                prep.inspect_vae();
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

    /// Takes a VAE as it is typed; empty is the model's own.
    pub fn type_vae(self, reference: String) {
        self.vae.set(None);
        self.refused.update(|refused| {
            refused.remove(VAE);
        });
        self.draft.update(|d| d.pretrained_vae_name_or_path = reference);
    }

    fn typed_vae(self) -> String {
        self.draft
            .with_untracked(|d| d.pretrained_vae_name_or_path.trim().to_owned())
    }

    /// Asks the server what the chosen VAE is, where one is.
    pub fn inspect_vae(self) {
        let reference = self.typed_vae();
        if reference.is_empty() {
            self.vae.set(None);
            return;
        }
        self.vae.set(Some(Fetched::Pending));
        spawn_local(async move {
            let body = InspectVae {
                pretrained_vae_name_or_path: reference.clone(),
            };
            let answer: Result<VaeInfo, Trouble> = http::post("/api/vaes/inspect", &body).await;
            // Another may have been typed meanwhile.
            if self.typed_vae() == reference {
                self.vae.set(Some(answer.into()));
            }
        });
    }

    /// Why the chosen VAE cannot be used, as far as the server was asked: unreadable, or of other latents than the
    /// model's.
    pub fn vae_misfit(self) -> Signal<Option<String>> {
        let misfit = move |vae: &VaeInfo| self.model.with(|model| vae.misfit(model.as_ref()?));
        Signal::derive(move || {
            self.vae.with(|asked| match asked {
                Some(Fetched::Failed(Trouble::Refused(problem))) => Some(problem.message.clone()),
                Some(Fetched::Ready(vae)) => misfit(vae),
                // Without an answer nothing speaks against it.
                Some(Fetched::Failed(_) | Fetched::Pending) | None => None,
            })
        })
    }

    /// The same, or what the server said of it when training was to start.
    pub fn vae_problem(self) -> Signal<Option<String>> {
        let (misfit, of_recipe) = (self.vae_misfit(), self.problem(VAE));
        Signal::derive(move || misfit.get().or_else(|| of_recipe.get()))
    }

    /// Whether a token for the Hub may be what the model or the VAE is missing.
    pub fn needs_token(self) -> bool {
        self.model_needs_token() || self.vae_needs_token()
    }

    pub fn model_needs_token(self) -> bool {
        self.inspected.with(|asked| asks_for_token(asked.as_ref()))
    }

    pub fn vae_needs_token(self) -> bool {
        self.vae.with(|asked| asks_for_token(asked.as_ref()))
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
