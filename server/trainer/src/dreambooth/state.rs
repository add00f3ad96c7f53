//! The training state: all that a resumed run needs, in one file that is whole or not there.
//!
//! The file is a safetensors file: `p.NAME` weights in f32 as they lie in the engine, `m.NAME` the optimizer's memory in
//! bytes, `a.NAME` averaged weights where the run keeps them. Randomness needs no state: it is a function of seed and
//! step. The newest state of a run is `state/training.safetensors`; those that are kept beyond it are
//! `checkpoints/STEP.safetensors`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use super::ema::Ema;
use super::error::TrainError;
use super::learner::Learner;
use super::scaler::LossScaler;
use crate::engine::nets::networks::Networks;
use crate::engine::session::{Algorithms, EngineError};
use crate::store::{self, StoreError};

/// Everything that changes in training, but for the weights and the optimizer's memory, which the session holds.
pub struct TrainingState {
    /// Steps done.
    pub step: u32,
    /// Optimizer updates done.
    pub updates: u64,
    pub scaler: LossScaler,
    pub ema: Option<Ema>,
    pub mean_loss: MeanLoss,
    /// Settings that the recipe did not ask for and the run took so that it fits, by their flags' names.
    pub turned_on: Vec<String>,
}

/// Mean of all losses since the run began, a row counting as one: what the tutorial's script logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MeanLoss {
    sum: f64,
    rows: u64,
}

impl MeanLoss {
    pub fn add(&mut self, loss: f32, rows: usize) {
        self.sum += f64::from(loss) * rows as f64;
        self.rows += rows as u64;
    }

    pub fn value(self) -> f32 {
        (self.sum / self.rows.max(1) as f64) as f32
    }
}

/// What a state file says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct StateHeader {
    pub step: u32,
    pub updates: u64,
    /// Of the recipe that the state belongs to.
    pub recipe_sha256: String,
    /// As the state has it.
    pub turned_on: Vec<String>,
    scaler: Option<LossScaler>,
    mean_loss: Option<MeanLoss>,
    /// Those that the run used so far.
    pub algorithms: Option<Algorithms>,
}

/// The newest state of a job folder.
pub fn state_path(folder: &Path) -> PathBuf {
    folder.join("state").join("training.safetensors")
}

const FORMAT: &str = "likeness training state 2";

/// Longest header that is read; a state of SD 1.5 has some 400 kB.
const HEADER_LIMIT_BYTES: u64 = 16 << 20;

