//! Figures and situations in plain words: what both sides say the same way.

use crate::api::HubFacts;
use crate::event::Phase;
use crate::job::{JobState, JobSummary};
use crate::recipe::RecipeDraft;
use crate::run::{MemoryPlan, Run};

/// `0.4 s`, `40 s`, `6 min`, `1 h 20 min`, `2 d 3 h`: two figures at most.
pub fn duration(ms: f64) -> String {
    if !ms.is_finite() || ms < 0.0 {
        return "unknown".into();
    }
    let s = ms / 1000.0;
    if s < 9.95 {
        return format!("{s:.1} s");
    }
    let s = s.round() as u64;
    match s {
        0..=89 => format!("{s} s"),
        90..=599 => format!("{} min {} s", s / 60, s % 60).replace(" 0 s", ""),
        600..=5399 => format!("{} min", (s + 30) / 60),
        5400..=86_399 => {
            let minutes = (s + 30) / 60;
            format!("{} h {} min", minutes / 60, minutes % 60).replace(" 0 min", "")
        }
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Decimal units, as download dialogs show them: `4.3 MB`.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n < 1e3 => format!("{n} bytes"),
        n if n < 1e6 => format!("{:.0} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}

/// A device's memory, in the binary units that it is sold in: `9.6 GiB`, `310 MiB`.
pub fn memory(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match mib {
        mib if mib < 999.5 => format!("{mib:.0} MiB"),
        mib => format!("{:.1} GiB", mib / 1024.0),
    }
}

/// The plan of a run's memory: `9.6 of 79.2 GiB`.
pub fn memory_plan(plan: &MemoryPlan) -> String {
    let peak = memory(plan.peak);
    match plan.limit.map(memory) {
        None => peak,
        Some(limit) => match (peak.split_once(' '), limit.split_once(' ')) {
            (Some((figure, unit)), Some((_, same))) if unit == same => format!("{figure} of {limit}"),
            _ => format!("{peak} of {limit}"),
        },
    }
}

/// What a model of the Hub costs to have: `4.27 GB are downloaded first, once.`
pub fn download(facts: &HubFacts) -> String {
    match (facts.missing_bytes, facts.bytes) {
        (0, all) => format!("All of it, {}, is on this server already.", bytes(all)),
        (missing, all) if missing < all => {
            format!(
                "{} of {} are still to be downloaded; it goes on when training starts.",
                bytes(missing),
                bytes(all)
            )
        }
        (_, all) => format!("{} are downloaded when training starts, once.", bytes(all)),
    }
}

/// A problem's words as a sentence of their own. A name at the start, such as a path or a field, stays as it is.
pub fn sentence(problem: &str) -> String {
    let first = problem.split(' ').next().unwrap_or_default();
    let mut letters = problem.chars();
    let begun = match letters.next() {
        Some(letter) if first.chars().all(char::is_alphabetic) => letter.to_uppercase().chain(letters).collect(),
        _ => problem.to_owned(),
    };
    format!("{}.", begun.trim_end_matches('.'))
}

/// A photo of a job by its number, as the page counts them, from its file's `003-1a2b3c4d.png`.
pub fn photo_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    match name.split('-').next().and_then(|number| number.parse::<u32>().ok()) {
        Some(position) => format!("Photo {}", position + 1),
        None => format!("The photo {name}"),
    }
}

/// `860 million`, `8.4 million`, `310,000`.
pub fn count(n: u64) -> String {
    match n {
        0..10_000_000 if n < 1_000_000 => thousands(n),
        0..10_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.0} million", n as f64 / 1e6),
    }
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 photo`, `9 photos`.
pub fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(n), if n == 1 { one } else { many })
}

/// A learning rate or other small figure: `1e-6`, `2.5e-4`, `0.01`.
pub fn small(x: f64) -> String {
    if x == 0.0 {
        return "0".into();
    }
    if (1e-3..1e4).contains(&x.abs()) {
        let text = format!("{x:.4}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let text = format!("{x:.2e}");
    match text.split_once('e') {
        Some((digits, power)) if digits.contains('.') => {
            format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// Speed as people say it: steps per second, or seconds per step when slow.
pub fn speed(ms_per_step: f32) -> String {
    if ms_per_step.is_nan() || ms_per_step <= 0.0 {
        "unknown".into()
    } else if ms_per_step <= 1000.0 {
        let per_s = 1000.0 / ms_per_step;
        if per_s < 10.0 {
            format!("{per_s:.1} steps/s")
        } else {
            format!("{per_s:.0} steps/s")
        }
    } else {
        format!("{:.1} s per step", ms_per_step / 1000.0)
    }
}

/// Several of a noun: `dogs`, `people`, `boxes`, `ponies`. English has more exceptions than are worth knowing here.
pub fn several(noun: &str) -> String {
    let noun = noun.trim();
    let before = |ending: &str| {
        noun.strip_suffix(ending)
            .filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']))
    };
    match noun {
        "person" => "people".into(),
        "child" => "children".into(),
        _ if noun.ends_with("man") && noun != "human" => format!("{}men", &noun[..noun.len() - 3]),
        _ if ["s", "x", "ch", "sh"].iter().any(|end| noun.ends_with(end)) => format!("{noun}es"),
        _ => before("y").map_or_else(|| format!("{noun}s"), |stem| format!("{stem}ies")),
    }
}

/// The whole plan in one sentence, for the Train place. `class_noun` names what class images show.
pub fn plan(draft: &RecipeDraft, photos: usize, class_noun: &str) -> String {
    let steps = plural(u64::from(draft.max_train_steps), "step", "steps");
    let photos = match photos {
        0 => "your photos".to_owned(),
        n if draft.holds_out(n) => format!("{} and one held out", plural(n as u64 - 1, "photo", "photos")),
        n => plural(n as u64, "photo", "photos"),
    };
    let others = match class_noun.trim() {
        "" => "others of its kind".to_owned(),
        noun => format!("other {}", several(noun)),
    };
    let prior = match &draft.prior {
        Some(prior) => {
            let images = plural(u64::from(prior.num_class_images), "picture", "pictures");
            format!("; {images} of {others} are drawn first, so that the model does not forget them")
        }
        None => String::new(),
    };
    let rounds = draft.sample_steps().len() as u64;
    let samples = match rounds {
        0 => "No samples are drawn on the way.".to_owned(),
        1 => format!(
            "{} at the end.",
            plural(u64::from(draft.samples.n_save_sample), "sample", "samples")
        ),
        rounds => format!(
            "{} in {rounds} rounds show how it gets there.",
            plural(rounds * u64::from(draft.samples.n_save_sample), "sample", "samples")
        ),
    };
    format!("{steps} on {photos}{prior}. {samples}")
}

/// Where a run is, in one line. `class_prompt` is what class images are drawn from.
pub fn situation(run: &Run, class_prompt: Option<&str>) -> String {
    let (step, steps) = (run.step(), run.steps);
    match &run.state {
        JobState::Queued => "Waiting for its turn.".into(),
        JobState::Stopping => "Stopping after this step. What was learned is saved.".into(),
        JobState::Done => match run.started_ms {
            Some(from) => format!(
                "Done: {} in {}. The checkpoint is ready.",
                plural(u64::from(steps.max(step)), "step", "steps"),
                duration(run.last_ms.saturating_sub(from) as f64)
            ),
            None => "Done. The checkpoint is ready.".into(),
        },
        JobState::Stopped if step == 0 => "Stopped before the first step.".into(),
        JobState::Stopped => format!("Stopped after step {step} of {steps}. What was learned is saved."),
        JobState::Failed { failure } => format!("It stopped with an error: {}.", failure.message.trim_end_matches('.')),
        JobState::Running => running(run, class_prompt),
    }
}

fn running(run: &Run, class_prompt: Option<&str>) -> String {
    let (step, steps) = (run.step(), run.steps);
    let of = format!("Step {step} of {steps}");
    match run.phase {
        None => "Starting the trainer.".into(),
        Some(Phase::Loading) => match run.downloading() {
            None => "Reading the base model.".into(),
            Some(coming) => format!(
                "Downloading {}: {} of {}.",
                coming.model,
                bytes(coming.done),
                bytes(coming.total)
            ),
        },
        Some(Phase::ClassImages) => {
            let what = class_prompt.map_or("class images".to_owned(), |p| format!("\u{201c}{p}\u{201d}"));
            match run.class_images.total {
                0 => format!("Drawing {what} with the base model, so that it does not forget its kind."),
                total => format!(
                    "Drawing {what} with the base model, so that it does not forget its kind: {} of {total}.",
                    run.class_images.done
                ),
            }
        }
        Some(Phase::CachingLatents) => "Preparing the photos for the model.".into(),
        Some(Phase::Training) if step == 0 => format!("Starting the first of {steps} steps."),
        Some(Phase::Training) => match run.remaining_ms() {
            Some(left) if step < steps => format!("{of}. About {} of training left.", duration(f64::from(left))),
            _ => format!("{of}."),
        },
        Some(Phase::Sampling) if step == 0 => "Drawing samples with the untrained model, to compare with.".into(),
        Some(Phase::Sampling) => format!("{of}. Drawing samples."),
        Some(Phase::Exporting) => format!("{of}. Writing the checkpoint files."),
    }
}

/// A job's state in a word or two, for lists.
pub fn state(job: &JobSummary) -> String {
    match &job.state {
        JobState::Queued => "waiting".into(),
        JobState::Running if job.step == 0 => "preparing".into(),
        JobState::Running => format!("step {} of {}", job.step, job.steps),
        JobState::Stopping => "stopping".into(),
        JobState::Done => "done".into(),
        JobState::Stopped => format!("stopped at step {}", job.step),
        JobState::Failed { .. } => "failed".into(),
    }
}

/// `just now`, `5 min ago`, `3 h ago`, `2 d ago`.
pub fn ago(now_ms: u64, then_ms: u64) -> String {
    match now_ms.saturating_sub(then_ms) / 60_000 {
        0 => "just now".into(),
        minutes @ 1..=59 => format!("{minutes} min ago"),
        minutes @ 60..=1439 => format!("{} h ago", minutes / 60),
        minutes => format!("{} d ago", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventKind};

    #[test]
    fn durations_read_well_from_half_a_second_to_days() {
        let cases = [
            (400.0, "0.4 s"),
            (9960.0, "10 s"),
            (40_000.0, "40 s"),
            (90_000.0, "1 min 30 s"),
            (120_000.0, "2 min"),
            (719_000.0, "12 min"),
            (18_000_000.0, "5 h"),
            (19_260_000.0, "5 h 21 min"),
            (183_600_000.0, "2 d 3 h"),
            (f64::NAN, "unknown"),
        ];
        for (ms, words) in cases {
            assert_eq!(duration(ms), words, "{ms}");
        }
    }

    #[test]
    fn a_download_says_what_is_still_to_come() {
        let said = |missing_bytes| {
            download(&HubFacts {
                card: String::new(),
                license: None,
                bytes: 4_270_000_000,
                missing_bytes,
                revision: None,
            })
        };
        assert_eq!(
            said(4_270_000_000),
            "4.27 GB are downloaded when training starts, once."
        );
        assert!(said(1_000_000_000).starts_with("1.00 GB of 4.27 GB are still"));
        assert_eq!(said(0), "All of it, 4.27 GB, is on this server already.");
    }

    #[test]
    fn figures_carry_units() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(4_300_000), "4.3 MB");
        assert_eq!(bytes(2_130_000_000), "2.13 GB");
        assert_eq!(count(310_000), "310,000");
        assert_eq!(count(8_400_000), "8.4 million");
        assert_eq!(count(859_520_964), "860 million");
        assert_eq!(small(1e-6), "1e-6");
        assert_eq!(small(2.5e-4), "2.5e-4");
        assert_eq!(small(0.01), "0.01");
        assert_eq!(speed(40.0), "25 steps/s");
        assert_eq!(speed(400.0), "2.5 steps/s");
        assert_eq!(speed(3500.0), "3.5 s per step");
        assert_eq!(speed(f32::NAN), "unknown");
    }

    #[test]
    fn nouns_have_plurals() {
        for (one, many) in [
            ("dog", "dogs"),
            ("person", "people"),
            ("woman", "women"),
            ("pony", "ponies"),
            ("toy", "toys"),
            ("fox", "foxes"),
        ] {
            assert_eq!(several(one), many);
        }
    }

    #[test]
    fn the_plan_is_one_breath() {
        let mut draft = RecipeDraft::default();
        draft.samples.save_sample_prompt = "photo of zwx dog".into();
        draft.samples.sample_interval = 200;
        assert_eq!(
            plan(&draft, 9, "dog"),
            "800 steps on 9 photos; 50 pictures of other dogs are drawn first, so that the model does not \
             forget them. 20 samples in 5 rounds show how it gets there."
        );
        draft.prior = None;
        draft.samples.save_sample_prompt.clear();
        assert_eq!(
            plan(&draft, 1, "dog"),
            "800 steps on 1 photo. No samples are drawn on the way."
        );
    }

    #[test]
    fn a_plan_says_that_a_photo_is_held_out() {
        let mut draft = crate::draft::JobDraft::default().plan(&RecipeDraft::default()).recipe;
        assert!(plan(&draft, 12, "dog").starts_with("800 steps on 11 photos and one held out;"));
        assert!(plan(&draft, 11, "dog").starts_with("800 steps on 11 photos;"));
        draft.holdout_photo = false;
        assert!(plan(&draft, 12, "dog").starts_with("800 steps on 12 photos;"));
        assert_eq!(photo_of("photos/0/006-1a2b3c4d.png"), "Photo 7");
        assert_eq!(photo_of("dog/one.png"), "The photo one.png");
    }

    #[test]
    fn a_problem_becomes_a_sentence_and_names_stay_names() {
        assert_eq!(sentence("the VAE cannot be used"), "The VAE cannot be used.");
        assert_eq!(
            sentence("learning_rate is 5; at most 1."),
            "learning_rate is 5; at most 1."
        );
        assert_eq!(sentence("owner/vae: no such model"), "owner/vae: no such model.");
    }

    #[test]
    fn a_run_says_where_it_is() {
        let mut run = Run::default();
        let mut seq = 0;
        let mut then = |run: &mut Run, kind: EventKind| {
            seq += 1;
            let event = Event {
                seq,
                at_ms: seq * 1000,
                kind,
            };
            run.apply(&event).expect("in order");
            situation(run, Some("photo of a dog"))
        };
        assert_eq!(then(&mut run, EventKind::Queued), "Waiting for its turn.");
        let started = EventKind::Started {
            trainer: "cpu".into(),
            device: "CPU".into(),
            rewound_to: None,
        };
        assert_eq!(then(&mut run, started), "Starting the trainer.");
        let phase = |phase| EventKind::Phase { phase };
        then(&mut run, phase(Phase::ClassImages));
        let class_image = EventKind::ClassImage {
            concept: 0,
            done: 12,
            total: 50,
            file: "class-images/0/a.png".into(),
        };
        assert_eq!(
            then(&mut run, class_image),
            "Drawing \u{201c}photo of a dog\u{201d} with the base model, so that it does not forget its kind: 12 of 50."
        );
        run.steps = 10;
        then(&mut run, phase(Phase::Training));
        let step = EventKind::Step {
            step: 4,
            loss: 0.1,
            instance_loss: 0.1,
            prior_loss: None,
            learning_rate: 1e-6,
            grad_norm: None,
            loss_scale: None,
            skipped_updates: 0,
            ms: 2000.0,
        };
        assert_eq!(then(&mut run, step), "Step 4 of 10. About 12 s of training left.");
        assert_eq!(
            then(&mut run, EventKind::Stopped { step: 4 }),
            "Stopped after step 4 of 10. What was learned is saved."
        );
    }
}
