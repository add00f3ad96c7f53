//! DreamBooth on the starter as anyone can measure it: the trainer is run as the server runs it, and its own meters are
//! read from the job's log.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use app::event::{Event, EventKind};
use app::recipe::{Concept, RecipeDraft, STARTER, SamplePlan, class_prompt, instance_prompt};
use image::RgbImage;

use crate::executable;

/// More than a person would look at, so that the meters depend less on a single picture.
const SAMPLES: u32 = 8;
/// Of the pictures that are drawn for a person to compare; the same for every model.
const SEED: u64 = 7;

/// Photos of one thing, and the word for its kind.
#[derive(Clone, Debug)]
pub struct Subject {
    pub name: String,
    pub class: String,
    pub photos: PathBuf,
}

impl Subject {
    /// A folder of photos whose name says what they show: of `cat2` or `duck_toy` the class is `cat` or `duck toy`.
    ///
    /// # Errors
    /// When the folder has no name.
    pub fn of_folder(photos: &Path) -> anyhow::Result<Self> {
        let photos = std::path::absolute(photos)?;
        let name = photos.file_name().context("a folder of photos needs a name")?;
        let name = name.to_string_lossy().into_owned();
        let class = name.trim_end_matches(|c: char| c.is_ascii_digit()).replace('_', " ");
        Ok(Self { name, class, photos })
    }

    /// Every folder in `folder`, by name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn all_in(folder: &Path) -> anyhow::Result<Vec<Self>> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut paths = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
        paths.retain(|path| path.is_dir());
        paths.sort();
        paths.iter().map(|path| Self::of_folder(path)).collect()
    }

    pub fn instance_prompt(&self) -> String {
        instance_prompt("zwx", &self.class)
    }

    pub fn class_prompt(&self) -> String {
        class_prompt(&self.class)
    }

    /// The starter's own settings with prior preservation, read by the meters before and after.
    pub fn recipe(&self) -> RecipeDraft {
        let defaults = trainer::defaults::recipe(STARTER);
        RecipeDraft {
            concepts: vec![Concept {
                instance_prompt: self.instance_prompt(),
                instance_data_dir: self.photos.to_string_lossy().into_owned(),
                class_prompt: Some(self.class_prompt()),
                class_data_dir: Some("class-images".into()),
            }],
            samples: SamplePlan {
                save_sample_prompt: self.instance_prompt(),
                n_save_sample: SAMPLES,
                sample_interval: defaults.max_train_steps,
                ..defaults.samples
            },
            ..defaults
        }
    }
}

/// What the meters said of one round of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    pub step: u32,
    pub likeness: f32,
    pub drift: f32,
    pub diversity: f32,
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Outcome {
    folder: PathBuf,
    /// Of every round, the untrained model's first.
    pub readings: Vec<Reading>,
    /// Median.
    pub ms_per_step: f32,
}

/// Trains `recipe` in `folder`, which must be new.
///
/// # Errors
/// When training fails, or the meters said nothing.
pub fn train(recipe: &RecipeDraft, folder: &Path) -> anyhow::Result<Outcome> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("recipe.json"), serde_json::to_vec_pretty(recipe)?)?;
    run(Command::new(executable("likeness-trainer"))
        .args(["job", "--device", "cpu", "--dir"])
        .arg(folder))?;
    let log = std::fs::read_to_string(folder.join("events.jsonl"))?;
    let (mut readings, mut times) = (Vec::new(), Vec::new());
    for line in log.lines() {
        match serde_json::from_str::<Event>(line)?.kind {
            EventKind::Step { ms, .. } => times.push(ms),
            EventKind::Meters {
                step,
                likeness,
                drift,
                diversity,
                ..
            } => readings.push(Reading {
                step,
                likeness,
                drift: drift.context("drift was not measured")?,
                diversity: diversity.context("diversity was not measured")?,
            }),
            _ => {}
        }
    }
    ensure!(readings.len() >= 2, "the meters were not read before and after");
    times.sort_by(f32::total_cmp);
    Ok(Outcome {
        folder: folder.into(),
        readings,
        ms_per_step: times[times.len() / 2],
    })
}

impl Outcome {
    /// Of the untrained model.
    pub fn before(&self) -> Reading {
        self.readings[0]
    }

    /// Of the finished model.
    pub fn after(&self) -> Reading {
        self.readings[self.readings.len() - 1]
    }

    /// Sample `index` of the subject's prompt as it was after `step`.
    ///
    /// # Errors
    /// When there is none.
    pub fn sample(&self, step: u32, index: usize) -> anyhow::Result<RgbImage> {
        open(&self.folder.join(format!("samples/{step}/{index}.png")))
    }

    /// The exported model.
    ///
    /// # Errors
    /// When there is none.
    pub fn model(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("export");
        let entries = std::fs::read_dir(&folder)?;
        let paths = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
        let file = paths
            .into_iter()
            .find(|p| p.extension().is_some_and(|e| e == "safetensors"));
        file.with_context(|| format!("no model in {}", folder.display()))
    }
}

/// What `model` makes of a prompt, from the same seeds as every other model.
///
/// # Errors
/// When it cannot draw.
pub fn draw(model: &Path, prompt: &str, count: usize, out: &Path) -> anyhow::Result<Vec<RgbImage>> {
    let plan = trainer::defaults::recipe(STARTER).samples;
    run(Command::new(executable("likeness-trainer"))
        .args(["sample", "--device", "cpu", "--prompt", prompt, "--model"])
        .arg(model)
        .args(["--guidance_scale", &plan.save_guidance_scale.to_string()])
        .args(["--steps", &plan.save_infer_steps.to_string()])
        .args([
            "--seed",
            &SEED.to_string(),
            "--num_samples",
            &count.to_string(),
            "--out",
        ])
        .arg(out))?;
    (0..count)
        .map(|index| open(&out.join(format!("{index}.png"))))
        .collect()
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let done = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    ensure!(
        done.status.success(),
        "{command:?}: {}: {}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<RgbImage> {
    let picture = image::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(picture.to_rgb8())
}
