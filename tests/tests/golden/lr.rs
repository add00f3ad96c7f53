//! Learning rates against diffusers' `get_scheduler`.

use std::collections::BTreeMap;

use app::recipe::LrScheduler;
use serde::Deserialize;
use trainer::lr::LrSchedule;

#[derive(Deserialize)]
struct File {
    base_lr: f64,
    num_warmup_steps: u64,
    num_training_steps: u64,
    schedules: BTreeMap<String, Schedule>,
}

#[derive(Deserialize)]
struct Schedule {
    arguments: Arguments,
    lr: Vec<f64>,
    lr_after_the_last_step: f64,
}

#[derive(Deserialize)]
struct Arguments {
    num_cycles: Option<u32>,
    power: Option<f64>,
}

#[test]
fn learning_rates_are_those_of_diffusers() -> anyhow::Result<()> {
    let file: File = serde_json::from_slice(&std::fs::read(super::dir().join("lr_schedules.json"))?)?;
    assert!(file.schedules.len() >= 6);
    for (name, golden) in &file.schedules {
        let kind = match name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_') {
            "polynomial_power" => LrScheduler::Polynomial,
            other => serde_json::from_value(other.into())?,
        };
        let mut schedule = LrSchedule::new(kind, file.base_lr, file.num_warmup_steps, file.num_training_steps);
        schedule.num_cycles = golden.arguments.num_cycles.unwrap_or(1);
        schedule.power = golden.arguments.power.unwrap_or(1.0);
        assert_eq!(golden.lr.len() as u64, file.num_training_steps);
        let all = golden.lr.iter().chain([&golden.lr_after_the_last_step]);
        for (update, &wanted) in all.enumerate() {
            let got = schedule.at(update as u64);
            // Below the smallest rate that matters, sums of cosines leave rounding only.
            let apart = (got - wanted).abs();
            assert!(
                apart <= 1e-12 * wanted.abs().max(file.base_lr * 1e-3),
                "{name} update {update}: {got} is not {wanted}"
            );
        }
    }
    Ok(())
}
