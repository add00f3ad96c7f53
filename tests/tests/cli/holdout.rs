//! From the command line every photo is trained on, unless it is asked to hold one out.

use app::event::EventKind;

use super::world::{Output, World};

const SAMPLES: &str = "--save_sample_prompt zwx --n_save_sample 1 --save_infer_steps 1";

/// Which photo is held out, and in how many rounds it was measured.
fn held_out(output: &Output) -> (Option<String>, usize) {
    let (mut photo, mut measured) = (None, 0);
    for event in output.events() {
        match event {
            EventKind::Plan { held_out, .. } => photo = held_out,
            EventKind::Meters { overfit, .. } => measured += usize::from(overfit.is_some()),
            _ => {}
        }
    }
    (photo, measured)
}

#[test]
fn no_photo_is_held_out_unless_it_is_asked_for() {
    let world = World::with_photos(12);
    let without = world.train_on("photos", "without", SAMPLES);
    assert_eq!((without.pictures(), held_out(&without)), ((12, 0), (None, 0)));
    let with = world.train_on("photos", "with", &format!("{SAMPLES} --holdout_photo"));
    let (photo, measured) = held_out(&with);
    let photo = photo.expect("asked for");
    assert!(photo.starts_with("photos/") && world.path(&photo).is_file(), "{photo}");
    assert_eq!((with.pictures(), measured), ((11, 0), 1));
    assert_eq!(with.recipe()["holdout_photo"], true);
    assert!(without.unet(1) != with.unet(1), "other photos");
}

#[test]
fn where_none_can_be_held_out_that_is_told() {
    let world = World::with_photos(12);
    let told = |output: &str, flags: &str| {
        let output = world.train_on("photos", output, &format!("--holdout_photo {flags}"));
        assert_eq!((output.pictures(), held_out(&output)), ((12, 0), (None, 0)), "{flags}");
        output.warnings().join("\n")
    };
    let strict = told("strict", &format!("{SAMPLES} --strict_tutorial"));
    assert!(
        strict.contains("--holdout_photo has no effect with --strict_tutorial"),
        "{strict}"
    );
    let unseen = told("unseen", "");
    assert!(
        unseen.contains("--holdout_photo has no effect without --save_sample_prompt"),
        "{unseen}"
    );
    std::fs::remove_file(world.path("photos/3.png")).unwrap();
    let few = world.train_on("photos", "few", &format!("--holdout_photo {SAMPLES}"));
    assert_eq!((few.pictures(), held_out(&few)), ((11, 0), (None, 0)));
    assert!(few.warnings().iter().any(|w| w.contains("of fewer than twelve photos")));
}
