use super::*;
use crate::engine::cuda;
use crate::engine::cuda::call::Element;
use crate::engine::session::OptimizerSettings;
use crate::formats::Configs;
use app::recipe::Precision;

/// Stable Diffusion 1.5 at 512 pixels, U-Net and text encoder, a photo and a class image a step, nothing drawn.
fn sd15() -> Demand {
    let configs = Configs::sd1();
    Demand {
        learning: Learning {
            text_encoder: true,
            adapter: None,
            seed: 0,
            recompute: false,
            optimizer: OptimizerSettings {
                moments: Moments::F32,
                beta1: 0.9,
                beta2: 0.999,
                weight_decay: 1e-2,
                epsilon: 1e-8,
                low_memory: None,
            },
            precision: Precision::Bf16,
            keeps_an_eye: false,
        },
        networks: Plan {
            unet: Some(configs.unet),
            text_encoder: Some(configs.text_encoder),
            vae: Some(configs.vae),
            ..Plan::default()
        },
        batch: 1,
        rows_each: 2,
        side_px: 512,
        drawn: 0,
        encoded: 1,
        encodes_late: false,
        accumulates: false,
        averages: false,
    }
}

fn with(switches: &[Switch]) -> Demand {
    (switches.iter()).fold(sd15(), |demand, switch| demand.with(*switch).expect("changes"))
}

fn on_a_gpu(demand: &Demand, element: Element) -> Footprint {
    let of_session = |params: &ParamTable, programs: &[Program]| {
        cuda::footprint::footprint(params, element, &demand.learning.optimizer, demand.kept(), programs)
    };
    demand.footprint_by(of_session).expect("networks")
}

/// `bench train` on an H100: in use, less what was in use before.
#[test]
fn a_gpus_plan_is_near_what_was_measured() {
    let four_rows = Demand {
        batch: 2,
        ..with(&[Switch::EightBit])
    };
    for (demand, element, measured) in [
        (with(&[Switch::EightBit]), Element::Bf16, 8.79),
        (with(&[]), Element::Bf16, 14.25),
        (with(&[Switch::EightBit]), Element::F16, 10.64),
        (with(&[Switch::EightBit, Switch::Checkpointing]), Element::Bf16, 7.84),
        (four_rows, Element::Bf16, 10.07),
    ] {
        // The bench holds no decoder.
        let planned = gib(on_a_gpu(&demand, element).total()) - 0.09;
        assert!(
            (planned / measured - 1.).abs() < 0.03,
            "{planned} for {measured}: {demand:?}"
        );
    }
}

#[test]
fn every_switch_needs_less_and_a_switch_that_is_on_changes_nothing() {
    let asked = Demand { batch: 2, ..sd15() };
    let needed = on_a_gpu(&asked, Element::Bf16).total();
    for switch in [
        Switch::EightBit,
        Switch::Checkpointing,
        Switch::LowMemory,
        Switch::OneByOne,
        Switch::FrozenTextEncoder,
        Switch::Side(384),
        Switch::Lora,
    ] {
        let with = asked.with(switch).expect("changes");
        assert!(on_a_gpu(&with, Element::Bf16).total() < needed, "{switch:?}");
        assert!(with.with(switch).is_none(), "{switch:?}");
    }
    let averages = Demand {
        averages: true,
        ..sd15()
    };
    let [without, with] = [sd15(), averages].map(|demand| on_a_gpu(&demand, Element::Bf16).total());
    assert!(with > without + 4 * 900_000_000);
}

#[test]
fn sums_of_gradients_of_16_bits_are_counted() {
    let sums = Demand {
        accumulates: true,
        ..sd15()
    };
    let difference = |element| on_a_gpu(&sums, element).total() - on_a_gpu(&sd15(), element).total();
    assert!(difference(Element::Bf16) > 4 * 900_000_000);
    assert_eq!(difference(Element::F32), 0);
}

/// A limit between two plans.
fn room(limit: u64) -> Option<Room> {
    Some(Room { used: 0, limit })
}

#[test]
fn the_ladder_is_climbed_as_far_as_it_takes() {
    let device = Device::Cpu;
    let needs = |switches: &[Switch]| with(switches).footprint(&device).expect("networks").total();
    let steps: [&[Switch]; 4] = [&[], &LADDER[..1], &LADDER[..2], &LADDER];
    for switches in steps {
        let fitted = fit(sd15(), &device, room(needs(switches)), [], &LADDER).expect("fits");
        assert_eq!(fitted.switches, switches);
    }
    let least = needs(&LADDER);
    let refused = fit(sd15(), &device, room(least - 1), [], &LADDER).expect_err("does not fit");
    let TrainError::DoesNotFit { needed, proposals, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(needed, needs(&[]));
    assert!(
        proposals
            .iter()
            .any(|(flags, bytes)| flags == "--lora_rank=8" && *bytes < least)
    );
    // What a run took before it was cut off, it takes again where there is room for more.
    let again = fit(sd15(), &device, room(u64::MAX), [Switch::EightBit], &LADDER).expect("fits");
    assert_eq!(again.switches, [Switch::EightBit]);
}

#[test]
fn low_memory_is_taken_where_it_can_learn() {
    for (demand, can) in [
        (sd15(), true),
        (
            Demand {
                accumulates: true,
                ..sd15()
            },
            false,
        ),
        (
            Demand {
                averages: true,
                ..sd15()
            },
            false,
        ),
    ] {
        assert_eq!(demand.with(Switch::LowMemory).is_some(), can);
    }
    let mut in_fp16 = sd15();
    in_fp16.learning.precision = Precision::Fp16;
    assert!(in_fp16.with(Switch::LowMemory).is_none());
    let needed = gib(on_a_gpu(&with(&[Switch::LowMemory]), Element::Bf16).total());
    assert!(needed + 0.6 < 6., "{needed}");
}
