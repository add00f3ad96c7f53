use super::*;
use crate::dreambooth::testing::tiny_networks;
use crate::engine::autodiff::{Backward, backward};
use crate::engine::builder::{Builder, Scope};
use crate::engine::ir::{Group, Kind, ParamId};
use crate::engine::nets::text_encoder::text_encoder;
use crate::engine::session::{Data, ProgramId, Update};
use app::recipe::Precision;

fn state(networks: &mut Networks) -> TrainingState {
    TrainingState {
        step: 0,
        updates: 0,
        ema: Some(Ema::new(0.99, networks).expect("begins")),
        scaler: LossScaler::new(Precision::Fp16),
        mean_loss: MeanLoss::default(),
        turned_on: Vec::new(),
    }
}

/// An update with gradients that differ from weight to weight, so that moments do.
fn learn(networks: &mut Networks) {
    let mut table = networks.params().clone();
    let mut b = Builder::new(&mut table);
    let ids = b.input("ids", &[1, 5], Kind::Ids);
    let config = networks.plan().text_encoder().expect("held").clone();
    let states = text_encoder(
        &mut b,
        &config,
        ids,
        1,
        &Scope::new("text_encoder", Group::TextEncoder, true),
    );
    let states = states.expect("a text encoder");
    let upstream = b.input("upstream", &[1, 5, 8], Kind::Activation);
    let forward = b.finish().expect("fits");
    let program = backward(forward, &table, &[(states, upstream)], Backward::default()).expect("learns");
    let session = networks.session();
    let id: ProgramId = session.compile(program).expect("compiles");
    session.write(id, "ids", Data::Ids(&[1, 2, 3, 4, 5])).expect("writes");
    let wave: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
    session.write(id, "upstream", Data::F32(&wave)).expect("writes");
    let update = Update {
        learning_rates: BTreeMap::from([(Group::TextEncoder, 1e-3)]),
        max_grad_norm: 1.0,
        loss_scale: 1.0,
        number: 1,
    };
    session.run_and_update(id, &update).expect("updates");
}

fn weights(networks: &mut Networks) -> Vec<Vec<f32>> {
    let ids: Vec<ParamId> = networks.trained().into_iter().map(|(id, _)| id).collect();
    ids.into_iter()
        .map(|id| networks.session().weight(id).expect("weight"))
        .collect()
}

fn averages(networks: &mut Networks) -> Vec<Vec<f32>> {
    let ids: Vec<ParamId> = networks.trained().into_iter().map(|(id, _)| id).collect();
    ids.into_iter()
        .map(|id| networks.session().average(id).expect("average"))
        .collect()
}

#[test]
fn a_state_says_which_algorithms_its_run_used() {
    let mut networks = tiny_networks();
    let saved = state(&mut networks);
    let used = Algorithms {
        of: "a card".into(),
        chosen: BTreeMap::from([("linear 2x3".to_owned(), 4)]),
    };
    let header = |algorithms: Option<&Algorithms>| {
        let header = saved.header(Entries::default(), "abc", algorithms);
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        read_header(&mut &file[..]).expect("reads").0
    };
    assert_eq!(header(Some(&used)).algorithms, Some(used));
    assert_eq!(header(None).algorithms, None);
}

#[test]
fn a_saved_state_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().expect("folder");
    let mut networks = tiny_networks();
    let mut saved = state(&mut networks);
    learn(&mut networks);
    saved.step = 7;
    saved.updates = 5;
    saved.turned_on = vec!["use_8bit_adam".into()];
    saved.scaler.updated(true).expect("goes on");
    saved.mean_loss.add(0.7, 4);
    saved.save(&mut networks, folder.path(), "abc").expect("saves");
    let path = state_path(folder.path());
    let header = peek(&path).expect("reads").expect("is there");
    assert_eq!(
        (header.step, header.updates, header.recipe_sha256.as_str()),
        (7, 5, "abc")
    );
    assert_eq!(header.turned_on, ["use_8bit_adam"]);
    let mut other = tiny_networks();
    let mut read = state(&mut other);
    assert_ne!(weights(&mut networks), weights(&mut other));
    read.restore(&mut other, &path).expect("restores");
    assert_eq!((read.step, read.updates), (7, 5));
    assert_eq!(read.scaler, saved.scaler);
    assert_eq!(averages(&mut networks), averages(&mut other));
    assert_ne!(averages(&mut networks), weights(&mut networks));
    assert_eq!(read.mean_loss, saved.mean_loss);
    assert_eq!(weights(&mut networks), weights(&mut other));
    let (before, after) = (networks.session().moments(), other.session().moments());
    assert_eq!(before.expect("moments"), after.expect("moments"));
    discard(folder.path()).expect("discards");
    assert_eq!(peek(&path).expect("reads"), None);
}

#[test]
fn an_average_that_was_not_saved_begins_at_the_weights() {
    let folder = tempfile::tempdir().expect("folder");
    let mut networks = tiny_networks();
    let mut saved = state(&mut networks);
    learn(&mut networks);
    saved.ema = None;
    saved.save(&mut networks, folder.path(), "abc").expect("saves");
    let mut other = tiny_networks();
    let mut read = state(&mut other);
    read.restore(&mut other, &state_path(folder.path())).expect("restores");
    assert_eq!(averages(&mut other), weights(&mut networks));
}

#[test]
fn a_cut_state_and_one_of_other_tensors_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let mut networks = tiny_networks();
    let mut saved = state(&mut networks);
    saved.save(&mut networks, folder.path(), "abc").expect("saves");
    let path = state_path(folder.path());
    let bytes = std::fs::read(&path).expect("reads");
    let refused = |state: &mut TrainingState, networks: &mut Networks| {
        matches!(state.restore(networks, &path), Err(TrainError::State { .. }))
    };
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header = std::str::from_utf8(&bytes[8..end]).expect("JSON");
    let renamed = header.replace("\"p.text_encoder", "\"q.text_encoder");
    std::fs::write(&path, [&bytes[..8], renamed.as_bytes(), &bytes[end..]].concat()).expect("renames");
    assert!(refused(&mut saved, &mut networks));
    std::fs::write(&path, &bytes[..bytes.len() - 100]).expect("cuts");
    assert!(refused(&mut saved, &mut networks));
    std::fs::write(&path, &bytes).expect("puts it back");
    assert!(!refused(&mut saved, &mut networks));
}

#[test]
fn the_last_states_are_kept_and_the_newest_is_found() {
    let folder = tempfile::tempdir().expect("folder");
    let mut networks = tiny_networks();
    let mut saved = state(&mut networks);
    assert_eq!(newest(folder.path()).expect("reads"), None);
    for step in [90, 100, 110] {
        saved.step = step;
        saved.save(&mut networks, folder.path(), "abc").expect("saves");
        keep(folder.path(), step, 2).expect("keeps");
    }
    let kept = |step: u32| folder.path().join(format!("checkpoints/{step}.safetensors"));
    let there: Vec<bool> = [90, 100, 110].map(|step| kept(step).exists()).to_vec();
    assert_eq!(there, [false, true, true]);
    assert_eq!(peek(&kept(100)).expect("reads").map(|header| header.step), Some(100));
    assert_eq!(newest(folder.path()).expect("reads"), Some(state_path(folder.path())));
    discard(folder.path()).expect("discards");
    assert_eq!(newest(folder.path()).expect("reads"), Some(kept(110)));
}

#[test]
fn the_scripts_mean_counts_rows() {
    let mut mean = MeanLoss::default();
    mean.add(1.0, 4);
    mean.add(4.0, 2);
    assert_eq!(mean.value(), 2.0);
}
