//! Adapters on whole networks: what they add, what they learn, and that nothing else does.

use std::collections::BTreeMap;

use super::*;
use crate::engine::autodiff::{Backward, backward};
use crate::engine::cpu::CpuSession;
use crate::engine::ir::{Group, Kind, Program};
use crate::engine::nets::text_encoder::text_encoder;
use crate::engine::nets::unet::{UNetInputs, unet};
use crate::engine::reference::Reference;
use crate::engine::session::{Data, Moments, OptimizerSettings, Update};
use crate::engine::testing::{Case, noise};
use crate::models::config::{TextEncoderConfig, UNetConfig};

const ADAPTER: Adapter = Adapter { rank: 3, alpha: 6. };

const SETTINGS: OptimizerSettings = OptimizerSettings {
    moments: Moments::F32,
    beta1: 0.9,
    beta2: 0.999,
    weight_decay: 0.01,
    epsilon: 1e-8,
    low_memory: None,
};

/// Prompt to prediction; the text encoder learns only with an adapter.
fn dreambooth(b: &mut Builder, adapter: Option<Adapter>) -> ValueId {
    let text: TextEncoderConfig = serde_json::from_str(
        r#"{"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 6}"#,
    )
    .unwrap();
    let config: UNetConfig = serde_json::from_str(
        r#"{"sample_size": 8, "block_out_channels": [4, 8], "cross_attention_dim": 4, "norm_num_groups": 2,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 2}"#,
    )
    .unwrap();
    let scope = |prefix, group| Scope::new(prefix, group, false).with_adapter(adapter);
    let ids = b.input("ids", &[2, 5], Kind::Ids);
    let context = text_encoder(b, &text, ids, 1, &scope("text_encoder", Group::TextEncoder)).unwrap();
    let latents = b.input("latents", &[2, 5, 6, 4], Kind::Activation);
    let time = b.input("time", &[2, 4], Kind::Activation);
    let inputs = UNetInputs { latents, time, context };
    unet(b, &config, inputs, &scope("unet", Group::UNet)).unwrap()
}

/// Weights, inputs, and the program of one step: `losses` and `predicted` come out.
struct World {
    params: ParamTable,
    weights: Vec<Vec<f32>>,
    program: Program,
}

impl World {
    fn new(adapter: Option<Adapter>) -> Self {
        let mut params = ParamTable::default();
        let mut b = Builder::new(&mut params);
        let predicted = dreambooth(&mut b, adapter);
        b.output("predicted", predicted);
        let target = b.input("target", &[2, 5, 6, 4], Kind::F32);
        let weights = b.input("weights", &[2], Kind::F32);
        let scale = b.input("scale", &[1], Kind::F32);
        let (_, dpredicted) = b.mse(predicted, target, weights, scale);
        let forward = b.finish().unwrap();
        let program = backward(forward, &params, &[(predicted, dpredicted)], Backward::default()).unwrap();
        let weights = (params.params.iter().enumerate())
            .map(|(index, param)| {
                let spread = (param.len() as f32 / param.dims[0] as f32).sqrt().recip();
                let values = noise(param.len(), index as u64 + 1);
                values.iter().map(|v| *v as f32 * spread + 0.1).collect()
            })
            .collect();
        Self {
            params,
            weights,
            program,
        }
    }

    fn inputs(&self) -> BTreeMap<String, Vec<f64>> {
        let of = |(seed, (name, id)): (usize, (&String, &ValueId))| {
            let value = self.program.value(*id);
            let mut values = noise(value.len(), 50 + seed as u64);
            if value.kind == Kind::Ids {
                values.iter_mut().for_each(|v| *v = (v.abs() * 7.).floor());
            }
            // f32 holds them exactly, so that the session is given the same.
            values.iter_mut().for_each(|v| *v = f64::from(*v as f32));
            (name.clone(), values)
        };
        self.program.inputs.iter().enumerate().map(of).collect()
    }

