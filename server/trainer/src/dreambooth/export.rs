//! The result on disk: single files for WebUIs, or the folders that the tutorial's script leaves.

use std::path::{Path, PathBuf};

use app::event::{EventKind, ExportFile, ExportFormat};

use super::error::TrainError;
use super::learner::Learner;
use super::run::{Results, Run};
use super::space;
use super::state::TrainingState;
use crate::formats::{self, Container, Width};
use crate::store::{self, StoreError, hash_file};

/// Where and when the tutorial's script saves.
pub struct TutorialFolders {
    pub output_dir: PathBuf,
    /// All settings, for `args.json`.
    pub args: serde_json::Value,
    pub save_interval: u32,
    pub save_min_steps: u32,
    /// The script saves after the step that follows the one it names the folder by.
    pub late: bool,
    /// Of the weights in the folders.
    pub width: Width,
    /// Only so many of the last folders stay.
    pub keep_last: Option<u32>,
}

/// A folder to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Save {
    /// The step after which it is left.
    pub after: u32,
    /// The step that it is named by.
    pub name: u32,
}

impl TutorialFolders {
    /// The folders that a run of so many steps leaves, ascending.
    pub fn saves(&self, steps: u32) -> Vec<Save> {
        let every = self.save_interval as usize;
        let between = (0..steps).step_by(every).skip(1);
        let between = between.filter(|step| *step >= self.save_min_steps).map(|step| Save {
            after: step + u32::from(self.late),
            name: step,
        });
        let last = Save {
            after: steps,
            name: steps,
        };
        between.chain([last]).collect()
    }

