//! `job`: what the server starts. Whatever happens, the folder's log ends with an event that says so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use app::event::EventKind;
use app::job::Failure;
use app::recipe::Recipe;
use trainer::device;
use trainer::dreambooth::{self, Results, Run, Stop};
use trainer::events::{EventLog, JsonLines};

use super::{WrongUse, bytes_of_gib, status};

#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct JobArgs {
    /// The job folder, with its recipe.json
    #[arg(long)]
    dir: PathBuf,
    /// Folder with class images of earlier jobs; this one's are kept there too
    #[arg(long)]
    class_image_cache: Option<PathBuf>,
    /// Train as if the device had only so many GiB of memory
    #[arg(long)]
    memory_limit: Option<f64>,
    /// cpu or cuda; by default what this build is for
    #[arg(long)]
    device: Option<String>,
}

pub fn run(args: &JobArgs) -> anyhow::Result<ExitCode> {
    if !args.dir.is_dir() {
        return Err(WrongUse(format!("--dir: {} is not a folder", args.dir.display())).into());
    }
    let folder = std::path::absolute(&args.dir)?;
    let device = device::open(args.device.as_deref()).map_err(|e| WrongUse(format!("--device: {e}")))?;
    let log = EventLog::open(&folder, Box::new(JsonLines))?;
    let stop = Stop::watch(&folder).context("cannot catch signals")?;
    let recipe = match read_recipe(&folder) {
        Ok(recipe) => recipe,
        Err(failure) => return Ok(failed(&log, failure)),
    };
    let run = Run {
        recipe,
        data_folder: folder.clone(),
        folder,
        log,
        stop,
        device,
        results: Results::SingleFiles,
        class_image_cache: args.class_image_cache.clone(),
        memory_limit: args.memory_limit.map(bytes_of_gib),
        fits_itself: true,
        saves_when_due: false,
    };
    // A fault of ours must end the job, not leave it without a last word.
    let train = || dreambooth::train(&run).map_err(|error| error.failure());
    match catch_unwind(AssertUnwindSafe(train)) {
        Ok(Ok(ended)) => Ok(status(ended)),
        Ok(Err(failure)) => Ok(failed(&run.log, failure)),
        Err(_panic) => {
            let failure = Failure {
                code: "bug".into(),
                message: "the trainer failed in a way it should not".into(),
                hint: Some("Its log, trainer.log in the job folder, says where.".into()),
            };
            Ok(failed(&run.log, failure))
        }
    }
}

fn read_recipe(folder: &Path) -> Result<Recipe, Failure> {
    let path = folder.join("recipe.json");
    let bad = |what: String| Failure {
        code: "bad_recipe".into(),
        message: format!("{}: {what}", path.display()),
        hint: None,
    };
    let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| bad(e.to_string()))
}

fn failed(log: &EventLog, failure: Failure) -> ExitCode {
    tracing::error!("failed: {}", failure.message);
    if let Err(error) = log.emit(EventKind::Failed { failure }).and_then(|()| log.flush()) {
        tracing::error!("the log cannot tell it: {error}");
    }
    ExitCode::FAILURE
}
