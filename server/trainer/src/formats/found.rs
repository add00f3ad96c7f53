//! A model whose files are open: every tensor has been found and has its shape, and none has been read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::architecture::Parameter;
use super::configs::{ConfigFiles, Configs};
use super::error::ModelError;
use super::tensor_file::TensorFile;
use super::weights::{ModelWeights, Tensors};
use crate::tokenizer::TokenizerFiles;

pub(super) struct Found {
    /// Of the model.
    pub path: PathBuf,
    pub config_files: ConfigFiles,
    pub configs: Configs,
    pub tokenizer_files: TokenizerFiles,
    /// U-Net, VAE, text encoder.
    pub networks: [Network; 3],
    pub files: Vec<TensorFile>,
    /// See `ModelWeights`.
    pub ignored: usize,
    pub guess: Option<String>,
}

/// The tensors of one network.
pub(super) struct Network {
    /// Which of the files they are in.
    pub file: usize,
    pub tensors: Vec<Located>,
}

/// One tensor of a network and where it is.
pub(super) struct Located {
    parameter: Parameter,
    place: Place,
}

/// Where a file has a tensor.
pub(super) struct Place {
    pub name: String,
    /// Which third of what is there, for query, key and value in one tensor.
    pub third: Option<usize>,
}

impl Place {
    /// All of a tensor.
    pub fn whole(name: String) -> Self {
        Self { name, third: None }
    }
}

impl Found {
    /// Reads it.
    pub fn read(self) -> Result<ModelWeights, ModelError> {
        let [unet, vae, text] = &self.networks;
        let read = |network: &Network| read(&self.files[network.file], &network.tensors);
        let networks = [read(unet)?, read(vae)?, read(text)?];
        let mut weights = ModelWeights::new(&self.path, self.config_files, self.tokenizer_files, networks)?;
        weights.ignored = self.ignored;
        weights.guess = self.guess;
        Ok(weights)
    }
}

/// Finds the tensors of one network and checks their shapes and types. `names` leads from what `place_of` says to the
/// name in the file; what is found is taken out of it, so that what remains belongs to no parameter.
pub(super) fn locate(
    file: &TensorFile,
    names: &mut BTreeMap<String, String>,
    parameters: Vec<Parameter>,
    place_of: impl Fn(&Parameter) -> Place,
) -> Result<Vec<Located>, ModelError> {
    let places: Vec<Place> = parameters.iter().map(place_of).collect();
    let mut missing = places
        .iter()
        .map(|place| &place.name)
        .filter(|name| !names.contains_key(*name));
    if let Some(first) = missing.next() {
        let others: BTreeSet<&String> = missing.filter(|name| *name != first).collect();
        return Err(ModelError::Missing {
            path: file.path().into(),
            tensor: first.clone(),
            others: others.len(),
        });
    }
    let mut tensors = Vec::with_capacity(parameters.len());
    for (parameter, place) in parameters.into_iter().zip(&places) {
        let place = Place {
            name: names[&place.name].clone(),
            third: place.third,
        };
        let located = Located { parameter, place };
        located.check(file)?;
        tensors.push(located);
    }
    for place in &places {
        names.remove(&place.name);
    }
    Ok(tensors)
}

impl Located {
    fn check(&self, file: &TensorFile) -> Result<(), ModelError> {
        let (parameter, stored) = (&self.parameter, &self.place.name);
        let entry = &file.entries()[stored];
        let mut expected = parameter.shape.clone();
        if self.place.third.is_some() {
            expected[0] *= 3;
        }
        // Old files have the VAE's attention as linear layers or as 1x1 convolutions, whatever their layout.
        let either = parameter.is_conv_in_original && entry.shape == parameter.original_shape();
        if entry.shape != expected && !either {
            return Err(ModelError::Shape {
                path: file.path().into(),
                tensor: stored.clone(),
                got: entry.shape.clone(),
                expected,
            });
        }
        if !matches!(entry.dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            return Err(ModelError::DType {
                path: file.path().into(),
                tensor: stored.clone(),
                got: entry.dtype.as_str().into(),
            });
        }
        Ok(())
    }

    fn read(&self, file: &TensorFile) -> Result<Tensor, ModelError> {
        let stored = file.read(&self.place.name)?;
        let shape = self.parameter.shape.as_slice();
        let own = match self.place.third {
            None => stored.reshape(shape),
            // A copy, so that the whole isn't kept for its third.
            Some(third) => stored
                .narrow(0, third * shape[0], shape[0])
                .and_then(|part| part.force_contiguous()),
        };
        own.map_err(|source| ModelError::Tensor {
            path: file.path().into(),
            tensor: self.place.name.clone(),
            source: Box::new(source),
        })
    }
}

/// Reads one network under the paths of diffusers.
pub(super) fn read(file: &TensorFile, tensors: &[Located]) -> Result<Tensors, ModelError> {
    // All at once: one core alone copies no faster than a disk reads.
    let read = |located: &Located| Ok((located.parameter.path.clone(), located.read(file)?));
    tensors.par_iter().map(read).collect()
}
