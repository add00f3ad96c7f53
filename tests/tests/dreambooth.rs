//! DreamBooth works: on the starter, with the repository's own photographs, by the product's own meters. How well it
//! works with more subjects and all steps is in docs/measurements.md.

use app::recipe::RecipeDraft;
use tests::dreambooth::{self, Subject};

/// Little more than half of a run: enough to tell learning from not learning.
const STEPS: u32 = 200;

#[test]
fn the_subject_appears_and_with_prior_preservation_its_kind_stays_itself() {
    let subject = Subject::of_folder(&tests::repository().join("tests/fixtures/cat")).unwrap();
    let mut recipe = RecipeDraft {
        max_train_steps: STEPS,
        ..subject.recipe()
    };
    recipe.samples.sample_interval = STEPS;
    let folder = tempfile::tempdir().unwrap();
    let with = dreambooth::train(&recipe, &folder.path().join("with")).unwrap();
    let without = RecipeDraft { prior: None, ..recipe };
    let without = dreambooth::train(&without, &folder.path().join("without")).unwrap();

    let (before, with, without) = (with.before(), with.after(), without.after());
    println!("{before:?}\n{with:?}\n{without:?}");
    assert!(with.likeness >= before.likeness + 0.3, "likeness did not rise");
    assert!(with.drift <= 0.3, "its kind drifted in spite of prior preservation");
    assert!(
        without.drift >= with.drift + 0.3,
        "prior preservation made no difference"
    );
    assert!(with.diversity >= 0.85, "its kind became uniform");
}
