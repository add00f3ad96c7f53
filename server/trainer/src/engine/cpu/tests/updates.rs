//! Updates of a small layer: AdamW's formula, moments that come back, overflows, errors.

use std::collections::BTreeMap;

use super::{Case, SETTINGS, close, noise};
use crate::engine::{
    cpu::CpuSession,
    ir::{Group, Op, ParamId, Program},
    session::{Data, Moments, OptimizerSettings, ProgramId, Session, Update},
};

/// A linear layer with more weights than the 8-bit optimizer keeps in f32, and its bias.
fn trained(moments: Moments) -> (CpuSession, ProgramId) {
    let mut case = Case::default();
    let (w, bias) = (case.param(&[80, 60]), case.param(&[80]));
    let (x, dy) = (case.input(&[1, 9, 60]), case.input(&[1, 9, 80]));
    case.op(Op::LinearGradW {
        dy,
        x,
        w,
        bias: Some(bias),
        add: false,
    });
    let mut session = CpuSession::new(case.params, OptimizerSettings { moments, ..SETTINGS }).unwrap();
    for (id, len) in [(w, 4800), (bias, 80)] {
        session.set_weight(id, &noise(len, 5)).unwrap();
    }
    let program = session.compile(case.program).unwrap();
    session.write(program, "in0", Data::F32(&noise(540, 1))).unwrap();
    session.write(program, "in1", Data::F32(&noise(720, 2))).unwrap();
    (session, program)
}

fn update(number: u64) -> Update {
    Update {
        learning_rates: BTreeMap::from([(Group::UNet, 1e-2)]),
        max_grad_norm: 1.,
        loss_scale: 8.,
        number,
    }
}

fn weights(session: &mut CpuSession) -> Vec<f32> {
    [0, 1].map(|id| session.weight(ParamId(id)).unwrap()).concat()
}

#[test]
fn a_restored_session_goes_on_with_the_same_bits() {
    for moments in [Moments::F32, Moments::EightBit] {
        let (mut session, program) = trained(moments);
        for number in 1..4 {
            session.run_and_update(program, &update(number)).unwrap();
        }
        let (mut other, other_program) = trained(moments);
        for id in [0, 1].map(ParamId) {
            let weight = session.weight(id).unwrap();
            other.set_weight(id, &weight).unwrap();
        }
        let saved = session.moments().unwrap();
        other.restore_moments(&saved).unwrap();
        assert_eq!(other.moments().unwrap(), saved);
        session.run_and_update(program, &update(4)).unwrap();
        other.run_and_update(other_program, &update(4)).unwrap();
        assert_eq!(weights(&mut session), weights(&mut other), "{moments:?}");
        assert_ne!(session.moments().unwrap(), saved);
        let mut short = saved.clone();
        short.pop_last();
        assert!(other.restore_moments(&short).is_err());
    }
}

#[test]
fn an_overflow_changes_nothing_and_is_told() {
    for moments in [Moments::F32, Moments::EightBit] {
        let (mut session, program) = trained(moments);
        session.run_and_update(program, &update(1)).unwrap();
        let before = (weights(&mut session), session.moments().unwrap());
        let mut dy = noise(720, 3);
        dy[77] = f32::INFINITY;
        session.write(program, "in1", Data::F32(&dy)).unwrap();
        let updated = session.run_and_update(program, &update(2)).unwrap();
        assert!(updated.skipped && !updated.grad_norm.is_finite());
        assert_eq!(before, (weights(&mut session), session.moments().unwrap()));
    }
}

#[test]
fn adamw_follows_its_formula() {
    let (mut session, program) = trained(Moments::F32);
    let mut p: Vec<f64> = weights(&mut session).into_iter().map(f64::from).collect();
    let (mut m, mut v) = (vec![0.; p.len()], vec![0.; p.len()]);
    for number in 1..6 {
        let dy: Vec<f32> = noise(720, number + 20);
        session.write(program, "in1", Data::F32(&dy)).unwrap();
        let updated = session.run_and_update(program, &update(number)).unwrap();
        let gradient = [0, 1].map(|id| session.gradient(ParamId(id)).unwrap()).concat();
        let g: Vec<f64> = gradient.into_iter().map(|g| f64::from(g) / 8.).collect();
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((updated.grad_norm - norm).abs() < 1e-9 * norm && norm > 1.);
        let t = number as i32;
        for i in 0..p.len() {
            let g = g[i] / (norm + 1e-6);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            p[i] *= 1. - 1e-2 * 0.01;
            p[i] -= 1e-2 * m[i] / (1. - 0.9f64.powi(t)) / ((v[i] / (1. - 0.999f64.powi(t))).sqrt() + 1e-8);
        }
        close("weights", &weights(&mut session), &p, 2e-6);
    }
}

#[test]
fn a_weight_without_gradient_is_an_error() {
    let (mut session, _) = trained(Moments::F32);
    let empty = session.compile(Program::default()).unwrap();
    let error = session.run_and_update(empty, &update(1)).unwrap_err();
    assert!(error.to_string().contains("`p0`"), "{error}");
}

#[test]
fn wrong_inputs_are_errors() {
    let (mut session, program) = trained(Moments::F32);
    for (name, data) in [
        ("nothing", Data::F32(&[0.])),
        ("in0", Data::F32(&[0.])),
        ("in0", Data::Ids(&[0; 540])),
    ] {
        assert!(session.write(program, name, data).is_err(), "{name}");
    }
    assert!(session.read(program, "nothing").is_err());
}
