//! A folder to work in, commands typed into it, and what they leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use app::event::{Event, EventKind};
use image::RgbImage;

pub struct World {
    folder: tempfile::TempDir,
}

/// What a command said and how it ended.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// It did what it was asked for.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// It ended with this status and said all of these words.
    pub fn ends(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for words in words {
            assert!(self.stderr.contains(words), "`{words}` is not in: {}", self.stderr);
        }
    }
}

impl World {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// With so many small photos in `photos`.
    pub fn with_photos(count: u32) -> Self {
        let world = Self::new();
        for number in 0..count {
            world.picture(&format!("photos/{number}.png"), stripes(number, 64, 64));
        }
        world
    }

    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Writes a file, and its folder.
    pub fn write(&self, below: &str, content: impl AsRef<[u8]>) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn copy(&self, from: &Path, below: &str) {
        self.write(below, std::fs::read(from).unwrap());
    }

    /// Saves a picture, by its ending.
    pub fn picture(&self, below: &str, picture: impl Into<image::DynamicImage>) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture.into().save(path).unwrap();
    }

    /// A command line of the trainer in this folder. `"` keeps words together.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(tests::executable("likeness-trainer"));
        command
            .current_dir(self.folder.path())
            .args(words(line))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, line: &str) -> Ran {
        finished(&mut self.command(line))
    }

    /// The flags that all trainings here share, on the small reference model. Later ones win.
    pub fn train_line(flags: &str) -> String {
        format!(
            "train --device cpu --pretrained_model_name_or_path \"{}\" --resolution 64 --train_batch_size 1 \
             --max_train_steps 1 --learning_rate 1e-3 --lr_warmup_steps 0 {flags}",
            tiny_model().display()
        )
    }

    pub fn train(&self, flags: &str) -> Ran {
        self.run(&Self::train_line(flags))
    }

    /// Trains on the photos of a folder, into `output`.
    pub fn train_on(&self, photos: &str, output: &str, flags: &str) -> Output {
        let prompt = "--instance_prompt \"photo of zwx dog\"";
        self.train(&format!(
            "{prompt} --instance_data_dir {photos} --output_dir {output} {flags}"
        ))
        .ok();
        self.output(output)
    }

    pub fn output(&self, below: &str) -> Output {
        Output { path: self.path(below) }
    }
}

/// What a training left.
pub struct Output {
    path: PathBuf,
}

/// What is told of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    pub loss: f32,
    pub instance_loss: f32,
    pub prior_loss: Option<f32>,
    pub learning_rate: f64,
    pub grad_norm: Option<f32>,
}

impl Output {
    pub fn events(&self) -> Vec<EventKind> {
        let log = std::fs::read_to_string(self.path.join(".likeness/events.jsonl")).unwrap();
        let event = |line: &str| serde_json::from_str::<Event>(line).unwrap().kind;
        log.lines().map(event).collect()
    }

    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.events().into_iter().filter_map(|event| match event {
            EventKind::Warning { message, .. } => Some(message),
            _ => None,
        });
        warnings.collect()
    }

    pub fn steps(&self) -> BTreeMap<u32, Told> {
        let steps = self.events().into_iter().filter_map(|event| match event {
            EventKind::Step {
                step,
                loss,
                instance_loss,
                prior_loss,
                learning_rate,
                grad_norm,
                ..
            } => Some((
                step,
                Told {
                    loss,
                    instance_loss,
                    prior_loss,
                    learning_rate,
                    grad_norm,
                },
            )),
            _ => None,
        });
        steps.collect()
    }

    /// Loss of each step.
    pub fn losses(&self) -> BTreeMap<u32, f32> {
        let steps = self.steps().into_iter();
        steps.map(|(step, told)| (step, told.loss)).collect()
    }

    /// Photos and class images that are trained on.
    pub fn pictures(&self) -> (u32, u32) {
        let plan = self.events().into_iter().find_map(|event| match event {
            EventKind::Plan {
                photos, class_images, ..
            } => Some((photos, class_images)),
            _ => None,
        });
        plan.unwrap()
    }

    pub fn recipe(&self) -> serde_json::Value {
        json(&self.path.join(".likeness/recipe.json"))
    }

    pub fn unet(&self, step: u32) -> Vec<u8> {
        self.file(&format!("{step}/unet/diffusion_pytorch_model.safetensors"))
    }

    pub fn file(&self, below: &str) -> Vec<u8> {
        std::fs::read(self.path.join(below)).unwrap()
    }

    pub fn names(&self, below: &str) -> Vec<String> {
        names(&self.path.join(below))
    }
}

pub fn tiny_model() -> PathBuf {
    crate::golden::dir().join("tiny-sd")
}

/// The small reference model with one tensor of one of its files halved.
pub fn model_with_halved(at: &Path, file: &str, tensor: &str) {
    let from = tiny_model();
    for below in ["", "unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        std::fs::create_dir_all(at.join(below)).unwrap();
        for name in names(&from.join(below)) {
            let path = from.join(below).join(&name);
            if path.is_file() {
                std::fs::copy(path, at.join(below).join(name)).unwrap();
            }
        }
    }
    let path = at.join(file);
    let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let value = tensors.get_mut(tensor).unwrap();
    *value = (&*value * 0.5).unwrap();
    candle_core::safetensors::save(&tensors, &path).unwrap();
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn finished(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Stripes whose width and colours depend on the number, and which no mirror maps to themselves.
pub fn stripes(number: u32, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([
            (x * (number + 2) * 3 % 256) as u8,
            (y * 5 % 256) as u8,
            (50 * number % 256) as u8,
        ])
    })
}

/// Splits at spaces, but not between `"`.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut any) = (String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, any) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        words.push(word);
    }
    words
}
