//! How long gradients of weights live when each is used up within the program that computes it.

use std::collections::BTreeMap;

use super::ir::{Op, ParamId, ParamTable, Program};
use super::operands::operands;
use super::plan::Life;
use super::session::{EngineError, Result};

/// Of every trained weight that gets a gradient: from the first instruction that writes it to the last that writes it or
/// reads the weight. Behind that one the weight may be changed.
///
/// # Errors
/// When a gradient is added to one that was there before: it is not there.
pub fn lives(program: &Program, params: &ParamTable) -> Result<BTreeMap<ParamId, Life>> {
    let mut lives: BTreeMap<ParamId, Life> = BTreeMap::new();
    for (index, op) in program.code.iter().enumerate() {
        for id in operands(op).trained_gradients(params) {
            if adds(op) && !lives.contains_key(&id) {
                return Err(EngineError::Device {
                    what: format!("gradients of `{}` cannot be accumulated", params.get(id).name),
                    why: "in low memory a gradient is gone once its weight is updated".into(),
                });
            }
            lives
                .entry(id)
                .or_insert(Life {
                    first: index,
                    last: index,
                })
                .last = index;
        }
    }
    for (index, op) in program.code.iter().enumerate() {
        for id in operands(op).weights {
            if let Some(life) = lives.get_mut(&id) {
                life.last = life.last.max(index);
            }
        }
    }
    Ok(lives)
}

fn adds(op: &Op) -> bool {
    match *op {
        Op::LinearGradW { add, .. }
        | Op::ConvGradW { add, .. }
        | Op::GroupNormGrad { add, .. }
        | Op::LayerNormGrad { add, .. }
        | Op::EmbeddingGrad { add, .. } => add,
        _ => false,
    }
}

/// The weights by the instruction that `of` picks of their gradients' lives.
pub fn by_instruction(lives: &BTreeMap<ParamId, Life>, of: impl Fn(&Life) -> usize) -> BTreeMap<usize, Vec<ParamId>> {
    let mut all: BTreeMap<usize, Vec<ParamId>> = BTreeMap::new();
    for (&id, life) in lives {
        all.entry(of(life)).or_default().push(id);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ir::{Group, Kind, Param, ValueId};

    fn program(adds: [bool; 2]) -> (Program, ParamTable) {
        let mut program = Program::default();
        let [x, dy, dx] = [0; 3].map(|_| program.push_value(vec![1, 4], Kind::Activation));
        let (w, [first, second]) = (ParamId(0), adds);
        let grad_w = |dy: ValueId, add| Op::LinearGradW {
            dy,
            x,
            w,
            bias: None,
            add,
        };
        program.code = vec![
            grad_w(dy, first),
            Op::Add { a: dy, b: dy, y: dy },
            grad_w(dy, second),
            Op::LinearGradX { dy, w, plus: None, dx },
            Op::Add { a: dx, b: dx, y: dx },
        ];
        let param = Param {
            name: "w".into(),
            dims: vec![4, 4],
            trained: true,
            group: Group::UNet,
        };
        (program, ParamTable { params: vec![param] })
    }

    #[test]
    fn a_gradient_lives_until_nobody_reads_its_weight_any_more() {
        let (program, params) = program([false, true]);
        let lives = lives(&program, &params).unwrap();
        assert_eq!(lives[&ParamId(0)], Life { first: 0, last: 3 });
        assert_eq!(by_instruction(&lives, |life| life.last)[&3], [ParamId(0)]);
    }

    #[test]
    fn what_was_there_before_cannot_be_added_to() {
        let (program, params) = program([true, true]);
        let error = lives(&program, &params).unwrap_err();
        assert!(error.to_string().contains("`w`"), "{error}");
    }
}