    /// Removes the oldest of this run's folders from before step `written`, so that `keep_last` stay with the one just
    /// written: those that are due, and those with the same `args`, which a stop has left at any step.
    fn prune(&self, written: u32, steps: u32, args: &[u8]) -> Result<(), TrainError> {
        let Some(keep) = self.keep_last else { return Ok(()) };
        let failed = |source| StoreError {
            path: self.output_dir.clone(),
            source,
        };
        let mut names: Vec<u32> = Vec::new();
        for entry in std::fs::read_dir(&self.output_dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // `007` is nobody's.
            let number = name.to_str().and_then(|text| text.parse().ok());
            names.extend(number.filter(|number: &u32| name.to_str() == Some(&number.to_string())));
        }
        names.sort_unstable();
        let due = self.saves(steps);
        let is_own = |name: u32, folder: &Path| {
            let same = || std::fs::read(folder.join(space::LAST_WRITTEN)).is_ok_and(|there| there == args);
            due.iter().any(|save| save.name == name) || same()
        };
        let there: Vec<PathBuf> = (names.into_iter().filter(|name| *name < written))
            .map(|name| (name, self.output_dir.join(name.to_string())))
            .filter(|(name, folder)| space::is_whole(folder) && is_own(*name, folder))
            .map(|(_, folder)| folder)
            .collect();
        let surplus = there.len().saturating_sub(keep.saturating_sub(1) as usize);
        for path in there.into_iter().take(surplus) {
            // First, so that one half removed does not pass for a model.
            for removed in [
                std::fs::remove_file(path.join(space::LAST_WRITTEN)),
                std::fs::remove_dir_all(&path),
            ] {
                removed.map_err(|source| StoreError {
                    path: path.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

/// The end of a run: everything that it leaves.
///
/// # Errors
/// When something cannot be written.
pub fn export(run: &Run, learner: &mut Learner, state: &TrainingState) -> Result<(), TrainError> {
    match &run.results {
        Results::SingleFiles => single_files(run, learner, state),
        Results::Tutorial(folders) => {
            let (after, name) = (state.step, state.step);
            let save = Save { after, name };
            save_folder(run, &FolderDue { folders, save }, learner)
        }
    }
}

/// A folder that the script would leave now, in the midst of a run.
pub struct FolderDue<'a> {
    folders: &'a TutorialFolders,
    save: Save,
}

/// The folders to leave after `step`, but for the last, which is the run's end.
pub fn folders_due(run: &Run, step: u32) -> Vec<FolderDue<'_>> {
    let Results::Tutorial(folders) = &run.results else {
        return Vec::new();
    };
    let steps = run.recipe.max_train_steps;
    let saves = folders.saves(steps).into_iter();
    let due = saves.filter(|save| save.after == step && save.name != steps);
    due.map(|save| FolderDue { folders, save }).collect()
}

fn single_files(run: &Run, learner: &mut Learner, state: &TrainingState) -> Result<(), TrainError> {
    let weights = learner.weights()?;
    let folder = run.folder.join("export");
    store::make_folder(&folder)?;
    let name = file_stem(&run.recipe.concepts[0].instance_prompt, state.step);
    let mut files = Vec::new();
    let mut told = |name: String, format, (bytes, sha256)| {
        files.push(ExportFile {
            name,
            format,
            bytes,
            sha256,
        });
    };
    if let Some(lora) = learner.lora()? {
        let name = format!("{name}-lora.safetensors");
        formats::save_lora(&folder.join(&name), &lora, learner.base(), Width::Half)?;
        let hashed = hash_file(&folder.join(&name))?;
        told(name, ExportFormat::Lora, hashed);
    }
    for (format, ending, written_as) in [
        (ExportFormat::Safetensors, "safetensors", Container::Safetensors),
        (ExportFormat::Ckpt, "ckpt", Container::Ckpt),
    ] {
        let name = format!("{name}.{ending}");
        let hashed = formats::save_single_file(&folder.join(&name), &weights, Width::Half, written_as)?;
        told(name, format, hashed);
    }
    run.emit(EventKind::Exported {
        step: state.step,
        files,
    })
}

/// `output_dir/STEP/`: a diffusers folder, or of adapters a LoRA file alone; `args.json`, and copies of this step's
/// samples.
///
/// # Errors
/// When it cannot be written.
pub fn save_folder(run: &Run, due: &FolderDue, learner: &mut Learner) -> Result<(), TrainError> {
    let FolderDue { folders, save } = due;
    let folder = folders.output_dir.join(save.name.to_string());
    if let Some(lora) = learner.lora()? {
        let name = file_stem(&run.recipe.concepts[0].instance_prompt, save.name);
        let path = folder.join(format!("{name}.safetensors"));
        formats::save_lora(&path, &lora, learner.base(), folders.width)?;
    } else {
        let mut weights = learner.weights()?;
        with_ddim(&mut weights.config_files.scheduler);
        formats::save_diffusers(&folder, &weights, folders.width)?;
    }
    let mut args = folders.args.clone();
    for name in &learner.turned_on {
        args[name] = true.into();
    }
    let args = format!("{args:#}\n");
    store::write_atomic(&folder.join("args.json"), args.as_bytes())?;
    if run.sample_steps().contains(&save.after) {
        for index in 0..run.recipe.samples.n_save_sample {
            let from = run.folder.join(format!("samples/{}/{index}.png", save.after));
            // A stopped run has not drawn them all.
            if from.is_file() {
                let bytes = std::fs::read(&from).map_err(|source| StoreError { path: from, source })?;
                store::write_atomic(&folder.join(format!("samples/{index}.png")), &bytes)?;
            }
        }
    }
    folders.prune(save.name, run.recipe.max_train_steps, args.as_bytes())
}

/// The script's pipeline draws with DDIM, and is saved so.
fn with_ddim(scheduler: &mut serde_json::Value) {
    if let Some(config) = scheduler.as_object_mut() {
        config.insert("_class_name".into(), "DDIMScheduler".into());
        // PNDM's own.
        config.remove("skip_prk_steps");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_after_its_subject() {
        assert_eq!(file_stem("photo of zwx dog", 800), "zwx-dog-800");
        assert_eq!(file_stem("a photo of zwx Dog, ../../x", 1), "zwx-dog-x-1");
        assert_eq!(file_stem("写真", 1), "likeness-1");
    }

    fn folders(save_interval: u32, save_min_steps: u32, late: bool) -> TutorialFolders {
        TutorialFolders {
            output_dir: PathBuf::new(),
            args: serde_json::Value::Null,
            save_interval,
            save_min_steps,
            late,
            width: Width::Single,
            keep_last: None,
        }
    }

    #[test]
    fn folders_come_every_interval_and_last() {
        let names = |interval, least, steps| -> Vec<u32> {
            let saves = folders(interval, least, false).saves(steps);
            assert!(saves.iter().all(|save| save.after == save.name));
            saves.into_iter().map(|save| save.name).collect()
        };
        assert_eq!(names(400, 0, 800), [400, 800]);
        assert_eq!(names(100, 300, 450), [300, 400, 450]);
        assert_eq!(names(10_000, 0, 800), [800]);
    }

    #[test]
    fn strict_folders_hold_one_step_more_than_their_name_says() {
        let saves = |steps| -> Vec<(u32, u32)> {
            let saves = folders(400, 0, true).saves(steps).into_iter();
            saves.map(|save| (save.after, save.name)).collect()
        };
        assert_eq!(saves(1000), [(401, 400), (801, 800), (1000, 1000)]);
        // Where the loop ends with a save, the script saves the same weights twice.
        assert_eq!(saves(401), [(401, 400), (401, 401)]);
    }
}
