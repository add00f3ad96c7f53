//! Networks of a few weights, for tests of what is done with them.

use app::recipe::Precision;

use crate::device::Device;
use crate::engine::ir::Group;
use crate::engine::nets::networks::Networks;
use crate::engine::nets::programs::{Part, Plan};
use crate::engine::session::{Moments, OptimizerSettings};
use crate::models::config::TextEncoderConfig;
use crate::models::{ModelConfig, random_weights};

/// A text encoder that learns, with 8-bit moments.
pub fn tiny_networks() -> Networks {
    let json = r#"{"vocab_size": 600, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 8}"#;
    let config: TextEncoderConfig = serde_json::from_str(json).expect("a configuration");
    let plan = Plan {
        text_encoder: Some(config.clone()),
        trains: [Group::TextEncoder].into(),
        ..Plan::default()
    };
    let settings = OptimizerSettings {
        moments: Moments::EightBit,
        beta1: 0.9,
        beta2: 0.999,
        weight_decay: 1e-2,
        epsilon: 1e-8,
        low_memory: None,
    };
    let session = Device::Cpu
        .session(plan.params().expect("params"), settings, Precision::No)
        .expect("session");
    let mut networks = Networks::new(plan, session);
    let weights = random_weights(ModelConfig::TextEncoder(&config), 1).expect("weights");
    networks.load(Part::TextEncoder, &weights).expect("loads");
    networks
}
