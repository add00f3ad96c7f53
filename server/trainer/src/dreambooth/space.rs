//! Room on the disk for what a run will leave, asked for before it starts: a run that ends with a full disk is lost time.

use std::path::{Path, PathBuf};

use app::recipe::Recipe;
use candle_core::Tensor;

use super::error::TrainError;
use super::export::Save;
use super::run::{Results, Run};
use crate::formats::{ModelWeights, Tensors, Width};

/// In a model's folder.
pub(super) const LAST_WRITTEN: &str = "args.json";

/// A model file's bytes for a parameter.
fn width_bytes(width: Width) -> u64 {
    match width {
        Width::Half => 2,
        Width::Single | Width::Full => 4,
    }
}

/// Parameters of a model that is about to be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// U-Net, text encoder and VAE.
    pub all: u64,
    pub trained: u64,
}

impl Parameters {
    pub fn of(base: &ModelWeights, recipe: &Recipe) -> Self {
        let count = |tensors: &Tensors| tensors.values().map(|t| t.elem_count() as u64).sum::<u64>();
        let (unet, text_encoder) = (count(&base.unet), count(&base.text_encoder));
        let learning = [
            Some(&base.unet),
            recipe.train_text_encoder.then_some(&base.text_encoder),
        ];
        let learning = learning.into_iter().flatten();
        Self {
            all: unet + text_encoder + count(&base.vae),
            trained: match recipe.lora_rank {
                Some(rank) => learning.map(|network| adapters_of(network, rank)).sum(),
                None => learning.map(count).sum(),
            },
        }
    }
}

/// Parameters of adapters on the attention of a network.
fn adapters_of(network: &Tensors, rank: u32) -> u64 {
    let is_attention = |path: &str| {
        [".attn1.", ".attn2.", ".self_attn."]
            .iter()
            .any(|part| path.contains(part))
    };
    let sides = |(path, tensor): (&String, &Tensor)| match *tensor.dims() {
        [outputs, inputs] if is_attention(path) => (outputs + inputs) as u64,
        _ => 0,
    };
    u64::from(rank) * network.iter().map(sides).sum::<u64>()
}

/// Refuses a run whose models and state cannot fit.
///
/// # Errors
/// `NoSpace` with the numbers. That the file system does not say how full it is is none.
pub fn check(run: &Run, parameters: Parameters) -> Result<(), TrainError> {
    let (folder, needed) = match &run.results {
        Results::SingleFiles => (run.folder.clone(), needed_bytes(parameters, 2, Width::Half)),
        Results::Tutorial(folders) => {
            let missing = |save: &&Save| !is_whole(&folders.output_dir.join(save.name.to_string()));
            let saves = folders.saves(run.recipe.max_train_steps);
            let models = saves.iter().filter(missing).count() as u64;
            // The oldest goes only when the newest is whole.
            let most = folders.keep_last.map_or(models, |keep| models.min(u64::from(keep) + 1));
            // A LoRA is left alone.
            let all = match run.recipe.lora_rank {
                Some(_) => parameters.trained,
                None => parameters.all,
            };
            let parameters = Parameters { all, ..parameters };
            (
                folders.output_dir.clone(),
                needed_bytes(parameters, most, folders.width),
            )
        }
    };
    match free_bytes(&folder) {
        Some(free) if free < needed => Err(TrainError::NoSpace { folder, needed, free }),
        _ => Ok(()),
    }
}

/// Models, and the training state twice (a new one is whole before the old one goes): weights and two moments in f32.
fn needed_bytes(parameters: Parameters, models: u64, width: Width) -> u64 {
    models * parameters.all * width_bytes(width) + 2 * 3 * 4 * parameters.trained
}

/// Left for us on the file system of a folder, or of its nearest parent that exists.
fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = std::path::absolute(folder).ok()?;
    let there: PathBuf = folder.ancestors().find(|path| path.is_dir())?.into();
    let stat = rustix::fs::statvfs(&there).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Holds a model whose last file was written.
pub(super) fn is_whole(folder: &Path) -> bool {
    folder.join(LAST_WRITTEN).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_needs_its_models_and_two_states() {
        let parameters = Parameters { all: 100, trained: 10 };
        assert_eq!(needed_bytes(parameters, 3, Width::Single), 3 * 400 + 240);
        assert_eq!(needed_bytes(parameters, 1, Width::Half), 200 + 240);
    }

    #[test]
    fn adapters_are_on_the_weights_of_attention_alone() {
        let tensor =
            |dims: &[usize]| Tensor::zeros(dims, candle_core::DType::F32, &candle_core::Device::Cpu).expect("zeros");
        let network = Tensors::from([
            ("a.attn1.to_q.weight".into(), tensor(&[5, 7])),
            ("a.attn1.to_out.0.bias".into(), tensor(&[5])),
            ("a.ff.net.2.weight".into(), tensor(&[5, 9])),
        ]);
        assert_eq!(adapters_of(&network, 3), 36);
    }

    #[test]
    fn the_room_of_a_folder_to_be_made_is_its_parents() {
        let dir = tempfile::tempdir().expect("folder");
        assert!(free_bytes(&dir.path().join("not/there/yet")).is_some_and(|free| free > 0));
    }
}
