//! Of twelve photos one is held out: it is named, measured in every round, and not learned from.

use app::event::{EventKind, Overfit};
use app::recipe::{RecipeDraft, SamplePlan};
use app::run::Run;

use super::{Job, is_step, recipe};

const STEPS: u32 = 9;

fn short() -> RecipeDraft {
    RecipeDraft {
        // No divisor of the number of timesteps.
        sample_batch_size: 3,
        samples: SamplePlan {
            n_save_sample: 1,
            save_infer_steps: 1,
            ..recipe(STEPS).samples
        },
        ..recipe(STEPS)
    }
}

fn run_of(job: &Job) -> Run {
    Run::from_events(&job.log()).expect("no gap in seq")
}

fn overfits(run: &Run) -> Vec<(u32, Option<Overfit>)> {
    run.readings
        .iter()
        .map(|(step, reading)| (*step, reading.overfit))
        .collect()
}

fn photos_trained_on(job: &Job) -> u32 {
    let plan = job.log().into_iter().find_map(|event| match event.kind {
        EventKind::Plan { photos, .. } => Some(photos),
        _ => None,
    });
    plan.expect("a plan")
}

#[test]
fn one_of_twelve_photos_is_measured_and_never_learned_from() {
    let job = Job::with_photos(&short(), 12);
    assert!(job.run().0.success());
    let run = run_of(&job);
    assert_eq!(photos_trained_on(&job), 11);
    let held_out = run.held_out.clone().expect("a photo is held out");
    assert!(
        held_out.starts_with("photos/0/") && job.path(&held_out).is_file(),
        "{held_out}"
    );
    let measured = overfits(&run);
    assert_eq!(measured.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 3, 6, 9]);
    let before = Overfit {
        held_out_loss: 1.0,
        training_loss: 1.0,
    };
    assert_eq!(measured[0].1, Some(before));
    for (step, overfit) in &measured[1..] {
        let overfit = overfit.expect("measured");
        assert!(
            overfit.training_loss < 1.0 && overfit.held_out_loss > 0.0,
            "{step}: {overfit:?}"
        );
        assert_ne!(overfit.training_loss, overfit.held_out_loss);
    }

    // Another picture in its place: what is measured changes, what is learned does not.
    let other = Job::with_photos(&short(), 12);
    image::RgbImage::from_pixel(80, 80, image::Rgb([250, 20, 90]))
        .save(other.path(&held_out))
        .unwrap();
    assert!(other.run().0.success());
    let other_run = run_of(&other);
    assert_eq!(other_run.held_out.as_deref(), Some(&*held_out));
    assert!(job.exports() == other.exports(), "the held-out photo was learned from");
    for (ours, theirs) in measured.iter().zip(overfits(&other_run)).skip(1) {
        let (ours, theirs) = (ours.1.expect("measured"), theirs.1.expect("measured"));
        assert_eq!(ours.training_loss, theirs.training_loss);
        assert_ne!(ours.held_out_loss, theirs.held_out_loss);
    }
}

#[test]
fn a_killed_run_measures_the_same() {
    let whole = Job::with_photos(&short(), 12);
    assert!(whole.run().0.success());
    let cut = Job::with_photos(&short(), 12);
    let mut trainer = cut.start();
    trainer.wait_for(|kind| is_step(kind, 5));
    trainer.kill();
    assert!(cut.run().0.success());
    let (whole, cut) = (run_of(&whole), run_of(&cut));
    assert_eq!(whole.held_out, cut.held_out);
    assert_eq!(whole.readings, cut.readings);
}

#[test]
fn of_fewer_photos_and_where_it_is_not_wanted_none_is_held_out() {
    let few = Job::with_photos(&short(), 11);
    let unwanted = RecipeDraft {
        holdout_photo: false,
        ..short()
    };
    let unwanted = Job::with_photos(&unwanted, 12);
    for (job, photos) in [(few, 11), (unwanted, 12)] {
        assert!(job.run().0.success());
        let run = run_of(&job);
        assert_eq!((photos_trained_on(&job), run.held_out.clone()), (photos, None));
        assert!(!run.readings.is_empty() && overfits(&run).iter().all(|(_, overfit)| overfit.is_none()));
    }
}
