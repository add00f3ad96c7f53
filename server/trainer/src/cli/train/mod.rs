//! `train`: the tutorial's command on folders of photos, without the server. What is left in `--output_dir` is what the
//! script leaves there; our own state lives in `.likeness/` below it.

mod args;
pub mod config_file;
#[cfg(test)]
mod flags_doc;
#[cfg(test)]
mod flags_tests;
mod no_effect;
mod presets;
mod recipe;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use app::event::EventKind;
use app::recipe::{Recipe, RecipeProblem};
use trainer::dreambooth::{self, Results, Run, Stop, TutorialFolders};
use trainer::events::{EventLog, Lock};
use trainer::formats::Width;
use trainer::{device, store};

use super::progress::Progress;
use super::{FAILED, WRONG_USE, WrongUse, bytes_of_gib, status};

pub use args::TrainArgs;

pub fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let device = device::open(args.device.as_deref()).map_err(|e| WrongUse(format!("--device: {e}")))?;
    let recipe = recipe::draft(args)?.check().map_err(|problems| {
        let words: Vec<String> = problems.0.iter().map(with_flag).collect();
        WrongUse(words.join("; "))
    })?;
    let folder = args.output_dir.join(".likeness");
    store::make_folder(&folder)?;
    let lock = Lock::take(&folder)?;
    let fresh = begin(&folder, &recipe)?;
    let log = EventLog::continue_in(lock, Box::new(Progress::new(args.log_interval)))?;
    let photos = recipe::photos_of(&recipe.concepts)?;
    let typed = config_file::typed(args)?;
    let folders = TutorialFolders {
        output_dir: args.output_dir.clone(),
        args: recipe::args_json(args, &recipe)?,
        save_interval: args.save_interval,
        save_min_steps: args.save_min_steps,
        late: args.strict_tutorial,
        width: if args.save_fp16 { Width::Half } else { Width::Single },
        keep_last: args.keep_last,
    };
    let saves = folders.saves(recipe.max_train_steps).len();
    for message in no_effect::told(&typed, &recipe, photos, saves) {
        let code = "no_effect".into();
        log.emit(EventKind::Warning { code, message })?;
    }
    if !fresh {
        tracing::info!(
            "taking up the run in {}; delete that folder to start over",
            folder.display()
        );
    }
    let run = Run {
        results: Results::Tutorial(folders),
        class_image_cache: None,
        memory_limit: args.memory_limit.map(bytes_of_gib),
        fits_itself: true,
        saves_when_due: typed.checkpointing_steps.is_some(),
        data_folder: std::env::current_dir()?,
        stop: Stop::watch(&folder).context("cannot catch signals")?,
        folder,
        log,
        recipe,
        device,
    };
    match dreambooth::train(&run) {
        Ok(ended) => Ok(status(ended)),
        Err(error) => {
            // The log's listener tells it.
            let failure = error.failure();
            run.log.emit(EventKind::Failed { failure })?;
            run.log.flush()?;
            Ok(ExitCode::from(if error.is_wrong_use() { WRONG_USE } else { FAILED }))
        }
    }
}

/// A problem of the recipe with the flag that has it: they share their names.
fn with_flag(problem: &RecipeProblem) -> String {
    let field = problem.field();
    let flag = match field.rsplit('.').next().unwrap_or(&field) {
        "concepts" => "concepts_list",
        same => same,
    };
    format!("--{flag}: {problem}")
}

/// Takes an unfinished run of the same recipe up; clears what another one left. Whether this run is a new one.
fn begin(folder: &Path, recipe: &Recipe) -> anyhow::Result<bool> {
    let path = folder.join("recipe.json");
    let json = serde_json::to_vec_pretty(recipe)?;
    let unfinished = dreambooth::state::state_path(folder).is_file();
    // A file that an earlier stop was asked with must not end this run.
    let mut stale = vec!["stop"];
    let same = unfinished && std::fs::read(&path).is_ok_and(|before| before == json);
    if !same {
        stale.extend(["events.jsonl", "samples"]);
    }
    if !same && recipe.resume_from_checkpoint.is_none() {
        stale.extend(["state", "checkpoints"]);
    }
    for name in stale {
        let path = folder.join(name);
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    store::write_atomic(&path, &json)?;
    Ok(!same)
}
