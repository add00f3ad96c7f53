//! The training state: all that a resumed run needs, in one file that is whole or not there.
//!
//! The file is a safetensors file of f32 tensors: `p.NAME` parameters, `m.NAME` and `v.NAME` moments, `a.NAME` averaged
//! parameters where the run keeps them. Randomness needs no state: it is a function of seed and step. The newest state of
//! a run is `state/training.safetensors`; those that are kept beyond it are `checkpoints/STEP.safetensors`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};

use super::error::TrainError;
use super::scaler::LossScaler;
use crate::optim::{AdamW, Ema};
use crate::store::{self, StoreError};

/// Everything that changes in training.
pub struct TrainingState {
    /// Steps done.
    pub step: u32,
    /// `unet.` and, when it is trained, `text_encoder.` before diffusers' path. f32.
    pub vars: BTreeMap<String, Var>,
    pub adam: AdamW,
    pub scaler: LossScaler,
    pub ema: Option<Ema>,
    pub mean_loss: MeanLoss,
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
    scaler: Option<LossScaler>,
    mean_loss: Option<MeanLoss>,
}

/// The newest state of a job folder.
pub fn state_path(folder: &Path) -> PathBuf {
    folder.join("state").join("training.safetensors")
}

/// Longest header that is read; a state of SD 1.5 has some 400 kB.
const HEADER_LIMIT_BYTES: u64 = 16 << 20;

