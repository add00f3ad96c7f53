//! What DreamBooth does to the starter, subject by subject: `make prove-dreambooth PHOTOS=FOLDER`. Each subject is learned
//! twice, with prior preservation and without; the product's own meters say what came of it, a table is printed, and the
//! pictures are laid side by side in one figure.
//!
//! Arguments: the figure to write; a folder of folders of photos, learned besides the repository's own; and, to try other
//! settings, JSON that is laid over the recipe.

use std::path::Path;

use anyhow::Context;
use app::recipe::RecipeDraft;
use tests::autoencoder::{mean_psnr_db, reconstruct};
use tests::dreambooth::{self, Outcome, Subject};
use tests::sheet::{self, Row};

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds flags of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let mut arguments = arguments.iter();
    let figure = arguments.next().context("name the figure to write")?;
    let fixture = Subject::of_folder(&tests::repository().join("tests/fixtures/cat"))?;
    let mut subjects = vec![fixture.clone()];
    if let Some(photos) = arguments.next() {
        subjects.extend(Subject::all_in(Path::new(photos))?);
    }
    let other = arguments.next().map_or("{}", String::as_str);
    let other = serde_json::from_str(other).context("the recipe's JSON")?;

    println!(
        "| subject | likeness before | after | drift with prior | without | diversity with prior | without | ms a step | autoencoder, dB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut rows = Vec::new();
    let mut all = Vec::new();
    for subject in &subjects {
        let folder = tempfile::tempdir()?;
        let recipe = overlaid(&subject.recipe(), &other)?;
        let with = dreambooth::train(&recipe, &folder.path().join("with"))?;
        let without = RecipeDraft { prior: None, ..recipe };
        let without = dreambooth::train(&without, &folder.path().join("without"))?;
        let photos = reconstruct(&subject.photos)?;
        tell(&subject.name, &with, &without, mean_psnr_db(&photos));
        // Only what is the repository's own may be copied into it.
        let shows_photo = subject.photos == fixture.photos;
        rows.push(Row::draw(
            subject,
            &photos,
            shows_photo,
            &with,
            &without,
            folder.path(),
        )?);
        all.push((with, without));
    }
    tell_mean(&all);
    sheet::compose(&rows)?.save(figure)?;
    Ok(())
}

fn overlaid(recipe: &RecipeDraft, other: &serde_json::Value) -> anyhow::Result<RecipeDraft> {
    let mut json = serde_json::to_value(recipe)?;
    if let (Some(json), Some(other)) = (json.as_object_mut(), other.as_object()) {
        json.extend(other.clone());
    }
    let mut recipe: RecipeDraft = serde_json::from_value(json)?;
    recipe.samples.sample_interval = recipe.max_train_steps;
    Ok(recipe)
}

/// In the table's order, less the time.
fn numbers(with: &Outcome, without: &Outcome) -> [f32; 6] {
    let (before, with, without) = (with.before(), with.after(), without.after());
    [
        before.likeness,
        with.likeness,
        with.drift,
        without.drift,
        with.diversity,
        without.diversity,
    ]
}

fn tell(name: &str, with: &Outcome, without: &Outcome, psnr_db: f32) {
    let [before, after, drift, drift_without, diversity, diversity_without] = numbers(with, without);
    println!(
        "| {name} | {before:.2} | {after:.2} | {drift:.2} | {drift_without:.2} | {diversity:.2} | {diversity_without:.2} | {:.0} | {psnr_db:.1} |",
        with.ms_per_step
    );
}

fn tell_mean(all: &[(Outcome, Outcome)]) {
    let mut means = [0.0; 6];
    for (with, without) in all {
        for (mean, number) in means.iter_mut().zip(numbers(with, without)) {
            *mean += number / all.len() as f32;
        }
    }
    let cells: Vec<String> = means.iter().map(|mean| format!("{mean:.2}")).collect();
    println!("| mean | {} | | |", cells.join(" | "));
}
