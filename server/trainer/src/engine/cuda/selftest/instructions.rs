//! Every instruction of the test networks by itself, against the f64 reference, on the values that it would see.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Check, LEAST_F16, Result, networks, networks::Network, noise, relative, rounded};
use crate::engine::{
    cuda::{
        call::Element,
        device::Device,
        session::{CudaSession, Settings},
    },
    ir::{Kind, Op, ParamId, Program, ValueId},
    operands::operands,
    reference::{Reference, Values},
    session::{Data, Moments, OptimizerSettings, Session},
};

pub(super) fn check(device: &Arc<Device>, element: Element, report: &mut dyn FnMut(Check)) -> Result<()> {
    let mut all = vec![
        networks::dreambooth(3, [9, 11], 7)?,
        networks::autoencoder()?,
        networks::wide()?,
        networks::attention("attention 40", 40, 131, false)?,
        networks::attention("attention 64", 64, 77, true)?,
        networks::attention("attention 80", 80, 65, false)?,
        networks::attention("attention 160", 160, 19, false)?,
        networks::wide_attention()?,
    ];
    for network in &mut all {
        check_network(device, element, network, report)?;
    }
    Ok(())
}

fn check_network(
    device: &Arc<Device>,
    element: Element,
    network: &Network,
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    let Network { name, table, program } = network;
    let weights: Vec<Vec<f32>> = (table.params.iter().enumerate())
        .map(|(index, param)| {
            // Rows of a matrix sum to about 1; everything else is around 0.1 to 0.8.
            let inputs = if param.dims.len() > 1 {
                param.len() / param.dims[0]
            } else {
                4
            };
            let spread = (3. / inputs as f32).sqrt();
            let values = noise(param.len(), index as u64 + 1);
            values
                .iter()
                .map(|value| rounded(value * spread + 0.1 * spread, element))
                .collect()
        })
        .collect();
    let in_f64 = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let exact: Vec<Vec<f64>> = weights.iter().map(|values| in_f64(values)).collect();
    let mut reference = Reference::new(table, exact.clone())?;
    reference.gradients.iter_mut().for_each(|gradient| gradient.fill(0.));
    let mut values = Values::new(program);
    for (seed, (input_name, &id)) in program.inputs.iter().enumerate() {
        // A loss scale as fp16 needs it, so that gradients are numbers that it has.
        let given = match input_name.as_str() {
            "scale" => vec![128.],
            // So that all rows count, and gradients stay large enough for fp16.
            "schedule" => [0.8, 0.6, 1.].repeat(program.value(id).dims[0]),
            "shares" => vec![0.5; program.value(id).len()],
            _ => input(program, id, seed as u64 + 900, element),
        };
        values.set(id, given);
    }

    let settings = Settings {
        element,
        optimizer: ADAM,
        eager: true,
        poison: true,
    };
    let mut session = CudaSession::new(table.clone(), settings, device)?;
    for (index, values) in weights.iter().enumerate() {
        session.set_weight(ParamId(index as u32), values)?;
    }
    let mut seen = BTreeSet::new();
    for op in &program.code {
        let alone = Alone::new(op, program, &values, element);
        if seen.insert(alone.kind(program, op)) {
            alone.check(&mut session, &exact, name, report)?;
        }
        reference.execute(op, &mut values);
    }
    Ok(())
}

pub(super) const ADAM: OptimizerSettings = OptimizerSettings {
    moments: Moments::EightBit,
    beta1: 0.9,
    beta2: 0.999,
    weight_decay: 0.01,
    epsilon: 1e-8,
    low_memory: None,
};

fn input(program: &Program, id: ValueId, seed: u64, element: Element) -> Vec<f64> {
    let value = program.value(id);
    let values = noise(value.len(), seed);
    let take = |value: f32| match program.value(id).kind {
        Kind::Ids => f64::from((value.abs() * 99.).floor()),
        Kind::F32 => f64::from(value),
        Kind::Activation => f64::from(rounded(value, element)),
    };
    values.into_iter().map(take).collect()
}

/// A program of one instruction. Where it can add to gradients of weights it stands there twice: first it writes them, then it
/// adds.
struct Alone {
    program: Program,
    inputs: BTreeMap<String, Vec<f64>>,
    op: Op,
    element: Element,
}

impl Alone {
    fn new(op: &Op, of: &Program, values: &Values, element: Element) -> Self {
        let mut program = Program {
            values: of.values.clone(),
            ..Program::default()
        };
        let (touched, mut inputs) = (operands(op), BTreeMap::new());
        let roots = |ids: &[ValueId]| ids.iter().map(|&id| of.root(id)).collect::<BTreeSet<_>>();
        for root in roots(&touched.reads) {
            let name = format!("v{}", root.0);
            let (value, mut given) = (of.value(root).clone(), values.get(root).to_vec());
            if value.kind == Kind::Activation {
                // Written by a cast, so that an instruction may work in place.
                let from = program.push_value(value.dims, Kind::F32);
                program.code.push(Op::Cast { x: from, y: root });
                program.inputs.insert(name.clone(), from);
                given
                    .iter_mut()
                    .for_each(|value| *value = f64::from(rounded(*value as f32, element)));
            } else {
                program.inputs.insert(name.clone(), root);
                given.iter_mut().for_each(|value| *value = f64::from(*value as f32));
            }
            inputs.insert(name, given);
        }
        let mut again = op.clone();
        match &mut again {
            Op::LinearGradW { add, .. }
            | Op::ConvGradW { add, .. }
            | Op::GroupNormGrad { add, .. }
            | Op::LayerNormGrad { add, .. }
            | Op::EmbeddingGrad { add, .. } => {
                *add = false;
                program.code.push(again.clone());
                if let Op::LinearGradW { add, .. }
                | Op::ConvGradW { add, .. }
                | Op::GroupNormGrad { add, .. }
                | Op::LayerNormGrad { add, .. }
                | Op::EmbeddingGrad { add, .. } = &mut again
                {
                    *add = true;
                }
            }
            _ => {}
        }
        program.code.push(again);
        for root in roots(&touched.writes) {
            program.outputs.insert(format!("v{}", root.0), root);
        }
        Self {
            program,
            inputs,
            op: op.clone(),
            element,
        }
    }

