//! The result on disk: single files for WebUIs, or the folders that the tutorial's script leaves.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use app::event::{EventKind, ExportFile, ExportFormat};
use sha2::{Digest, Sha256};

use super::error::TrainError;
use super::learner::Learner;
use super::run::{Results, Run};
use super::state::TrainingState;
use crate::formats::{self, Container, Width};
use crate::store::{self, StoreError};

/// Where and when the tutorial's script saves.
pub struct TutorialFolders {
    pub output_dir: PathBuf,
    /// All settings, for `args.json`.
    pub args: serde_json::Value,
    pub save_interval: u32,
    pub save_min_steps: u32,
}

impl TutorialFolders {
    /// Steps after which a folder is left, ascending. The script's own are one step late.
    pub fn save_steps(&self, steps: u32) -> Vec<u32> {
        let every = self.save_interval.max(1) as usize;
        let between = (0..steps).step_by(every).skip(1);
        let mut all: Vec<u32> = between.filter(|step| *step >= self.save_min_steps).collect();
        all.push(steps);
        all
    }
}

/// The end of a run: everything that it leaves.
///
/// # Errors
/// When something cannot be written.
pub fn export(run: &Run, learner: &Learner, state: &TrainingState) -> Result<(), TrainError> {
    match &run.results {
        Results::SingleFiles => single_files(run, learner, state),
        Results::Tutorial(folders) => save_folder(run, folders, learner, state),
    }
}

/// In between, where the script would save.
///
/// # Errors
/// When it cannot be written.
pub fn folder_if_due(run: &Run, learner: &Learner, state: &TrainingState) -> Result<(), TrainError> {
    match &run.results {
        Results::Tutorial(folders) if folders.save_steps(run.recipe.max_train_steps).contains(&state.step) => {
            save_folder(run, folders, learner, state)
        }
        _ => Ok(()),
    }
}

fn single_files(run: &Run, learner: &Learner, state: &TrainingState) -> Result<(), TrainError> {
    let weights = learner.weights(&state.vars);
    let folder = run.folder.join("export");
    store::make_folder(&folder)?;
    let name = file_stem(&run.recipe.concepts[0].instance_prompt, state.step);
    let mut files = Vec::new();
    for (format, ending, written_as) in [
        (ExportFormat::Safetensors, "safetensors", Container::Safetensors),
        (ExportFormat::Ckpt, "ckpt", Container::Ckpt),
    ] {
        let name = format!("{name}.{ending}");
        let path = folder.join(&name);
        formats::save_single_file(&path, &weights, Width::Half, written_as)?;
        let (bytes, sha256) = hash_file(&path)?;
        files.push(ExportFile {
            name,
            format,
            bytes,
            sha256,
        });
    }
    run.emit(EventKind::Exported {
        step: state.step,
        files,
    })
}

/// `output_dir/STEP/`: a diffusers folder, `args.json`, and copies of this step's samples.
fn save_folder(
    run: &Run,
    folders: &TutorialFolders,
    learner: &Learner,
    state: &TrainingState,
) -> Result<(), TrainError> {
    let folder = folders.output_dir.join(state.step.to_string());
    formats::save_diffusers(&folder, &learner.weights(&state.vars), Width::Full)?;
    let args = format!("{:#}\n", folders.args);
    store::write_atomic(&folder.join("args.json"), args.as_bytes())?;
    if run.sample_steps().contains(&state.step) {
        for index in 0..run.recipe.samples.n_save_sample {
            let from = run.folder.join(format!("samples/{}/{index}.png", state.step));
            // A stopped run has not drawn them all.
            if from.is_file() {
                let bytes = std::fs::read(&from).map_err(|source| StoreError { path: from, source })?;
                store::write_atomic(&folder.join(format!("samples/{index}.png")), &bytes)?;
            }
        }
    }
    Ok(())
}

/// `photo of zwx dog` after 800 steps becomes `zwx-dog-800`.
fn file_stem(instance_prompt: &str, step: u32) -> String {
    let prompt = instance_prompt.trim().to_lowercase();
    let subject = ["a photo of ", "photo of "]
        .iter()
        .find_map(|start| prompt.strip_prefix(start));
    let words: Vec<String> = subject
        .unwrap_or(&prompt)
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(6)
        .map(|word| word.chars().take(24).collect())
        .collect();
    match words.is_empty() {
        true => format!("likeness-{step}"),
        false => format!("{}-{step}", words.join("-")),
    }
}

/// Length and lower-case hex SHA-256.
///
/// # Errors
/// When the file cannot be read.
pub fn hash_file(path: &Path) -> Result<(u64, String), StoreError> {
    let failed = |source: io::Error| StoreError {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Ok((bytes, hex::encode(hash.finalize())));
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_after_its_subject() {
        assert_eq!(file_stem("photo of zwx dog", 800), "zwx-dog-800");
        assert_eq!(file_stem("a photo of zwx Dog, ../../x", 1), "zwx-dog-x-1");
        assert_eq!(file_stem("写真", 1), "likeness-1");
    }

    #[test]
    fn folders_come_every_interval_and_last() {
        let folders = |save_interval, save_min_steps| TutorialFolders {
            output_dir: PathBuf::new(),
            args: serde_json::Value::Null,
            save_interval,
            save_min_steps,
        };
        assert_eq!(folders(400, 0).save_steps(800), [400, 800]);
        assert_eq!(folders(100, 300).save_steps(450), [300, 400, 450]);
        assert_eq!(folders(10_000, 0).save_steps(800), [800]);
    }
}
