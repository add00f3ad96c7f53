//! Learning rates against diffusers' `get_scheduler`.

use std::collections::BTreeMap;

use app::recipe::{LrScheduler, RecipeDraft};
use serde::Deserialize;
use trainer::lr::LrSchedule;

use super::support::{Table, json, worse};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    base_lr: f64,
    num_warmup_steps: u32,
    num_training_steps: u32,
    schedules: BTreeMap<String, Schedule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Schedule {
    arguments: Arguments,
    lr: Vec<f64>,
    lr_after_the_last_step: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    num_cycles: Option<u32>,
    power: Option<f64>,
}

#[test]
fn learning_rates_are_those_of_diffusers() -> anyhow::Result<()> {
    let file: File = json("lr_schedules.json");
    assert!(file.schedules.len() >= 6);
    let mut table = Table::new("learning rates");
    for (name, golden) in &file.schedules {
        let kind = match name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_') {
            "polynomial_power" => LrScheduler::Polynomial,
            other => serde_json::from_value(other.into())?,
        };
        let schedule = LrSchedule::of(&RecipeDraft {
            lr_scheduler: kind,
            learning_rate: file.base_lr,
            lr_warmup_steps: file.num_warmup_steps,
            max_train_steps: file.num_training_steps,
            lr_num_cycles: golden.arguments.num_cycles.unwrap_or(1),
            lr_power: golden.arguments.power.unwrap_or(1.0),
            ..RecipeDraft::default()
        });
        assert_eq!(golden.lr.len() as u32, file.num_training_steps);
        let all = golden.lr.iter().chain([&golden.lr_after_the_last_step]);
        // Below the smallest rate that matters, sums of cosines leave rounding only.
        let least = file.base_lr * 1e-3;
        let apart = all
            .enumerate()
            .map(|(update, wanted)| (schedule.at(update as u64) - wanted).abs() / wanted.abs().max(least));
        table.check(name, apart.fold(0.0, worse), 1e-12);
    }
    table.finish();
    Ok(())
}

/// The script builds its schedule for `max_train_steps * accumulation` updates with as stretched a warm-up, and makes
/// `max_train_steps / accumulation` of them.
#[test]
fn a_strict_schedule_is_diffusers_stretched_one() {
    let recipe = |strict_tutorial| RecipeDraft {
        lr_scheduler: LrScheduler::Linear,
        learning_rate: 1.0,
        lr_warmup_steps: 10,
        max_train_steps: 100,
        gradient_accumulation_steps: 4,
        strict_tutorial,
        ..RecipeDraft::default()
    };
    let (right, strict) = (LrSchedule::of(&recipe(false)), LrSchedule::of(&recipe(true)));
    assert_eq!([right.at(5), right.at(10), right.at(100)], [0.5, 1.0, 0.0]);
    // Of 25 updates none leaves the warm-up.
    assert_eq!([strict.at(10), strict.at(25), strict.at(40)], [0.25, 0.625, 1.0]);
    assert_eq!([strict.at(220), strict.at(400)], [0.5, 0.0]);
}
