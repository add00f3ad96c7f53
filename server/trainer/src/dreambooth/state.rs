//! The training state: all that a resumed run needs, in one file that is whole or not there.
//!
//! The file is a safetensors file of f32 tensors: `p.NAME` parameters, `m.NAME` and `v.NAME` moments. Randomness needs
//! no state: it is a function of seed and step.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use safetensors::tensor::Metadata;

use super::error::TrainError;
use crate::optim::AdamW;
use crate::optim::adamw::Moments;
use crate::store;

/// Everything that changes in training.
pub struct TrainingState {
    /// Steps done; always one that ended with an update.
    pub step: u32,
    /// `unet.` and, when it is trained, `text_encoder.` before diffusers' path. f32.
    pub vars: BTreeMap<String, Var>,
    pub adam: AdamW,
}

/// What a state file says about itself.
#[derive(Debug, PartialEq)]
pub struct StateHeader {
    pub step: u32,
    pub updates: u64,
    /// Of the recipe that the state belongs to.
    pub recipe_sha256: String,
}

pub fn state_path(folder: &Path) -> PathBuf {
    folder.join("state").join("training.safetensors")
}

/// Longest header that is read; a state of SD 1.5 has some 400 kB.
const HEADER_LIMIT_BYTES: u64 = 16 << 20;

impl TrainingState {
    /// Writes the state file of a job folder.
    ///
    /// # Errors
    /// When it cannot be written; the former one is then still there.
    pub fn save(&self, folder: &Path, recipe_sha256: &str) -> Result<(), TrainError> {
        let names: Vec<&String> = self.vars.keys().collect();
        let header = self.header(&names, recipe_sha256);
        store::write_atomic_with(&state_path(folder), |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(header.as_bytes())?;
            for var in self.vars.values() {
                let values = var.as_tensor().flatten_all().and_then(|t| t.to_vec1::<f32>());
                write_values(out, &values.map_err(io::Error::other)?)?;
            }
            for pick in [first, second] {
                for name in &names {
                    let moments = self.adam.moments.get(*name);
                    let moments = moments.ok_or_else(|| io::Error::other(format!("{name} has no moments")))?;
                    write_values(out, pick(moments))?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    fn header(&self, names: &[&String], recipe_sha256: &str) -> String {
        let mut entries = serde_json::Map::new();
        let about = serde_json::json!({
            "format": "likeness training state 1",
            "step": self.step.to_string(),
            "updates": self.adam.updates.to_string(),
            "recipe_sha256": recipe_sha256,
        });
        entries.insert("__metadata__".into(), about);
        let mut at = 0;
        for kind in ["p", "m", "v"] {
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

    /// Reads the state file back into variables and optimizer, which were made from the same recipe.
    ///
    /// # Errors
    /// When it is damaged or holds other tensors.
    pub fn restore(&mut self, folder: &Path) -> Result<(), TrainError> {
        let path = state_path(folder);
        let bad = |why: String| TrainError::State {
            path: path.clone(),
            why,
        };
        let io = |source: io::Error| bad(source.to_string());
        let mut file = BufReader::with_capacity(1 << 20, File::open(&path).map_err(io)?);
        let (header, metadata) = read_header(&mut file).map_err(bad)?;
        let names: Vec<String> = self.vars.keys().cloned().collect();
        let mut offset = 0;
        for kind in ["p", "m", "v"] {
            for name in &names {
                let var = &self.vars[name];
                let key = format!("{kind}.{name}");
                let info = metadata.info(&key).ok_or_else(|| bad(format!("`{key}` is missing")))?;
                let bytes = 4 * var.elem_count();
                if info.shape != var.dims() || info.data_offsets != (offset, offset + bytes) {
                    return Err(bad(format!("`{key}` has another shape or place")));
                }
                offset += bytes;
                let values = read_values(&mut file, var.elem_count()).map_err(io)?;
                match kind {
                    "p" => var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu)?.to_device(var.device())?)?,
                    kind => {
                        let moments = self.adam.moments.get_mut(name);
                        let moments = moments.ok_or_else(|| bad(format!("`{name}` is not trained")))?;
                        *(if kind == "m" {
                            &mut moments.first
                        } else {
                            &mut moments.second
                        }) = values;
                    }
                }
            }
        }
        self.step = header.step;
        self.adam.updates = header.updates;
        Ok(())
    }
}

/// What the state file of a job folder says, if there is one.
///
/// # Errors
/// When it is there but cannot be read.
pub fn peek(folder: &Path) -> Result<Option<StateHeader>, TrainError> {
    let path = state_path(folder);
    let bad = |why: String| TrainError::State {
        path: path.clone(),
        why,
    };
    match File::open(&path) {
        Ok(mut file) => Ok(Some(read_header(&mut file).map_err(bad)?.0)),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(bad(source.to_string())),
    }
}

/// Removes the state: the run is over, or starts anew.
///
/// # Errors
/// When it is there but cannot be removed.
pub fn discard(folder: &Path) -> Result<(), TrainError> {
    let path = state_path(folder);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(store::sync_folder(&folder.join("state"))?),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(store::StoreError { path, source }.into()),
    }
}

fn first(moments: &Moments) -> &[f32] {
    &moments.first
}

fn second(moments: &Moments) -> &[f32] {
    &moments.second
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
    };
    Ok((header, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::AdamWSettings;
    use app::recipe::Adam;

    fn state(value: f32) -> TrainingState {
        let var = |n: usize| Var::from_vec(vec![value; n], n, &Device::Cpu).expect("var");
        let vars = BTreeMap::from([("unet.a".to_owned(), var(3)), ("unet.b".to_owned(), var(20_000))]);
        let adam = AdamW::new(AdamWSettings::from(&Adam::default()), &vars);
        TrainingState { step: 0, vars, adam }
    }

    #[test]
    fn a_saved_state_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().expect("folder");
        let mut saved = state(0.1);
        saved.step = 7;
        saved.adam.updates = 5;
        if let Some(moments) = saved.adam.moments.get_mut("unet.b") {
            moments.first[19_999] = 0.3;
            moments.second[0] = 1e-30;
        }
        saved.save(folder.path(), "abc").expect("saves");
        let header = peek(folder.path()).expect("reads").expect("is there");
        assert_eq!(
            (header.step, header.updates, header.recipe_sha256.as_str()),
            (7, 5, "abc")
        );
        let mut read = state(9.0);
        read.restore(folder.path()).expect("restores");
        assert_eq!((read.step, read.adam.updates), (7, 5));
        assert_eq!(read.adam.moments, saved.adam.moments);
        assert_eq!(read.vars["unet.a"].to_vec1::<f32>().expect("values"), [0.1; 3]);
        discard(folder.path()).expect("discards");
        assert_eq!(peek(folder.path()).expect("reads"), None);
    }

    #[test]
    fn a_cut_state_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        state(0.1).save(folder.path(), "abc").expect("saves");
        let path = state_path(folder.path());
        let bytes = std::fs::read(&path).expect("reads");
        std::fs::write(&path, &bytes[..bytes.len() - 100]).expect("cuts");
        assert!(matches!(
            state(0.0).restore(folder.path()),
            Err(TrainError::State { .. })
        ));
    }
}