impl TrainingState {
    /// Writes the newest state of a job folder.
    ///
    /// # Errors
    /// When it cannot be written; the former one is then still there.
    pub fn save(&self, networks: &mut Networks, folder: &Path, recipe_sha256: &str) -> Result<(), TrainError> {
        let trained = networks.trained();
        let moments = networks.session().moments()?;
        let mut entries = Entries::default();
        for (_, param) in &trained {
            entries.add(format!("p.{}", param.name), "F32", &param.dims, 4 * param.len());
        }
        for (name, bytes) in &moments {
            entries.add(format!("m.{name}"), "U8", &[bytes.len()], bytes.len());
        }
        let averaged = if self.ema.is_some() { &trained[..] } else { &[] };
        for (_, param) in averaged {
            entries.add(format!("a.{}", param.name), "F32", &[param.len()], 4 * param.len());
        }
        let algorithms = networks.session().algorithms();
        let header = self.header(entries, recipe_sha256, algorithms.as_ref());
        store::write_atomic_with(&state_path(folder), |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(header.as_bytes())?;
            for (id, _) in &trained {
                write_values(out, &networks.session().weight(*id).map_err(io::Error::other)?)?;
            }
            for bytes in moments.values() {
                out.write_all(bytes)?;
            }
            for (id, _) in averaged {
                write_values(out, &networks.session().average(*id).map_err(io::Error::other)?)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Does something with the averaged weights in place of the trained ones, where the run keeps an average.
    ///
    /// # Errors
    /// What `act` answers, or when the weights cannot be exchanged.
    pub fn with_averages<T>(
        &mut self,
        learner: &mut Learner,
        act: impl FnOnce(&mut Learner, &Self) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        self.exchange_averages(&mut learner.networks)?;
        let done = act(learner, self);
        self.exchange_averages(&mut learner.networks)?;
        done
    }

    fn exchange_averages(&mut self, networks: &mut Networks) -> Result<(), TrainError> {
        match &self.ema {
            Some(_) => Ok(networks.session().exchange_averages()?),
            None => Ok(()),
        }
    }

    fn header(&self, entries: Entries, recipe_sha256: &str, algorithms: Option<&Algorithms>) -> String {
        let Entries { mut json, .. } = entries;
        let about = serde_json::json!({
            "format": FORMAT,
            "step": self.step.to_string(),
            "updates": self.updates.to_string(),
            "recipe_sha256": recipe_sha256,
            "scaler": serde_json::json!(self.scaler).to_string(),
            "mean_loss": serde_json::json!(self.mean_loss).to_string(),
            "turned_on": serde_json::json!(self.turned_on).to_string(),
            "algorithms": serde_json::json!(algorithms).to_string(),
        });
        json.insert("__metadata__".into(), about);
        let mut json = serde_json::Value::Object(json).to_string();
        // Tensor data starts at a multiple of 8 bytes.
        json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
        json
    }

    /// Reads a state file back into the session and here; both were made for the same tensors.
    ///
    /// # Errors
    /// When it is damaged or holds other tensors.
    pub fn restore(&mut self, networks: &mut Networks, path: &Path) -> Result<(), TrainError> {
        let bad = |why: String| TrainError::State { path: path.into(), why };
        let io = |source: io::Error| bad(source.to_string());
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(io)?);
        let (header, metadata) = read_header(&mut file).map_err(bad)?;
        let data = file.stream_position().map_err(io)?;
        let tensors = metadata.tensors();
        let mut read = |key: &str, info: &TensorInfo| -> Result<Vec<u8>, TrainError> {
            let (start, end) = info.data_offsets;
            // The buffer stays where reading simply goes on.
            let ahead = (data + start as u64) as i64 - file.stream_position().map_err(io)? as i64;
            file.seek_relative(ahead).map_err(io)?;
            let mut bytes = Vec::new();
            let read = (&mut file)
                .take((end - start) as u64)
                .read_to_end(&mut bytes)
                .map_err(io)?;
            match read == end - start {
                true => Ok(bytes),
                false => Err(bad(format!("`{key}` is cut off"))),
            }
        };
        let of_kind = |kind: &'static str| {
            let named = tensors
                .iter()
                .filter_map(move |(key, info)| Some((key.strip_prefix(kind)?, *info)));
            named.collect::<BTreeMap<&str, &TensorInfo>>()
        };
        let (weights, averages) = (of_kind("p."), of_kind("a."));
        let trained = networks.trained();
        if weights.len() != trained.len() {
            return Err(bad("it trains other parts of the model".into()));
        }
        for (id, param) in trained {
            let name = &param.name;
            let info = weights
                .get(name.as_str())
                .ok_or_else(|| bad(format!("`p.{name}` is missing")))?;
            if info.shape != param.dims {
                return Err(bad(format!("`p.{name}` has another shape")));
            }
            let values = f32s(&read(name, info)?);
            networks.session().set_weight(id, &values)?;
            if self.ema.is_some() {
                // A run that began without an average begins one here.
                let average = match averages.get(name.as_str()) {
                    Some(info) => f32s(&read(name, info)?),
                    None => values,
                };
                networks.session().set_average(id, &average)?;
            }
        }
        let mut moments = BTreeMap::new();
        for (name, info) in of_kind("m.") {
            moments.insert(name.to_owned(), read(name, info)?);
        }
        let other = |error: EngineError| bad(format!("the optimizer cannot go on from it: {error}"));
        networks.session().restore_moments(&moments).map_err(other)?;
        self.step = header.step;
        self.updates = header.updates;
        if let Some(scaler) = header.scaler.filter(|saved| saved.is_on() == self.scaler.is_on()) {
            self.scaler = scaler;
        }
        self.mean_loss = header.mean_loss.unwrap_or_default();
        Ok(())
    }
}

/// A safetensors header's tensors, one after the other.
#[derive(Default)]
struct Entries {
    json: serde_json::Map<String, serde_json::Value>,
    end: usize,
}

impl Entries {
    fn add(&mut self, name: String, dtype: &str, dims: &[usize], bytes: usize) {
        let start = self.end;
        self.end += bytes;
        let entry = serde_json::json!({"dtype": dtype, "shape": dims, "data_offsets": [start, self.end]});
        self.json.insert(name, entry);
    }
}

/// What a state file says, if there is one.
///
/// # Errors
/// When it is there but cannot be read.
pub fn peek(path: &Path) -> Result<Option<StateHeader>, TrainError> {
    let bad = |why: String| TrainError::State { path: path.into(), why };
    match File::open(path) {
        Ok(mut file) => Ok(Some(read_header(&mut file).map_err(bad)?.0)),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(bad(source.to_string())),
    }
}

/// Removes the newest state: the run is over, or starts anew. Kept ones stay.
///
/// # Errors
/// When it is there but cannot be removed.
pub fn discard(folder: &Path) -> Result<(), TrainError> {
    let path = state_path(folder);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(store::sync_folder(&folder.join("state"))?),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StoreError { path, source }.into()),
    }
}

