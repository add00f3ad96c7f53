//! Where a model takes its weights from: a map of diffusers' parameter paths, walked like folders.
//!
//! Strict on purpose: a checkpoint loader that passes over a wrong name leaves a layer random and says nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor, Var};

/// Tensors by their diffusers path, for example `down_blocks.0.resnets.1.conv1.weight`.
pub type Weights = BTreeMap<String, Tensor>;

/// Tensors that old checkpoints hold and no model reads.
const NOT_WEIGHTS: &[&str] = &["position_ids"];

#[derive(Debug, thiserror::Error)]
pub enum ParamError {
    #[error("the weight `{path}` is missing; the model's config.json and its weights do not belong together")]
    Missing { path: String },
    #[error("the weight `{path}` has the shape {got:?}, and the model's config.json asks for {expected:?}")]
    Shape {
        path: String,
        expected: Vec<usize>,
        got: Vec<usize>,
    },
    #[error("{} weights belong to no part of the model, the first is `{}`", paths.len(), paths[0])]
    Unused { paths: Vec<String> },
    #[error("the setting `{setting}` of the model's config.json is `{got}`, which is not supported ({supported})")]
    Config {
        setting: &'static str,
        got: String,
        supported: &'static str,
    },
    #[error("the weight `{path}` cannot be taken over")]
    Tensor {
        path: String,
        #[source]
        source: candle_core::Error,
    },
}

enum Source {
    Tensors(Weights),
    Trainable(BTreeMap<String, Var>),
    /// Hands out empty tensors and notes what was asked for.
    Recorder(Mutex<Vec<(String, Vec<usize>)>>),
}

struct Store {
    source: Source,
    used: Mutex<BTreeSet<String>>,
    dtype: DType,
    device: Device,
}

/// A place in the map; cheap to clone.
#[derive(Clone)]
pub struct Params {
    store: Arc<Store>,
    prefix: String,
}

impl Params {
    /// Weights that training changes: copies in `dtype` on `device`, each a variable.
    pub fn trainable(weights: &Weights, dtype: DType, device: &Device) -> Result<Self, ParamError> {
        let vars = convert(weights, dtype, device, |tensor| Var::from_tensor(&tensor))?;
        Ok(Self::new(Source::Trainable(vars), dtype, device))
    }

    /// Weights that stay as they are; no gradient reaches them.
    pub fn frozen(weights: &Weights, dtype: DType, device: &Device) -> Result<Self, ParamError> {
        let tensors = convert(weights, dtype, device, Ok)?;
        Ok(Self::new(Source::Tensors(tensors), dtype, device))
    }

    /// No weights at all: a model built from it computes nothing, but [`Params::recorded`] then lists what it reads.
    pub fn recorder() -> Self {
        Self::new(Source::Recorder(Mutex::default()), DType::F32, &Device::Cpu)
    }

    fn new(source: Source, dtype: DType, device: &Device) -> Self {
        let store = Store {
            source,
            used: Mutex::default(),
            dtype,
            device: device.clone(),
        };
        Self {
            store: Arc::new(store),
            prefix: String::new(),
        }
    }

    /// One level down: `pp("down_blocks.0")`.
    pub fn pp(&self, name: impl Display) -> Self {
        Self {
            store: self.store.clone(),
            prefix: self.path(&name.to_string()),
        }
    }

