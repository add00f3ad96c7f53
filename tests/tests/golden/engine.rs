//! The trainer's networks on the CPU, loaded for a test, and looks into their insides.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use trainer::engine::builder::{Builder, Forward};
use trainer::engine::cpu::CpuSession;
use trainer::engine::ir::{Param, ParamId, ParamTable};
use trainer::engine::layout::{channels_first, channels_last, checkpoint_dims};
use trainer::engine::nets::networks::{Networks, values};
use trainer::engine::nets::programs::{Part, Plan};
use trainer::engine::session::{Data, Moments, OptimizerSettings, Session};

use super::support::Tensors;

/// `torch.optim.AdamW`'s defaults, as the golden trajectories have them.
pub const ADAM: OptimizerSettings = OptimizerSettings {
    moments: Moments::F32,
    beta1: 0.9,
    beta2: 0.999,
    weight_decay: 1e-2,
    epsilon: 1e-8,
    low_memory: None,
};

pub fn networks(plan: Plan, parts: &[(Part, &Tensors)]) -> Networks {
    let session = CpuSession::new(plan.params().unwrap(), ADAM).unwrap();
    let mut networks = Networks::new(plan, Box::new(session));
    for (part, weights) in parts {
        networks.load(*part, weights).unwrap();
    }
    networks
}

/// The states of `ids` `[rows, tokens]`.
pub fn text(networks: &mut Networks, ids: &Tensor, clip_skip: usize) -> Tensor {
    let flat: Vec<u32> = ids.flatten_all().unwrap().to_vec1().unwrap();
    networks.text(&flat, ids.dim(0).unwrap(), clip_skip).unwrap()
}

/// As a checkpoint has the weight.
pub fn gradient(networks: &mut Networks, id: ParamId, param: &Param) -> Tensor {
    let values = networks.session().gradient(id).unwrap();
    let dims = checkpoint_dims(&param.dims);
    let values = match *dims {
        [_, inputs, height, width] => channels_first(&values, inputs, height * width),
        _ => values,
    };
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

/// What an input is given, with channels first.
pub enum Given<'a> {
    Map(&'a Tensor),
    Values(&'a Tensor),
    Ids(&'a Tensor),
}

/// Runs what `write` writes, and gives all that it probes: maps as `[rows, channels, h, w]`. `write` returns its
/// inputs; weights are `weights` with `prefix` before their names.
pub fn probed<'a>(
    weights: &Tensors,
    prefix: &str,
    write: impl FnOnce(&mut Builder) -> BTreeMap<&'static str, Given<'a>>,
) -> Tensors {
    let mut table = ParamTable::default();
    let mut b = Builder::new(&mut table).with_probes();
    let given = write(&mut b);
    let Forward { program, .. } = b.finish().unwrap();
    let mut session = CpuSession::new(table.clone(), ADAM).unwrap();
    for (index, param) in table.params.iter().enumerate() {
        let path = param.name.strip_prefix(prefix).unwrap();
        session
            .set_weight(ParamId(index as u32), &in_engine(&weights[path], param))
            .unwrap();
    }
    let id = session.compile(program.clone()).unwrap();
    for (name, given) in given {
        match given {
            Given::Map(map) => {
                let (_, channels, height, width) = map.dims4().unwrap();
                let values = channels_last(&values(map).unwrap(), channels, height * width);
                session.write(id, name, Data::F32(&values)).unwrap();
            }
            Given::Values(tensor) => session.write(id, name, Data::F32(&values(tensor).unwrap())).unwrap(),
            Given::Ids(ids) => {
                let ids: Vec<u32> = ids.flatten_all().unwrap().to_vec1().unwrap();
                session.write(id, name, Data::Ids(&ids)).unwrap();
            }
        }
    }
    session.run(id).unwrap();
    let read = |(name, value): (&String, &trainer::engine::ir::ValueId)| {
        let values = session.read(id, name).unwrap();
        let tensor = match program.value(*value).dims[..] {
            [rows, height, width, channels] => {
                let values = channels_first(&values, channels, height * width);
                Tensor::from_vec(values, (rows, channels, height, width), &Device::Cpu)
            }
            ref dims => Tensor::from_vec(values, dims, &Device::Cpu),
        };
        (name.clone(), tensor.unwrap())
    };
    program.outputs.iter().map(read).collect()
}

fn in_engine(tensor: &Tensor, param: &Param) -> Vec<f32> {
    assert_eq!(tensor.dims(), checkpoint_dims(&param.dims), "{}", param.name);
    match *tensor.dims() {
        [_, inputs, height, width] => channels_last(&values(tensor).unwrap(), inputs, height * width),
        _ => values(tensor).unwrap(),
    }
}