    /// Instructions of the same kind are checked once.
    fn kind(&self, of: &Program, op: &Op) -> String {
        let touched = operands(op);
        let place = |id: &ValueId| {
            let in_place = touched.reads.iter().position(|read| of.root(*read) == of.root(*id));
            format!("{:?} {in_place:?}", of.value(*id).dims)
        };
        let reads: Vec<_> = touched.reads.iter().map(place).collect();
        let writes: Vec<_> = touched.writes.iter().map(place).collect();
        let extra = match op {
            Op::Conv { window, .. } | Op::ConvGradX { window, .. } | Op::ConvGradW { window, .. } => {
                format!("{window:?}")
            }
            Op::Diffuse { velocity, .. } => format!("{velocity}"),
            Op::Activate { kind, .. } | Op::ActivateGrad { kind, .. } => format!("{kind:?}"),
            Op::GroupNorm { silu, .. } | Op::GroupNormGrad { silu, .. } => format!("{silu}"),
            Op::Attention { causal, heads, .. } | Op::AttentionGrad { causal, heads, .. } => {
                format!("{causal} {heads}")
            }
            _ => String::new(),
        };
        let count = touched.weights.len() + touched.gradients.len();
        format!("{} {reads:?} {writes:?} {count} {extra}", op.name())
    }

    fn check(
        &self,
        session: &mut CudaSession,
        weights: &[Vec<f64>],
        network: &str,
        report: &mut dyn FnMut(Check),
    ) -> Result<()> {
        let mut reference = Reference::new(session.params(), weights.to_vec())?;
        let expected = reference.run(&self.program, &self.inputs)?;
        let id = session.compile(self.program.clone())?;
        for (name, &value) in &self.program.inputs {
            let given = &self.inputs[name];
            if self.program.value(value).kind == Kind::Ids {
                let ids: Vec<u32> = given.iter().map(|&id| id as u32).collect();
                session.write(id, name, Data::Ids(&ids))?;
            } else {
                let values: Vec<f32> = given.iter().map(|&value| value as f32).collect();
                session.write(id, name, Data::F32(&values))?;
            }
        }
        session.run(id)?;
        let least = if self.element == Element::F16 { LEAST_F16 } else { 0. };
        let mut results = Vec::new();
        for (name, &value) in &self.program.outputs {
            let in_f32 = self.program.value(value).kind == Kind::F32;
            let wanted = expected.get(value).iter().copied();
            results.push((name.clone(), relative(&session.read(id, name)?, wanted, least), in_f32));
        }
        for param in operands(&self.op)
            .trained_gradients(session.params())
            .collect::<Vec<_>>()
        {
            let wanted = reference.gradients[param.0 as usize].iter().copied();
            let name = session.params().get(param).name.clone();
            results.push((name, relative(&session.gradient(param)?, wanted, least), false));
        }
        for (result, error, in_f32) in results {
            report(Check {
                name: format!("{} {} {network}: {result}", self.element.suffix(), self.op.name()),
                error,
                tolerance: self.tolerance(in_f32),
            });
        }
        Ok(())
    }

    /// Sums are in f32 everywhere, so that what 16 bits cost is the rounding of the result, half a unit in the last
    /// place; twice where it is added to. An attention rounds its weights, too, between its two products, and its gradient the
    /// differences that the weights' gradients are.
    fn tolerance(&self, in_f32: bool) -> f64 {
        let last_place = match self.element {
            Element::F32 => return 3e-5,
            _ if in_f32 && !matches!(self.op, Op::AttentionGrad { .. }) => return 5e-5,
            Element::F16 => 2f64.powi(-11),
            Element::Bf16 => 2f64.powi(-8),
        };
        match self.op {
            Op::Attention { .. } => 6. * last_place,
            Op::AttentionGrad { .. } => 8. * last_place,
            _ => 2. * last_place,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::optim::adamw_8bit::SMALL;

    #[test]
    fn every_instruction_is_among_the_networks() {
        let networks = [
            networks::dreambooth(3, [9, 11], 7).unwrap(),
            networks::autoencoder().unwrap(),
            networks::wide().unwrap(),
            networks::attention("attention", 40, 19, true).unwrap(),
        ];
        let names: BTreeSet<&str> = networks
            .iter()
            .flat_map(|network| &network.program.code)
            .map(Op::name)
            .collect();
        assert_eq!(names.len(), 27, "{names:?}");
        let lens = networks
            .iter()
            .flat_map(|network| &network.table.params)
            .map(|param| param.len());
        let (small, large): (Vec<_>, Vec<_>) = lens.partition(|&len| len < SMALL);
        assert!(!small.is_empty() && !large.is_empty());
    }

    #[test]
    fn an_instruction_alone_is_a_sound_program() {
        for network in [
            networks::dreambooth(2, [8, 8], 5).unwrap(),
            networks::autoencoder().unwrap(),
        ] {
            let mut values = Values::new(&network.program);
            for (index, value) in network.program.values.iter().enumerate() {
                values.set(ValueId(index as u32), vec![0.; value.len()]);
            }
            for op in &network.program.code {
                let alone = Alone::new(op, &network.program, &values, Element::F32);
                crate::engine::verify::verify(&alone.program, &network.table).unwrap();
            }
        }
    }
}