    /// The tensor `name` at this place, which must have `shape`.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor, ParamError> {
        let (path, shape) = (self.path(name), shape.into());
        let tensor = match &self.store.source {
            Source::Tensors(tensors) => tensors.get(&path),
            Source::Trainable(vars) => vars.get(&path).map(Var::as_tensor),
            Source::Recorder(record) => {
                let empty = Tensor::zeros((), DType::F32, &Device::Cpu).and_then(|zero| zero.broadcast_as(&shape));
                lock(record).push((path.clone(), shape.dims().to_vec()));
                return empty.map_err(|source| ParamError::Tensor { path, source });
            }
        };
        let tensor = tensor.ok_or_else(|| ParamError::Missing { path: path.clone() })?;
        if tensor.shape() != &shape {
            return Err(ParamError::Shape {
                path,
                expected: shape.into_dims(),
                got: tensor.dims().to_vec(),
            });
        }
        lock(&self.store.used).insert(path);
        Ok(tensor.clone())
    }

    /// Call when the model is built: weights that it did not read are an error.
    pub fn finish(&self) -> Result<(), ParamError> {
        let used = lock(&self.store.used);
        let unread = |path: &&String| !used.contains(*path) && !is_not_a_weight(path);
        let paths: Vec<String> = match &self.store.source {
            Source::Tensors(tensors) => tensors.keys().filter(unread).cloned().collect(),
            Source::Trainable(vars) => vars.keys().filter(unread).cloned().collect(),
            Source::Recorder(_) => vec![],
        };
        if paths.is_empty() {
            Ok(())
        } else {
            Err(ParamError::Unused { paths })
        }
    }

    /// The variables by path; empty unless made by [`Params::trainable`].
    pub fn vars(&self) -> BTreeMap<String, Var> {
        match &self.store.source {
            Source::Trainable(vars) => vars.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// What a model built from [`Params::recorder`] asked for, in its order.
    pub fn recorded(&self) -> Vec<(String, Vec<usize>)> {
        match &self.store.source {
            Source::Recorder(record) => lock(record).clone(),
            _ => vec![],
        }
    }

    pub fn dtype(&self) -> DType {
        self.store.dtype
    }

    pub fn device(&self) -> &Device {
        &self.store.device
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }
}

/// Old checkpoints hold some tensors that no network reads.
pub fn is_not_a_weight(path: &str) -> bool {
    NOT_WEIGHTS.iter().any(|name| path.rsplit('.').next() == Some(name))
}

fn convert<T>(
    weights: &Weights,
    dtype: DType,
    device: &Device,
    make: impl Fn(Tensor) -> candle_core::Result<T>,
) -> Result<BTreeMap<String, T>, ParamError> {
    let convert = |tensor: &Tensor| make(tensor.to_device(device)?.to_dtype(dtype)?.contiguous()?);
    weights
        .iter()
        .filter(|(path, _)| !is_not_a_weight(path))
        .map(|(path, tensor)| {
            let made = convert(tensor).map_err(|source| ParamError::Tensor {
                path: path.clone(),
                source,
            })?;
            Ok((path.clone(), made))
        })
        .collect()
}

/// A panic elsewhere cannot leave these sets half-written.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> Weights {
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        BTreeMap::from([
            ("a.weight".to_string(), ones(&[2, 3])),
            ("a.bias".to_string(), ones(&[2])),
            ("text_model.embeddings.position_ids".to_string(), ones(&[1, 77])),
        ])
    }

    #[test]
    fn reads_a_weight_by_its_path_and_checks_the_shape() {
        let params = Params::frozen(&weights(), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(params.pp("a").get((2, 3), "weight").unwrap().dims(), [2, 3]);
        let wrong = params.pp("a").get((3, 2), "weight").unwrap_err().to_string();
        assert!(
            wrong.contains("`a.weight`") && wrong.contains("[2, 3]") && wrong.contains("[3, 2]"),
            "{wrong}"
        );
        let missing = params.pp("b").get(1, "weight").unwrap_err().to_string();
        assert!(missing.contains("`b.weight`"), "{missing}");
    }

    #[test]
    fn an_unread_weight_is_an_error_but_position_ids_are_not() {
        let params = Params::trainable(&weights(), DType::F32, &Device::Cpu).unwrap();
        params.pp("a").get((2, 3), "weight").unwrap();
        let error = params.finish().unwrap_err().to_string();
        assert!(error.contains("a.bias"), "{error}");
        params.pp("a").get(2, "bias").unwrap();
        params.finish().unwrap();
        assert_eq!(params.vars().len(), 2);
    }

    #[test]
    fn trainable_weights_follow_their_variable() {
        let params = Params::trainable(&weights(), DType::F32, &Device::Cpu).unwrap();
        let bias = params.get(2, "a.bias").unwrap();
        params.vars()["a.bias"]
            .set(&Tensor::new(&[5f32, 6.], &Device::Cpu).unwrap())
            .unwrap();
        assert_eq!(bias.to_vec1::<f32>().unwrap(), [5., 6.]);
    }
}
