//! The job being prepared, as the page keeps it between visits: two words, a kind, a base model, and what was typed
//! over the defaults.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::preset::SubjectKind;
use crate::recipe::{self, Concept, RecipeDraft};
use crate::settings::{self, SETTINGS, SettingKind, Typed};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobDraft {
    pub kind: SubjectKind,
    pub token: String,
    pub class_noun: String,
    /// Edited by hand; `None` follows token and noun.
    pub instance_prompt: Option<String>,
    pub class_prompt: Option<String>,
    pub pretrained_model_name_or_path: String,
    /// Of a Hub id; empty: `main`.
    pub revision: String,
    /// Instead of the model's own; empty: none.
    pub pretrained_vae_name_or_path: String,
    pub typed: Typed,
}

impl Default for JobDraft {
    fn default() -> Self {
        let kind = SubjectKind::default();
        Self {
            kind,
            token: recipe::DEFAULT_TOKEN.into(),
            class_noun: kind.noun().into(),
            instance_prompt: None,
            class_prompt: None,
            pretrained_model_name_or_path: recipe::STARTER.into(),
            revision: String::new(),
            pretrained_vae_name_or_path: String::new(),
            typed: Typed::new(),
        }
    }
}

/// Path of the setting that has adapters trained in place of the model.
const LORA_RANK: &str = "lora_rank";

/// What is wrong, in words, by field: paths of the recipe's JSON, besides `token` and `class_noun`.
pub type Problems = BTreeMap<String, String>;

/// A draft worked out for one base model.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub recipe: RecipeDraft,
    /// The same without what was typed: the defaults beside the fields.
    pub defaults: RecipeDraft,
    pub problems: Problems,
}

impl JobDraft {
    pub fn instance_prompt(&self) -> String {
        let ours = || recipe::instance_prompt(&self.token, &self.class_noun);
        self.instance_prompt.clone().unwrap_or_else(ours)
    }

    pub fn class_prompt(&self) -> String {
        let ours = || recipe::class_prompt(&self.class_noun);
        self.class_prompt.clone().unwrap_or_else(ours)
    }

    /// Another kind brings its own noun, unless one was chosen by hand.
    pub fn set_kind(&mut self, kind: SubjectKind) {
        if SubjectKind::ALL.iter().any(|k| k.noun() == self.class_noun) || self.class_noun.trim().is_empty() {
            self.class_noun = kind.noun().into();
        }
        self.kind = kind;
    }

    /// Works the draft out over the chosen model's defaults.
    pub fn plan(&self, model: &RecipeDraft) -> Plan {
        let defaults = self.defaults(model);
        let (recipe, unread) = settings::apply(&defaults, &self.typed);
        let mut problems: Problems = unread.into_iter().map(|(path, p)| (path, p.to_string())).collect();
        if self.instance_prompt.is_none() && self.token.trim().is_empty() {
            let words = "give the subject a word of its own, such as zwx";
            problems.insert("token".into(), words.into());
        }
        if self.class_noun.trim().is_empty() && (self.instance_prompt.is_none() || self.class_prompt.is_none()) {
            let words = "say what it is in a word, such as dog";
            problems.insert("class_noun".into(), words.into());
        }
        if let Err(found) = recipe.clone().check() {
            for problem in found.0 {
                problems.entry(problem.field()).or_insert_with(|| problem.to_string());
            }
        }
        Plan {
            recipe,
            defaults,
            problems,
        }
    }

    fn defaults(&self, model: &RecipeDraft) -> RecipeDraft {
        let mut draft = model.clone();
        draft
            .pretrained_model_name_or_path
            .clone_from(&self.pretrained_model_name_or_path);
        let given = |text: &str| (!text.trim().is_empty()).then(|| text.trim().to_owned());
        draft.revision = given(&self.revision);
        draft.pretrained_vae_name_or_path = given(&self.pretrained_vae_name_or_path);
        self.kind.apply(&mut draft);
        if self.typed.get(LORA_RANK).is_some_and(|rank| !rank.trim().is_empty()) {
            draft.learning_rate = draft.learning_rate.max(recipe::LORA_LEARNING_RATE);
        }
        draft.concepts = vec![Concept {
            instance_prompt: self.instance_prompt(),
            class_prompt: Some(self.class_prompt()),
            // Placeholders for the check: the server fills in the real ones.
            instance_data_dir: "photos/0".into(),
            class_data_dir: Some("class-images/0".into()),
        }];
        draft.samples.save_sample_prompt = self.instance_prompt();
        if draft.samples.sample_interval == 0 {
            // Four rounds and the untrained model show the way without taking much of the time.
            draft.samples.sample_interval = (draft.max_train_steps / 4).max(1);
        }
        draft
    }