    /// In f64: the prediction, and the gradient of each weight.
    fn reference(&self) -> (Vec<f64>, Vec<Vec<f64>>) {
        let wide = |values: &Vec<f32>| values.iter().map(|&v| f64::from(v)).collect();
        let weights = self.weights.iter().map(wide).collect();
        let mut reference = Reference::new(&self.params, weights).unwrap();
        let values = reference.run(&self.program, &self.inputs()).unwrap();
        (
            values.output("predicted").unwrap().to_vec(),
            reference.gradients.clone(),
        )
    }

    fn session(&self) -> (CpuSession, crate::engine::session::ProgramId) {
        let mut session = CpuSession::new(self.params.clone(), SETTINGS).unwrap();
        for (index, values) in self.weights.iter().enumerate() {
            session.set_weight(ParamId(index as u32), values).unwrap();
        }
        let id = session.compile(self.program.clone()).unwrap();
        for (name, values) in self.inputs() {
            if name == "ids" {
                let ids: Vec<u32> = values.iter().map(|v| *v as u32).collect();
                session.write(id, &name, Data::Ids(&ids)).unwrap();
            } else {
                let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
                session.write(id, &name, Data::F32(&values)).unwrap();
            }
        }
        (session, id)
    }

    fn index(&self, name: &str) -> usize {
        self.params.params.iter().position(|param| param.name == name).unwrap()
    }
}

/// Largest difference by the largest expected value; NaN where either is.
fn relative(got: &[f32], want: &[f64]) -> f64 {
    let worst = |max: f64, v: f64| if v > max || v.is_nan() { v } else { max };
    let largest = want.iter().map(|v| v.abs()).fold(0., worst);
    let differences = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs());
    assert_eq!(got.len(), want.len());
    differences.fold(0., worst) / largest
}

#[test]
fn every_gradient_agrees_with_central_differences() {
    Case::new(|b, _| dreambooth(b, Some(ADAPTER))).check(1);
}

#[test]
fn the_session_agrees_with_the_reference() {
    let world = World::new(Some(ADAPTER));
    let (predicted, gradients) = world.reference();
    let (mut session, program) = world.session();
    session.run(program).unwrap();
    assert!(relative(&session.read(program, "predicted").unwrap(), &predicted) < 1e-5);
    let pairs = pairs(&world.params);
    // Eight in each of four transformers, one down, one in the middle and two up, and four in each of two layers.
    assert_eq!(pairs.len(), 4 * 8 + 2 * 4);
    let (mut all, mut expected) = (Vec::new(), Vec::new());
    for (layer, Pair { down, up }) in pairs {
        for id in [down, up] {
            let (got, want) = (session.gradient(id).unwrap(), &gradients[id.0 as usize]);
            // Those of keys are small differences of large numbers.
            let error = relative(&got, want);
            assert!(error < 2e-3, "{layer}: {error}");
            all.extend(got);
            expected.extend(want);
        }
    }
    assert!(relative(&all, &expected) < 1e-5);
}

#[test]
fn merged_into_the_base_they_give_the_same_prediction() {
    let adapted = World::new(Some(ADAPTER));
    let scale = adapted.index("adapter.scale.weight");
    let mut adapted = adapted;
    let noise = Noise::new(1);
    adapted.weights[scale] = (ADAPTER.first_values(adapted.params.get(ParamId(scale as u32)), 0, &noise)).unwrap();
    let mut merged = World::new(None);
    for (index, param) in adapted.params.params.iter().enumerate() {
        if !is_of_adapter(&param.name) {
            let to = merged.index(&param.name);
            merged.weights[to] = adapted.weights[index].clone();
        }
    }
    let apart = merged.reference().0;
    for (layer, Pair { down, up }) in pairs(&adapted.params) {
        let to = merged.index(&format!("{layer}.weight"));
        let inputs = merged.params.params[to].dims[1];
        let [down, up] = [down, up].map(|id| &adapted.weights[id.0 as usize]);
        for (index, weight) in merged.weights[to].iter_mut().enumerate() {
            let (output, input) = (index / inputs, index % inputs);
            let through = |r: usize| up[output * ADAPTER.rank + r] * down[r * inputs + input];
            *weight += 2. * (0..ADAPTER.rank).map(through).sum::<f32>();
        }
    }
    let (want, got) = (adapted.reference().0, merged.reference().0);
    let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<_>>();
    // Weights merged in f32.
    assert!(relative(&narrow(&got), &want) < 1e-6);
    assert!(relative(&narrow(&apart), &want) > 1e-2, "the adapters add nothing");
}