impl TrainingState {
    /// Writes the newest state of a job folder.
    ///
    /// # Errors
    /// When it cannot be written; the former one is then still there.
    pub fn save(&self, folder: &Path, recipe_sha256: &str) -> Result<(), TrainError> {
        let names: Vec<&String> = self.vars.keys().collect();
        let header = self.header(&names, recipe_sha256);
        store::write_atomic_with(&state_path(folder), |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(header.as_bytes())?;
            for kind in self.kinds() {
                for name in &names {
                    let values = self.values(kind, name);
                    write_values(out, &values.map_err(io::Error::other)?)?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Does something with the averaged weights in place of the trained ones, where the run keeps an average.
    ///
    /// # Errors
    /// What `act` answers, or when the weights cannot be exchanged.
    pub fn with_averages<T>(&mut self, act: impl FnOnce(&Self) -> Result<T, TrainError>) -> Result<T, TrainError> {
        self.exchange_averages()?;
        let done = act(self);
        self.exchange_averages()?;
        done
    }

    fn exchange_averages(&mut self) -> candle_core::Result<()> {
        match &mut self.ema {
            Some(ema) => ema.exchange(&self.vars),
            None => Ok(()),
        }
    }

    fn kinds(&self) -> &'static [&'static str] {
        match self.ema {
            Some(_) => &["p", "m", "v", "a"],
            None => &["p", "m", "v"],
        }
    }

    fn values(&self, kind: &str, name: &str) -> candle_core::Result<Vec<f32>> {
        let moments = self.adam.moments.get(name);
        let averaged = self.ema.as_ref().and_then(|ema| ema.averaged.get(name));
        match (kind, moments, averaged) {
            ("m", Some(moments), _) => Ok(moments.first.clone()),
            ("v", Some(moments), _) => Ok(moments.second.clone()),
            ("a", _, Some(averaged)) => Ok(averaged.clone()),
            ("p", ..) => self.vars[name].as_tensor().flatten_all()?.to_vec1(),
            _ => candle_core::bail!("{name} has no {kind}"),
        }
    }

    fn header(&self, names: &[&String], recipe_sha256: &str) -> String {
        let mut entries = serde_json::Map::new();
        let about = serde_json::json!({
            "format": "likeness training state 1",
            "step": self.step.to_string(),
            "updates": self.adam.updates.to_string(),
            "recipe_sha256": recipe_sha256,
            "scaler": serde_json::json!(self.scaler).to_string(),
            "mean_loss": serde_json::json!(self.mean_loss).to_string(),
        });
        entries.insert("__metadata__".into(), about);
        let mut at = 0;
        for kind in self.kinds() {
            for name in names {
                let dims = self.vars[*name].dims();
                let end = at + 4 * dims.iter().product::<usize>();
                let entry = serde_json::json!({"dtype": "F32", "shape": dims, "data_offsets": [at, end]});
                entries.insert(format!("{kind}.{name}"), entry);
                at = end;
            }
        }
        let mut json = serde_json::Value::Object(entries).to_string();
        // Tensor data starts at a multiple of 8 bytes.
        json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
        json
    }

    /// Reads a state file back into variables and optimizer, which were made for the same tensors.
    ///
    /// # Errors
    /// When it is damaged or holds other tensors.
    pub fn restore(&mut self, path: &Path) -> Result<(), TrainError> {
        let bad = |why: String| TrainError::State { path: path.into(), why };
        let io = |source: io::Error| bad(source.to_string());
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(io)?);
        let (header, metadata) = read_header(&mut file).map_err(bad)?;
        let data = file.stream_position().map_err(io)?;
        let tensors = metadata.tensors();
        let trained = tensors.keys().filter(|key| key.starts_with("p."));
        if trained.count() != self.vars.len() {
            return Err(bad("it trains other parts of the model".into()));
        }
        let averaged = tensors.keys().any(|key| key.starts_with("a."));
        let mut read = |kind: &str, name: &str, dims: &[usize]| -> Result<Vec<f32>, TrainError> {
            let key = format!("{kind}.{name}");
            let info = tensors.get(&key).ok_or_else(|| bad(format!("`{key}` is missing")))?;
            let count = dims.iter().product();
            if info.shape != dims || info.data_offsets.1 - info.data_offsets.0 != 4 * count {
                return Err(bad(format!("`{key}` has another shape")));
            }
            let at = data + info.data_offsets.0 as u64;
            // The buffer stays where reading simply goes on.
            let ahead = at as i64 - file.stream_position().map_err(io)? as i64;
            file.seek_relative(ahead).map_err(io)?;
            read_values(&mut file, count).map_err(io)
        };
        for (name, var) in &self.vars {
            let values = Tensor::from_vec(read("p", name, var.dims())?, var.dims(), &Device::Cpu)?;
            var.set(&values.to_device(var.device())?)?;
        }
        for kind in ["m", "v"] {
            for (name, var) in &self.vars {
                let values = read(kind, name, var.dims())?;
                let moments = self.adam.moments.entry(name.clone()).or_default();
                *(if kind == "m" {
                    &mut moments.first
                } else {
                    &mut moments.second
                }) = values;
            }
        }
        if let Some(ema) = &mut self.ema {
            // A run that began without an average begins one here.
            let kind = if averaged { "a" } else { "p" };
            for (name, var) in &self.vars {
                ema.averaged.insert(name.clone(), read(kind, name, var.dims())?);
            }
        }
        self.step = header.step;
        self.adam.updates = header.updates;
        if let Some(scaler) = header.scaler.filter(|saved| saved.is_on() == self.scaler.is_on()) {
            self.scaler = scaler;
        }
        self.mean_loss = header.mean_loss.unwrap_or_default();
        Ok(())
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

fn read_values(file: &mut impl Read, count: usize) -> io::Result<Vec<f32>> {
    let mut values = Vec::with_capacity(count);
    let mut bytes = vec![0; 4 << 14];
    while values.len() < count {
        let run = &mut bytes[..4 * (count - values.len()).min(1 << 14)];
        file.read_exact(run)?;
        values.extend(
            run.chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        );
    }
    Ok(values)
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
    let header = StateHeader {
        step: u32::try_from(number("step")?).map_err(|_large| "bad `step`".to_owned())?,
        updates: number("updates")?,
        recipe_sha256: field("recipe_sha256")?.clone(),
        // States of before these were kept do not say them.
        scaler: field("scaler").ok().and_then(|json| serde_json::from_str(json).ok()),
        mean_loss: field("mean_loss").ok().and_then(|json| serde_json::from_str(json).ok()),
    };
    Ok((header, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::AdamWSettings;
    use app::recipe::{Adam, Precision};

    fn state(value: f32) -> TrainingState {
        let var = |n: usize| Var::from_vec(vec![value; n], n, &Device::Cpu).expect("var");
        let vars = BTreeMap::from([("unet.a".to_owned(), var(3)), ("unet.b".to_owned(), var(20_000))]);
        let adam = AdamW::new(AdamWSettings::from(&Adam::default()), &vars);
        TrainingState {
            step: 0,
            ema: Some(Ema::new(0.99, &vars).expect("begins")),
            vars,
            adam,
            scaler: LossScaler::new(Precision::Fp16),
            mean_loss: MeanLoss::default(),
        }
    }

    #[test]
    fn a_saved_state_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().expect("folder");
        let mut saved = state(0.1);
        saved.step = 7;
        saved.adam.updates = 5;
        saved.scaler.updated(true).expect("goes on");
        saved.mean_loss.add(0.7, 4);
        if let Some(moments) = saved.adam.moments.get_mut("unet.b") {
            moments.first[19_999] = 0.3;
            moments.second[0] = 1e-30;
        }
        if let Some(ema) = &mut saved.ema {
            ema.averaged.insert("unet.a".into(), vec![0.5, 0.6, 0.7]);
        }
        saved.save(folder.path(), "abc").expect("saves");
        let path = state_path(folder.path());
        let header = peek(&path).expect("reads").expect("is there");
        assert_eq!(
            (header.step, header.updates, header.recipe_sha256.as_str()),
            (7, 5, "abc")
        );
        let mut read = state(9.0);
        read.restore(&path).expect("restores");
        assert_eq!((read.step, read.adam.updates), (7, 5));
        assert_eq!(read.adam.moments, saved.adam.moments);
        assert_eq!((&read.ema, &read.scaler), (&saved.ema, &saved.scaler));
        assert_eq!(read.mean_loss, saved.mean_loss);
        assert_eq!(read.vars["unet.a"].to_vec1::<f32>().expect("values"), [0.1; 3]);
        discard(folder.path()).expect("discards");
        assert_eq!(peek(&path).expect("reads"), None);
    }

    #[test]
    fn an_average_that_was_not_saved_begins_at_the_weights() {
        let folder = tempfile::tempdir().expect("folder");
        let mut saved = state(0.1);
        saved.ema = None;
        saved.save(folder.path(), "abc").expect("saves");
        let mut read = state(9.0);
        read.restore(&state_path(folder.path())).expect("restores");
        assert_eq!(read.ema.expect("is kept").averaged["unet.a"], [0.1; 3]);
    }

    #[test]
    fn a_cut_state_and_one_of_other_tensors_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        state(0.1).save(folder.path(), "abc").expect("saves");
        let path = state_path(folder.path());
        let mut fewer = state(0.0);
        fewer.vars.remove("unet.b");
        assert!(matches!(fewer.restore(&path), Err(TrainError::State { .. })));
        let bytes = std::fs::read(&path).expect("reads");
        std::fs::write(&path, &bytes[..bytes.len() - 100]).expect("cuts");
        assert!(matches!(state(0.0).restore(&path), Err(TrainError::State { .. })));
    }

    #[test]
    fn the_last_states_are_kept_and_the_newest_is_found() {
        let folder = tempfile::tempdir().expect("folder");
        let mut saved = state(0.1);
        assert_eq!(newest(folder.path()).expect("reads"), None);
        for step in [90, 100, 110] {
            saved.step = step;
            saved.save(folder.path(), "abc").expect("saves");
            keep(folder.path(), step, 2).expect("keeps");
        }
        let kept = |step: u32| folder.path().join(format!("checkpoints/{step}.safetensors"));
        let there: Vec<bool> = [90, 100, 110].map(|step| kept(step).exists()).to_vec();
        assert_eq!(there, [false, true, true]);
        assert_eq!(peek(&kept(100)).expect("reads").map(|header| header.step), Some(100));
        assert_eq!(newest(folder.path()).expect("reads"), Some(state_path(folder.path())));
        discard(folder.path()).expect("discards");
        assert_eq!(newest(folder.path()).expect("reads"), Some(kept(110)));
    }

    #[test]
    fn the_scripts_mean_counts_rows() {
        let mut mean = MeanLoss::default();
        mean.add(1.0, 4);
        mean.add(4.0, 2);
        assert_eq!(mean.value(), 2.0);
    }
}