    /// A draft that asks for what `recipe` was: to start again.
    pub fn again(&self, recipe: &RecipeDraft, model: &RecipeDraft) -> Self {
        let mut draft = self.clone();
        draft
            .pretrained_model_name_or_path
            .clone_from(&recipe.pretrained_model_name_or_path);
        draft.revision = recipe.revision.clone().unwrap_or_default();
        draft.pretrained_vae_name_or_path = recipe.pretrained_vae_name_or_path.clone().unwrap_or_default();
        draft.typed.clear();
        if let Some(concept) = recipe.concepts.first() {
            draft.instance_prompt = Some(concept.instance_prompt.clone());
            draft.class_prompt.clone_from(&concept.class_prompt);
            if draft.instance_prompt() == recipe::instance_prompt(&draft.token, &draft.class_noun) {
                draft.instance_prompt = None;
            }
            if draft.class_prompt() == recipe::class_prompt(&draft.class_noun) {
                draft.class_prompt = None;
            }
        }
        // Before the others: it changes their defaults.
        if let Some(rank) = recipe.lora_rank {
            draft.typed.insert(LORA_RANK.into(), rank.to_string());
        }
        let defaults = draft.defaults(model);
        for setting in SETTINGS {
            let wanted = settings::value(recipe, setting);
            // Numbers of a prior that is off are empty, and not wishes.
            let wish = !wanted.is_empty() || setting.kind == SettingKind::Text;
            if wish && wanted != settings::value(&defaults, setting) {
                draft.typed.insert(setting.path.into(), wanted);
            }
        }
        draft
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untouched_draft_is_ready_but_for_photos() {
        let plan = JobDraft::default().plan(&RecipeDraft::default());
        assert_eq!(plan.problems, Problems::new());
        assert_eq!(plan.recipe.concepts[0].instance_prompt, "photo of zwx dog");
        assert_eq!(plan.recipe.concepts[0].class_prompt.as_deref(), Some("photo of a dog"));
        assert_eq!(plan.recipe.sample_steps(), [0, 200, 400, 600, 800]);
    }

    #[test]
    fn edited_prompts_stay_and_others_follow_the_words() {
        let mut draft = JobDraft {
            instance_prompt: Some("a portrait of zwx".into()),
            ..JobDraft::default()
        };
        draft.set_kind(SubjectKind::Person);
        assert_eq!(draft.instance_prompt(), "a portrait of zwx");
        assert_eq!(draft.class_prompt(), "photo of a person");
        draft.class_noun = "old man".into();
        draft.set_kind(SubjectKind::Animal);
        assert_eq!(draft.class_prompt(), "photo of an old man");
    }

    #[test]
    fn problems_carry_their_field() {
        let mut draft = JobDraft {
            token: " ".into(),
            class_noun: String::new(),
            ..JobDraft::default()
        };
        draft.typed.insert("max_train_steps".into(), "soon".into());
        draft.typed.insert("learning_rate".into(), "5".into());
        let fields: Vec<String> = draft.plan(&RecipeDraft::default()).problems.into_keys().collect();
        assert_eq!(fields, ["class_noun", "learning_rate", "max_train_steps", "token"]);
    }

    #[test]
    fn a_lora_learns_at_a_rate_of_its_own() {
        let model = RecipeDraft::default();
        let mut draft = JobDraft::default();
        draft.typed.insert("lora_rank".into(), "8".into());
        let plan = draft.plan(&model);
        assert_eq!((plan.recipe.lora_rank, plan.recipe.learning_rate), (Some(8), 1e-4));
        assert_eq!(JobDraft::default().again(&plan.recipe, &model), draft);
        draft.typed.insert("lora_rank".into(), String::new());
        assert_eq!(draft.plan(&model).recipe, JobDraft::default().plan(&model).recipe);
    }

    #[test]
    fn starting_again_asks_for_the_same() {
        let model = RecipeDraft::default();
        let mut draft = JobDraft::default();
        draft.typed.insert("learning_rate".into(), "2e-4".into());
        draft.typed.insert("prior".into(), "off".into());
        draft.class_prompt = Some("a drawing of a dog".into());
        draft.revision = "fp16".into();
        draft.pretrained_vae_name_or_path = "stabilityai/sd-vae-ft-mse".into();
        let plan = draft.plan(&model);
        assert_eq!(plan.recipe.revision.as_deref(), Some("fp16"));
        let again = JobDraft::default().again(&plan.recipe, &model);
        assert_eq!(again, draft);
        assert_eq!(again.plan(&model).recipe, plan.recipe);
    }
}
