//! What kind of thing the subject is, and the gentle defaults that follow from it.

use serde::{Deserialize, Serialize};

use crate::recipe::RecipeDraft;

/// The kinds a person chooses between. Factors, not values: each base model has defaults of its own to scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    Person,
    #[default]
    Animal,
    Object,
    Style,
}

impl SubjectKind {
    pub const ALL: [Self; 4] = [Self::Person, Self::Animal, Self::Object, Self::Style];

    pub fn title(self) -> &'static str {
        match self {
            Self::Person => "Person",
            Self::Animal => "Animal",
            Self::Object => "Object",
            Self::Style => "Style",
        }
    }

    /// A class noun to begin with.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Animal => "dog",
            Self::Object => "backpack",
            Self::Style => "painting",
        }
    }

    /// What choosing it changes, in one line.
    pub fn effect(self) -> &'static str {
        match self {
            Self::Person => "A quarter more steps and twice the class images: faces need both.",
            Self::Animal => "Uses the model's own defaults.",
            Self::Object => "A quarter fewer steps: objects are learned quickly.",
            Self::Style => "No class images, and the words stay as they are: a style should colour everything.",
        }
    }

    /// Adapts a model's defaults.
    pub fn apply(self, draft: &mut RecipeDraft) {
        let scaled = |n: u32, percent: u32| (u64::from(n) * u64::from(percent) / 100).max(1) as u32;
        match self {
            Self::Animal => {}
            Self::Person => {
                draft.max_train_steps = scaled(draft.max_train_steps, 125);
                if let Some(prior) = &mut draft.prior {
                    prior.num_class_images = prior.num_class_images.saturating_mul(2);
                }
            }
            Self::Object => draft.max_train_steps = scaled(draft.max_train_steps, 75),
            Self::Style => {
                draft.prior = None;
                draft.train_text_encoder = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_scale_a_models_own_defaults() {
        let with = |kind: SubjectKind| {
            let mut draft = RecipeDraft::default();
            kind.apply(&mut draft);
            draft
        };
        assert_eq!(with(SubjectKind::Animal), RecipeDraft::default());
        assert_eq!(with(SubjectKind::Person).max_train_steps, 1000);
        assert_eq!(with(SubjectKind::Person).prior.map(|p| p.num_class_images), Some(100));
        assert_eq!(with(SubjectKind::Object).max_train_steps, 600);
        assert_eq!(with(SubjectKind::Style).prior, None);
    }
}
