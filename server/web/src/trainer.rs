//! Which trainer fits this machine, and what it says about models.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use app::api::{ApiProblem, DeviceInfo, ModelInfo, VaeInfo, hub_codes};
use app::recipe::STARTER;
use tokio::sync::{OnceCell, Semaphore};

use crate::hub_token::{self, HubToken};

/// A driver that hangs must not hang the server.
const DOCTOR_LIMIT: Duration = Duration::from_secs(30);
/// A 4 GB file on a slow disk is hashed by nobody: only headers are read.
const INSPECT_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    #[error("no trainer: {0} is not there; `make build` makes it, or name one with --trainer")]
    Missing(PathBuf),
    #[error("cannot start {path}")]
    Start { path: PathBuf, source: std::io::Error },
    #[error("{path} {command}: no answer within {} s", .limit.as_secs())]
    Slow {
        path: PathBuf,
        command: &'static str,
        limit: Duration,
    },
    #[error("{said}")]
    Refused {
        said: String,
        /// One of `hub_codes`, when it is the Hub that does not give a model.
        hub: Option<&'static str>,
    },
    #[error("{path} {command}: its answer is not understood; is it of another version?")]
    Answer {
        path: PathBuf,
        command: &'static str,
        source: serde_json::Error,
    },
}

/// The trainer that is used.
#[derive(Clone, Debug)]
pub struct Trainer {
    pub path: PathBuf,
    pub device: DeviceInfo,
}

/// When a model's files last changed: an answer about it is good until then.
type Seen = (Option<SystemTime>, ModelInfo);

pub struct Trainers {
    named: Option<PathBuf>,
    chosen: OnceCell<Trainer>,
    inspected: Mutex<HashMap<String, Seen>>,
    at_once: Semaphore,
    pub hub_token: HubToken,
    /// Folder where people put models of their own.
    models: PathBuf,
}

impl Trainers {
    pub fn new(named: Option<PathBuf>, models: PathBuf, hub_token: HubToken) -> Self {
        Self {
            named,
            chosen: OnceCell::new(),
            inspected: Mutex::default(),
            at_once: Semaphore::new(2),
            hub_token,
            models,
        }
    }

    /// Finds the trainer that fits, once; a failure is tried again next time.
    ///
    /// # Errors
    /// When there is none that starts.
    pub async fn chosen(&self) -> Result<&Trainer, TrainerError> {
        self.chosen
            .get_or_try_init(|| async {
                let trainer = choose(self.named.as_deref()).await?;
                let device = &trainer.device;
                tracing::info!(
                    "trains with {}: {} ({})",
                    trainer.path.display(),
                    device.name,
                    device.why
                );
                Ok(trainer)
            })
            .await
    }

    /// What the model is; `revision` is of Hub ids. A relative path is looked for in the models folder.
    ///
    /// # Errors
    /// When the trainer cannot read it, in the trainer's words.
    pub async fn inspect(&self, reference: &str, revision: Option<&str>) -> Result<ModelInfo, TrainerError> {
        let reference = self.resolve(reference);
        let changed = std::fs::metadata(&reference).and_then(|m| m.modified()).ok();
        let seen = self
            .inspected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&reference)
            .cloned();
        if let Some((at, info)) = seen
            && at == changed
        {
            return Ok(info);
        }
        let more: Vec<&str> = revision.iter().flat_map(|revision| ["--revision", revision]).collect();
        let info: ModelInfo = self.ask_about(&reference, &more).await?;
        // The Hub is asked again: what is here of its model grows while it is downloaded.
        if info.hub.is_none() {
            let mut inspected = self.inspected.lock().unwrap_or_else(PoisonError::into_inner);
            inspected.insert(reference, (changed, info.clone()));
        }
        Ok(info)
    }

    /// What the VAE is, by itself or as part of a whole model. A relative path is looked for in the models folder.
    ///
    /// # Errors
    /// When the trainer cannot read it, in the trainer's words.
    pub async fn inspect_vae(&self, reference: &str) -> Result<VaeInfo, TrainerError> {
        self.ask_about(&self.resolve(reference), &["--part", "vae"]).await
    }

    async fn ask_about<T: serde::de::DeserializeOwned>(
        &self,
        reference: &str,
        more: &[&str],
    ) -> Result<T, TrainerError> {
        let trainer = self.chosen().await?;
        let _permit = self.at_once.acquire().await;
        let args = [&["inspect", "--model", reference], more].concat();
        ask(&trainer.path, "inspect", &args, self.hub_token.entered(), INSPECT_LIMIT).await
    }

    /// The path as the trainer will be given it, wherever it runs.
    pub fn resolve(&self, reference: &str) -> String {
        let reference = reference.trim();
        let inside = self.models.join(reference);
        let is_name = reference != STARTER && !Path::new(reference).is_absolute();
        if is_name && inside.exists() {
            return inside.to_string_lossy().into_owned();
        }
        reference.to_owned()
    }

    /// The starter, then what lies in the models folder, by name; what cannot be read is left out and logged.
    pub async fn models(&self) -> Vec<ModelInfo> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.models).into_iter().flatten().flatten() {
            let path = entry.path();
            let single = path.extension().is_some_and(|e| e == "safetensors" || e == "ckpt");
            if single || path.join("model_index.json").is_file() {
                names.push(path.to_string_lossy().into_owned());
            }
        }
        names.sort();
        names.insert(0, STARTER.to_owned());
        let mut models = Vec::new();
        for name in names {
            match self.inspect(&name, None).await {
                Ok(model) => models.push(model),
                Err(e) => tracing::warn!("left out of the models: {name}: {}", crate::error::chain(&e)),
            }
        }
        models
    }
}