#[test]
fn training_starts_at_the_base_model_and_moves_the_adapters_alone() {
    let world = World::new(Some(ADAPTER));
    let (mut session, program) = world.session();
    ADAPTER.start(&mut session, 7).unwrap();
    let weights = |session: &mut CpuSession| -> Vec<Vec<f32>> {
        let ids = 0..world.params.params.len() as u32;
        ids.map(|id| session.weight(ParamId(id)).unwrap()).collect()
    };
    let start = weights(&mut session);
    for number in 1..3 {
        let update = Update {
            learning_rates: BTreeMap::from([(Group::UNet, 1e-2), (Group::TextEncoder, 1e-2)]),
            max_grad_norm: 1.,
            loss_scale: 1.,
            number,
        };
        session.run_and_update(program, &update).unwrap();
        for (index, param) in world
            .params
            .params
            .iter()
            .enumerate()
            .filter(|(_, param)| param.trained)
        {
            let gradient = session.gradient(ParamId(index as u32)).unwrap();
            let is_zero = gradient.iter().all(|g| *g == 0.);
            let waits = number == 1 && waits_for_the_other_half(&param.name);
            assert_eq!(is_zero, waits, "{} at update {number}", param.name);
        }
        if number == 1 {
            let mut base = World::new(None);
            for (index, param) in world.params.params.iter().enumerate() {
                if !is_of_adapter(&param.name) {
                    let to = base.index(&param.name);
                    base.weights[to] = start[index].clone();
                }
            }
            let predicted = session.read(program, "predicted").unwrap();
            assert!(relative(&predicted, &base.reference().0) < 1e-5);
        }
    }
    for ((param, before), after) in world.params.params.iter().zip(&start).zip(weights(&mut session)) {
        assert_eq!(param.trained, *before != after, "{}", param.name);
    }
}

#[test]
fn first_values_are_a_function_of_the_seed() {
    let param = |name: &str, dims: [usize; 2]| Param {
        name: name.to_string(),
        dims: dims.to_vec(),
        trained: true,
        group: Group::UNet,
    };
    let values = |param: &Param, number, seed| ADAPTER.first_values(param, number, &Noise::new(seed)).unwrap();
    let down = param("unet.to_q.lora_A.weight", [3, 400]);
    let first = values(&down, 4, 1);
    assert_eq!(first, values(&down, 4, 1));
    assert_ne!(first, values(&down, 5, 1));
    assert_ne!(first, values(&down, 4, 2));
    // Uniform in +-1/20: its mean square is a third of the square of the bound.
    assert!(first.iter().all(|v| v.abs() <= 0.05));
    let mean_square = first.iter().map(|v| v * v).sum::<f32>() / 1200.;
    assert!((mean_square - 0.0025 / 3.).abs() < 1e-4, "{mean_square}");
    assert_eq!(values(&param("unet.to_q.lora_B.weight", [5, 3]), 0, 1), [0.; 15]);
    let diagonal = [2., 0., 0., 0., 2., 0., 0., 0., 2.];
    assert_eq!(values(&param("adapter.scale.weight", [3, 3]), 0, 1), diagonal);
    assert!(
        ADAPTER
            .first_values(&param("unet.to_q.weight", [3, 3]), 0, &Noise::new(1))
            .is_none()
    );
}