/// Keeps the newest state under its step, and of all that are kept the `limit` with the highest steps.
///
/// # Errors
/// When the folder cannot be written.
pub fn keep(folder: &Path, step: u32, limit: usize) -> Result<(), TrainError> {
    let kept = folder.join("checkpoints");
    store::make_folder(&kept)?;
    let path = kept.join(format!("{step}.safetensors"));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TrainError::from(StoreError { path, source })
    };
    if path.exists() {
        std::fs::remove_file(&path).map_err(failed(&path))?;
    }
    // Its next version gets a new file, so a link is as good as a copy, and takes no room of its own.
    let newest = state_path(folder);
    std::fs::hard_link(&newest, &path)
        .or_else(|_cannot_link| std::fs::copy(&newest, &path).map(|_bytes| ()))
        .map_err(failed(&path))?;
    let mut all = checkpoints(folder)?;
    all.truncate(all.len().saturating_sub(limit));
    for (_, path) in all {
        std::fs::remove_file(&path).map_err(failed(&path))?;
    }
    Ok(store::sync_folder(&kept)?)
}

/// The kept states of a run, ascending by step.
fn checkpoints(folder: &Path) -> Result<Vec<(u32, PathBuf)>, TrainError> {
    let kept = folder.join("checkpoints");
    let entries = match std::fs::read_dir(&kept) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StoreError { path: kept, source }.into()),
        Ok(entries) => entries,
    };
    let mut all: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step = path.file_name()?.to_str()?.strip_suffix(".safetensors")?.parse().ok()?;
            Some((step, path))
        })
        .collect();
    all.sort();
    Ok(all)
}

/// The state of the highest step in a job folder, or in the folder of a tutorial's run.
///
/// # Errors
/// When a file there cannot be read.
pub fn newest(folder: &Path) -> Result<Option<PathBuf>, TrainError> {
    let mut found: Option<(u32, PathBuf)> = None;
    for folder in [folder.to_owned(), folder.join(".likeness")] {
        let path = state_path(&folder);
        let running = peek(&path)?.map(|header| (header.step, path));
        for candidate in checkpoints(&folder)?.into_iter().chain(running) {
            if found.as_ref().is_none_or(|(step, _)| candidate.0 >= *step) {
                found = Some(candidate);
            }
        }
    }
    Ok(found.map(|(_, path)| path))
}

fn write_values(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 << 14);
    for run in values.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(run.iter().flat_map(|v| v.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn read_header(file: &mut impl Read) -> Result<(StateHeader, Metadata), String> {
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| e.to_string())?;
    let bytes = u64::from_le_bytes(length);
    if bytes > HEADER_LIMIT_BYTES {
        return Err("it is not a training state".into());
    }
    let mut json = Vec::new();
    file.take(bytes).read_to_end(&mut json).map_err(|e| e.to_string())?;
    let metadata: Metadata = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
    let about = metadata.metadata().as_ref();
    let field = |name: &str| {
        about
            .and_then(|m| m.get(name))
            .ok_or_else(|| format!("it does not say `{name}`"))
    };
    let number = |name: &str| -> Result<u64, String> { field(name)?.parse().map_err(|_no| format!("bad `{name}`")) };
    if field("format")? != FORMAT {
        return Err("another version of the trainer saved it".into());
    }
    let header = StateHeader {
        step: u32::try_from(number("step")?).map_err(|_large| "bad `step`".to_owned())?,
        updates: number("updates")?,
        recipe_sha256: field("recipe_sha256")?.clone(),
        turned_on: (field("turned_on").ok())
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default(),
        // States of before these were kept do not say them.
        scaler: field("scaler").ok().and_then(|json| serde_json::from_str(json).ok()),
        mean_loss: field("mean_loss").ok().and_then(|json| serde_json::from_str(json).ok()),
        algorithms: field("algorithms")
            .ok()
            .and_then(|json| serde_json::from_str(json).ok()),
    };
    Ok((header, metadata))
}

#[cfg(test)]
mod tests;