/// Beside the running executable, or as named: the CUDA build when a GPU answers and it works, else the CPU build.
///
/// # Errors
/// When there is none that starts.
pub async fn choose(named: Option<&Path>) -> Result<Trainer, TrainerError> {
    if let Some(path) = named {
        let path = std::fs::canonicalize(path).map_err(|_| TrainerError::Missing(path.to_owned()))?;
        return Ok(asked(path, "it was named with --trainer").await);
    }
    let cpu = sibling("likeness-trainer");
    let cuda = sibling("likeness-trainer-cuda");
    let why = match (gpu_driver_present(), cuda.is_file()) {
        (true, true) => match doctor(&cuda).await {
            Ok(device) if device.trainer == "cuda" => return Ok(Trainer { path: cuda, device }),
            Ok(device) => format!("the CUDA trainer would not use the GPU: {}", device.why),
            Err(e) => format!("the CUDA trainer does not work: {}", crate::error::chain(&e)),
        },
        (true, false) => "there is a GPU but no likeness-trainer-cuda; `make build CUDA=1` makes it".into(),
        (false, _) => "no NVIDIA driver answers".into(),
    };
    if !cpu.is_file() {
        return Err(TrainerError::Missing(cpu));
    }
    Ok(asked(cpu, &why).await)
}

/// A trainer that is taken in any case; its doctor only adds words.
async fn asked(path: PathBuf, why: &str) -> Trainer {
    let device = match doctor(&path).await {
        Ok(device) => DeviceInfo {
            why: why.to_owned(),
            ..device
        },
        Err(e) => DeviceInfo {
            trainer: "cpu".into(),
            name: format!(
                "CPU, {} threads",
                std::thread::available_parallelism().map_or(1, usize::from)
            ),
            memory_bytes: None,
            why: format!("{why}; its doctor does not answer: {}", crate::error::chain(&e)),
        },
    };
    Trainer { path, device }
}

/// An executable in the folder of this one.
fn sibling(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name(name)
}

/// Cheap signs of a driver (Linux, then WSL2); whether it works is for the CUDA trainer's doctor to say.
fn gpu_driver_present() -> bool {
    ["/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg"]
        .iter()
        .any(|path| Path::new(path).exists())
}

async fn doctor(path: &Path) -> Result<DeviceInfo, TrainerError> {
    ask(path, "doctor", &["doctor", "--json"], None, DOCTOR_LIMIT).await
}

/// Runs one of the trainer's commands that answer with a JSON line. `token` is for the Hub.
async fn ask<T: serde::de::DeserializeOwned>(
    path: &Path,
    command: &'static str,
    args: &[&str],
    token: Option<String>,
    limit: Duration,
) -> Result<T, TrainerError> {
    let mut child = tokio::process::Command::new(path);
    child.args(args).stdin(Stdio::null()).kill_on_drop(true);
    child.envs(token.map(|token| (hub_token::VARIABLE, token)));
    let path = path.to_owned();
    let output: Output = match tokio::time::timeout(limit, child.output()).await {
        Err(_) => return Err(TrainerError::Slow { path, command, limit }),
        Ok(Err(source)) => return Err(TrainerError::Start { path, source }),
        Ok(Ok(output)) => output,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
    if !output.status.success() {
        let problem = serde_json::from_str::<ApiProblem>(line).ok();
        let hub = problem.and_then(|problem| hub_codes::ALL.into_iter().find(|code| *code == problem.code));
        return Err(TrainerError::Refused {
            said: last_words(&output),
            hub,
        });
    }
    serde_json::from_str(line).map_err(|source| TrainerError::Answer { path, command, source })
}

/// The last line of stderr: by convention the error with its causes.
fn last_words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().rev().find(|l| !l.trim().is_empty());
    let words = line.map(|l| l.trim().trim_start_matches("error: ").trim_start_matches("Error: "));
    words.map_or_else(|| format!("the trainer ended with {}", output.status), str::to_owned)
}

/// Becomes the trainer, for `likeness train ...`. Only returns when that fails.
pub fn become_trainer(trainer: &Trainer, command: &str, args: &[std::ffi::OsString]) -> TrainerError {
    let source = std::process::Command::new(&trainer.path).arg(command).args(args).exec();
    let path = trainer.path.clone();
    TrainerError::Start { path, source }
}
