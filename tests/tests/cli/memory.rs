//! A run and its device's memory: the plan is told, what cannot fit is refused, and what can be made to fit is.

use app::event::EventKind;

use super::world::{Output, World, json, stripes};

fn world() -> World {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    world
}

/// The peak that was told, and the sum of its parts.
fn planned(output: &Output) -> (u64, u64) {
    let plan = output.events().into_iter().find_map(|event| match event {
        EventKind::Memory { peak_bytes, parts, .. } => {
            Some((peak_bytes, parts.iter().map(|part| part.bytes).sum::<u64>()))
        }
        _ => None,
    });
    plan.expect("the plan is told")
}

fn gib(bytes: u64) -> String {
    format!("{:.9}", bytes as f64 / f64::from(1 << 30))
}

#[test]
fn a_run_that_cannot_fit_is_refused_with_what_would() {
    let world = world();
    let free = world.train_on("photos", "free", "--train_text_encoder");
    let (peak, sum) = planned(&free);
    assert_eq!(peak, sum);

    let flags = |output: &str, more: &str| {
        format!("--instance_prompt x --instance_data_dir photos --output_dir {output} --train_text_encoder {more}")
    };
    let limit = gib(peak * 3 / 4);
    let strict = world.train(&flags("strict", &format!("--strict_tutorial --memory_limit {limit}")));
    strict.ends(1, &["GiB of memory", "it fits with", "--use_8bit_adam ("]);
    let none = world.train(&flags("none", "--memory_limit 0.000001"));
    none.ends(1, &["not even --lora_rank=8", "fits"]);
    let events = world.output("none").events();
    assert!(!events.iter().any(|event| matches!(event, EventKind::Memory { .. })));
    let code = events.iter().find_map(|event| match event {
        EventKind::Failed { failure } => Some(failure.code.as_str()),
        _ => None,
    });
    assert_eq!(code, Some("does_not_fit"));
}

#[test]
fn a_run_turns_on_what_makes_it_fit_and_says_so() {
    let world = world();
    let (asked, _) = planned(&world.train_on("photos", "free", ""));
    let (in_8_bits, _) = planned(&world.train_on("photos", "coded", "--use_8bit_adam"));
    assert!(in_8_bits < asked, "{in_8_bits} of {asked}");

    let limit = gib((asked + in_8_bits) / 2);
    let fitted = world.train_on("photos", "fitted", &format!("--memory_limit {limit}"));
    assert_eq!(planned(&fitted).0, in_8_bits);
    let warnings = fitted.warnings();
    assert!(
        warnings.iter().any(|words| words.contains("--use_8bit_adam taken")),
        "{warnings:?}"
    );
    assert_eq!(json(&world.path("fitted/1/args.json"))["use_8bit_adam"], true);
    assert_eq!(fitted.unet(1), world.output("coded").unet(1));
    assert_ne!(fitted.unet(1), world.output("free").unet(1));
    assert_eq!(json(&world.path("free/1/args.json"))["use_8bit_adam"], false);
}

#[test]
fn a_run_goes_on_from_a_state_whose_run_was_made_to_fit() {
    let world = world();
    let (asked, _) = planned(&world.train_on("photos", "free", ""));
    let (in_8_bits, _) = planned(&world.train_on("photos", "coded", "--use_8bit_adam"));
    let limit = gib((asked + in_8_bits) / 2);
    let kept = "--checkpoints_total_limit 1";
    world.train_on("photos", "fitted", &format!("{kept} --memory_limit {limit}"));
    let on = "--max_train_steps 2 --resume_from_checkpoint";
    let on_from_it = world.train_on("photos", "on", &format!("{on} fitted"));
    let told = on_from_it.warnings();
    assert!(
        told.iter().any(|words| words.contains("--use_8bit_adam taken")),
        "{told:?}"
    );
    let whole = world.train_on("photos", "whole", "--max_train_steps 2 --use_8bit_adam");
    assert_eq!(on_from_it.unet(2), whole.unet(2));
}
