//! Which weights a model has, and first values for a model that is to be trained from nothing.

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

use super::config::{TextEncoderConfig, UNetConfig, VaeConfig};
use super::params::{ParamError, Weights};
use crate::engine::layout::checkpoint_dims;
use crate::engine::nets::error::Result;
use crate::engine::nets::programs::Plan;

/// One of the three networks.
#[derive(Clone, Copy, Debug)]
pub enum ModelConfig<'a> {
    UNet(&'a UNetConfig),
    TextEncoder(&'a TextEncoderConfig),
    Vae(&'a VaeConfig),
}

/// Every weight's path and shape. The networks themselves are asked, so that there is one list and not two.
///
/// # Errors
/// When the configuration asks for what there is none of.
pub fn parameter_shapes(config: ModelConfig) -> Result<Vec<(String, Vec<usize>)>> {
    let mut plan = Plan::default();
    match config {
        ModelConfig::UNet(config) => plan.unet = Some(config.clone()),
        ModelConfig::TextEncoder(config) => plan.text_encoder = Some(config.clone()),
        ModelConfig::Vae(config) => plan.vae = Some(config.clone()),
    }
    let named = plan.params()?.params.into_iter().filter_map(|param| {
        let (_network, path) = param.name.split_once('.')?;
        Some((path.to_string(), checkpoint_dims(&param.dims)))
    });
    Ok(named.collect())
}

/// Weights (f32, CPU) to train a model from. A weight's values depend on `seed` and its path alone.
///
/// The last layer of each residual branch and of the network starts at zero, so that the network starts as the
/// identity and its first steps are calm; CLIP's start is its paper's.
///
/// # Errors
/// As [`parameter_shapes`].
pub fn random_weights(config: ModelConfig, seed: u64) -> Result<Weights> {
    let std_of = |path: &str, shape: &[usize]| match config {
        ModelConfig::TextEncoder(config) => clip_std(path, config),
        ModelConfig::UNet(_) => conv_std(path, shape, &[".conv2", ".proj_out", "conv_out"]),
        // The autoencoder has no noise to predict around: a zero output layer would only delay it.
        ModelConfig::Vae(_) => conv_std(path, shape, &[".conv2", ".to_out.0"]),
    };
    parameter_shapes(config)?
        .into_iter()
        .map(|(path, shape)| {
            let values = values(&path, &shape, std_of(&path, &shape), seed);
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).map_err(|source| ParamError::Tensor {
                path: path.clone(),
                source,
            })?;
            Ok((path, tensor))
        })
        .collect()
}

fn values(path: &str, shape: &[usize], std: f64, seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    if path.ends_with(".bias") {
        return vec![0.; count];
    }
    if shape.len() == 1 {
        return vec![1.; count];
    }
    if std == 0. {
        return vec![0.; count];
    }
    let digest: [u8; 32] = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(path)
        .finalize()
        .into();
    let mut generator = rand_chacha::ChaCha8Rng::from_seed(digest);
    let mut normal = || -> f64 { StandardNormal.sample(&mut generator) };
    (0..count).map(|_| (normal() * std) as f32).collect()
}

/// 1 / sqrt(fan in), zero for layers whose path ends in one of `zero`.
fn conv_std(path: &str, shape: &[usize], zero: &[&str]) -> f64 {
    let layer = path.trim_end_matches(".weight");
    if zero.iter().any(|name| layer.ends_with(name)) {
        return 0.;
    }
    let fan_in: usize = shape[1..].iter().product();
    1. / (fan_in as f64).sqrt()
}

/// Radford et al. 2021 as their code initialises it.
fn clip_std(path: &str, config: &TextEncoderConfig) -> f64 {
    let (width, layers) = (config.hidden_size as f64, config.num_hidden_layers as f64);
    let residual = width.powf(-0.5) * (2. * layers).powf(-0.5);
    match path {
        _ if path.contains("token_embedding") => 0.02,
        _ if path.contains("position_embedding") => 0.01,
        _ if path.contains("q_proj") || path.contains("k_proj") || path.contains("v_proj") => width.powf(-0.5),
        _ if path.contains("fc1") => (2. * width).powf(-0.5),
        _ => residual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::CpuSession;
    use crate::engine::nets::networks::Networks;
    use crate::engine::nets::programs::Part;
    use crate::engine::session::{Moments, OptimizerSettings};

    fn text_config() -> TextEncoderConfig {
        serde_json::from_str(
            r#"{"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 4}"#,
        )
        .unwrap()
    }

    /// Networks with fresh weights on the CPU.
    fn fresh(plan: Plan, part: Part, config: ModelConfig) -> Networks {
        let settings = OptimizerSettings {
            moments: Moments::F32,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.,
            epsilon: 1e-8,
            low_memory: None,
        };
        let session = CpuSession::new(plan.params().unwrap(), settings).unwrap();
        let mut networks = Networks::new(plan, Box::new(session));
        networks.load(part, &random_weights(config, 3).unwrap()).unwrap();
        networks
    }

    #[test]
    fn a_fresh_model_has_every_weight_and_takes_it() {
        let config = text_config();
        let plan = Plan {
            text_encoder: Some(config.clone()),
            ..Plan::default()
        };
        let mut model = fresh(plan, Part::TextEncoder, ModelConfig::TextEncoder(&config));
        assert_eq!(model.text(&[1, 2, 3], 1, 1).unwrap().dims(), [1, 3, 16]);
    }

    #[test]
    fn values_depend_on_seed_and_path_alone() {
        let value = |path, seed| values(path, &[4, 4], 1., seed);
        assert_eq!(value("a.weight", 1), value("a.weight", 1));
        assert_ne!(value("a.weight", 1), value("a.weight", 2));
        assert_ne!(value("a.weight", 1), value("b.weight", 1));
    }

    fn sd2_unet() -> UNetConfig {
        serde_json::from_str(
            r#"{"sample_size": 8, "block_out_channels": [16, 32], "cross_attention_dim": 24, "norm_num_groups": 8,
                "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": [2, 4],
                "use_linear_projection": true}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_unet_of_sd_2_projects_linearly_and_starts_as_nothing() {
        let config = sd2_unet();
        let shapes = parameter_shapes(ModelConfig::UNet(&config)).unwrap();
        assert!(shapes.contains(&("down_blocks.0.attentions.0.proj_in.weight".to_string(), vec![16, 16])));
        let plan = Plan {
            unet: Some(config.clone()),
            ..Plan::default()
        };
        let mut model = fresh(plan, Part::UNet, ModelConfig::UNet(&config));
        let ones = |shape: &[usize]| Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let prediction = model
            .predict(&ones(&[2, 4, 7, 5]), &[1., 1.], &ones(&[2, 3, 24]))
            .unwrap();
        assert_eq!(prediction.dims(), [2, 4, 7, 5]);
        assert_eq!(
            prediction.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(),
            0.
        );
    }
}
