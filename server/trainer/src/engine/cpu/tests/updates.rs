//! Updates of a small layer: AdamW's formula, moments that come back, overflows, errors.

use std::collections::BTreeMap;

use super::{Case, SETTINGS, close, noise};
use crate::engine::{
    cpu::CpuSession,
    ir::{Group, Op, ParamId, Program},
    session::{Data, LowMemory, Moments, OptimizerSettings, ProgramId, Session, Update},
};

const LOW_MEMORY: OptimizerSettings = OptimizerSettings {
    moments: Moments::EightBit,
    // So large that clipping shows in the first update.
    epsilon: 1e-2,
    low_memory: Some(LowMemory { seed: 9 }),
    ..SETTINGS
};

/// A linear layer with more weights than the 8-bit optimizer keeps in f32, and its bias.
fn trained(moments: Moments) -> (CpuSession, ProgramId) {
    trained_with(OptimizerSettings { moments, ..SETTINGS })
}

fn trained_with(settings: OptimizerSettings) -> (CpuSession, ProgramId) {
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
    let mut session = CpuSession::new(case.params, settings).unwrap();
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
    let exact = [Moments::F32, Moments::EightBit].map(|moments| OptimizerSettings { moments, ..SETTINGS });
    for settings in exact.into_iter().chain([LOW_MEMORY]) {
        let (mut session, program) = trained_with(settings);
        for number in 1..4 {
            session.run_and_update(program, &update(number)).unwrap();
        }
        let (mut other, other_program) = trained_with(settings);
        for id in [0, 1].map(ParamId) {
            let weight = session.weight(id).unwrap();
            other.set_weight(id, &weight).unwrap();
        }
        let saved = session.moments().unwrap();
        other.restore_moments(&saved).unwrap();
        assert_eq!(other.moments().unwrap(), saved);
        session.run_and_update(program, &update(4)).unwrap();
        other.run_and_update(other_program, &update(4)).unwrap();
        assert_eq!(weights(&mut session), weights(&mut other), "{settings:?}");
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

#[test]
fn in_low_memory_each_weight_is_clipped_by_its_own_norm_and_rounded_to_a_neighbour() {
    let (mut usual, usual_program) = trained(Moments::F32);
    usual.run(usual_program).unwrap();
    let (mut session, program) = trained_with(LOW_MEMORY);
    let before = [0, 1].map(|id| session.weight(ParamId(id)).unwrap());
    let updated = session.run_and_update(program, &update(1)).unwrap();
    assert!(session.gradient(ParamId(0)).is_err(), "it is gone");
    let mut all = 0.;
    for (id, before) in [0, 1].map(ParamId).into_iter().zip(before) {
        let g: Vec<f64> = (usual.gradient(id).unwrap().into_iter())
            .map(|g| f64::from(g) / 8.)
            .collect();
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
        all += norm * norm;
        assert!(norm > 1., "it is clipped");
        let told = session.gradient_norm(id).unwrap() / 8.;
        assert!((told - norm).abs() < 1e-6 * norm, "{told} {norm}");
        let (mut off, mut spaces) = (0., 0.);
        for ((got, before), g) in session.weight(id).unwrap().into_iter().zip(before).zip(&g) {
            // Both moments of the first update are the gradient's, whatever the rates.
            let g = g / (norm + 1e-6);
            let wanted = (f64::from(before) - 1e-2 * g / (g.abs() + 1e-2)) * (1. - 1e-4);
            let below = f32::from_bits((wanted as f32).to_bits() & 0xffff_0000);
            let above = f32::from_bits(below.to_bits() + 0x1_0000);
            assert!(got == below || got == above, "{got} is not beside {wanted}");
            off += f64::from(got) - wanted;
            spaces += (f64::from(above) - f64::from(below)).powi(2) / 4.;
        }
        // Five standard deviations, or more, of a sum of such chances.
        assert!(off.abs() < 5. * spaces.sqrt(), "{off} {spaces}");
    }
    assert!((updated.grad_norm - all.sqrt()).abs() < 1e-6 * all.sqrt() && !updated.skipped);
}

#[test]
fn in_low_memory_an_overflow_changes_its_own_weight_by_nothing_and_is_told() {
    let (mut session, program) = trained_with(LOW_MEMORY);
    session.run_and_update(program, &update(1)).unwrap();
    let before = (weights(&mut session), session.moments().unwrap());
    let mut dy = noise(720, 3);
    dy[77] = f32::INFINITY;
    session.write(program, "in1", Data::F32(&dy)).unwrap();
    let updated = session.run_and_update(program, &update(2)).unwrap();
    assert!(updated.skipped && !updated.grad_norm.is_finite());
    assert_eq!(before, (weights(&mut session), session.moments().unwrap()));
}

#[test]
fn in_low_memory_nothing_is_accumulated() {
    let mut case = Case::default();
    let w = case.param(&[80, 60]);
    let (x, dy) = (case.input(&[1, 9, 60]), case.input(&[1, 9, 80]));
    case.op(Op::LinearGradW {
        dy,
        x,
        w,
        bias: None,
        add: true,
    });
    let mut session = CpuSession::new(case.params, LOW_MEMORY).unwrap();
    let error = session.compile(case.program).unwrap_err();
    assert!(error.to_string().contains("accumulated"), "{error}");
}
