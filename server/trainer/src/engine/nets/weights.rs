//! Weights on their way between checkpoints and a device: by diffusers' paths and with channels first on the one side, by
//! number and with channels last on the other.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, Device, Storage, Tensor};
use rayon::prelude::*;

use super::error::Result;
use super::networks::{Networks, values};
use super::programs::Part;
use crate::engine::adapter::{is_of_adapter, pairs};
use crate::engine::ir::{Param, ParamId};
use crate::engine::layout::{channels_first, channels_last, checkpoint_dims};
use crate::formats::{Lora, LowRank};
use crate::models::params::{ParamError, Weights, is_not_a_weight};

/// Weights that are brought into the engine's layout by all cores together, before the device takes them one by one.
const TURNED_AT_ONCE: usize = 32;

impl Networks {
    /// Takes over a network's weights, by diffusers' paths. Strict: a name that is passed over would leave a layer as
    /// it was and say nothing.
    ///
    /// # Errors
    /// When one is missing, has another shape, or belongs to no layer.
    pub fn load(&mut self, part: Part, weights: &Weights) -> Result<()> {
        let prefix = format!("{}.", part.prefix());
        let mut unread: BTreeMap<&String, &Tensor> =
            (weights.iter()).filter(|(path, _)| !is_not_a_weight(path)).collect();
        let mut found = Vec::new();
        for (param, index) in self.params().params.iter().zip(0..) {
            let Some(path) = path_in(&prefix, param) else {
                continue;
            };
            let Some(tensor) = unread.remove(&path) else {
                return Err(ParamError::Missing { path }.into());
            };
            let expected = checkpoint_dims(&param.dims);
            if tensor.dims() != expected {
                let got = tensor.dims().to_vec();
                return Err(ParamError::Shape { path, expected, got }.into());
            }
            found.push((ParamId(index), path, tensor));
        }
        type Turned = std::result::Result<Vec<(ParamId, Vec<f32>)>, ParamError>;
        let turn = |some: &[(ParamId, String, &Tensor)]| -> Turned {
            let turned = some
                .par_iter()
                .map(|(id, path, tensor)| match weight_to_engine(tensor) {
                    Ok(values) => Ok((*id, values)),
                    Err(source) => Err(ParamError::Tensor {
                        path: path.clone(),
                        source,
                    }),
                });
            turned.collect()
        };
        let mut ready = Vec::new();
        for some in found.chunks(TURNED_AT_ONCE).map(Some).chain([None]) {
            let (session, mut next) = (&mut self.session, Ok(Vec::new()));
            // While the device takes some, the next are turned.
            rayon::in_place_scope(|scope| {
                scope.spawn(|_| next = turn(some.unwrap_or_default()));
                (ready.drain(..)).try_for_each(|(id, values): (ParamId, Vec<f32>)| session.set_weight(id, &values))
            })?;
            ready = next?;
        }
        // The eye has no way up, and a VAE that only decodes has no encoder.
        let in_part = matches!(part, Part::Eye | Part::OtherVae);
        if unread.is_empty() || in_part {
            return Ok(());
        }
        let paths = unread.into_keys().cloned().collect();
        Err(ParamError::Unused { paths }.into())
    }

    /// Gives adapters their first values. Needed once, where the plan has any and no state is restored.
    ///
    /// # Errors
    /// What the device answers.
    pub fn start_adapters(&mut self, seed: u64) -> Result<()> {
        match self.plan.adapter {
            Some(adapter) => Ok(adapter.start(&mut *self.session, seed)?),
            None => Ok(()),
        }
    }

    /// What the adapters add to the networks now; `None` where the plan has none.
    ///
    /// # Errors
    /// What the device answers.
    pub fn lora(&mut self) -> Result<Option<Lora>> {
        let Some(adapter) = self.plan.adapter else {
            return Ok(None);
        };
        let mut lora = Lora::default();
        for (layer, pair) in pairs(self.params()) {
            let low_rank = LowRank {
                down: self.weight(pair.down)?,
                up: self.weight(pair.up)?,
                alpha: adapter.alpha,
            };
            lora.layers.insert(layer, low_rank);
        }
        Ok(Some(lora))
    }

    /// As a checkpoint has it.
    fn weight(&mut self, id: ParamId) -> Result<Tensor> {
        let dims = checkpoint_dims(&self.params().get(id).dims);
        Ok(weight_from_engine(self.session.weight(id)?, &dims)?)
    }

    /// A network's own weights as they are now, without what adapters add to them, by diffusers' paths.
    ///
    /// # Errors
    /// What the device answers.
    pub fn weights(&mut self, part: Part) -> Result<Weights> {
        let prefix = format!("{}.", part.prefix());
        let wanted: Vec<(ParamId, String, Vec<usize>)> = (self.params().params.iter().zip(0..))
            .filter_map(|(param, index)| {
                let path = path_in(&prefix, param)?;
                Some((ParamId(index), path, checkpoint_dims(&param.dims)))
            })
            .collect();
        let turned = Mutex::new(Ok(Weights::new()));
        // While the device gives one, those before it are turned.
        rayon::in_place_scope(|scope| -> Result<()> {
            for (id, path, dims) in wanted {
                let (values, turned) = (self.session.weight(id)?, &turned);
                scope.spawn(move |_| {
                    let weight = weight_from_engine(values, &dims);
                    let mut all = turned.lock().unwrap_or_else(PoisonError::into_inner);
                    match (&mut *all, weight) {
                        (Ok(weights), Ok(weight)) => drop(weights.insert(path, weight)),
                        (all, Err(error)) => *all = Err(error),
                        (Err(_), Ok(_)) => {}
                    }
                });
            }
            Ok(())
        })?;
        Ok(turned.into_inner().unwrap_or_else(PoisonError::into_inner)?)
    }
}

/// A weight's path in the network of `prefix`, if it is one of its own.
fn path_in(prefix: &str, param: &Param) -> Option<String> {
    let path = param.name.strip_prefix(prefix)?;
    (!is_of_adapter(&param.name)).then(|| path.to_string())
}

/// Read where it lies if it is in f32: a large model is copied once less.
fn weight_to_engine(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    let turned = |values: &[f32]| match *tensor.dims() {
        [_, inputs, height, width] => channels_last(values, inputs, height * width),
        _ => values.to_vec(),
    };
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(all)), Some((start, end))) => Ok(turned(&all[start..end])),
        _ => {
            drop(storage);
            Ok(turned(&values(tensor)?))
        }
    }
}

fn weight_from_engine(values: Vec<f32>, checkpoint: &[usize]) -> candle_core::Result<Tensor> {
    let values = match *checkpoint {
        [_, inputs, height, width] => channels_first(&values, inputs, height * width),
        _ => values,
    };
    Tensor::from_vec(values, checkpoint, &Device::Cpu)
}
