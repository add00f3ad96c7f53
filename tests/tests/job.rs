//! The trainer as the server runs it: a job folder in, events, samples and checkpoints out, whatever is killed when.

mod lora;
mod overfit;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use app::event::{Event, EventKind, ExportFormat};
use app::job::JobState;
use app::recipe::{Concept, LrScheduler, PriorPreservation, RecipeDraft, SamplePlan, class_prompt, instance_prompt};
use app::run::Run;
use image::RgbImage;
use sha2::{Digest, Sha256};
use trainer::noise::{Noise, Purpose};

/// Longest that anything here may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(240);

/// A small reference model, so that a step takes a fraction of a second.
fn tiny_model() -> String {
    super::golden::dir().join("tiny-sd").to_string_lossy().into_owned()
}

pub fn recipe(steps: u32) -> RecipeDraft {
    RecipeDraft {
        pretrained_model_name_or_path: tiny_model(),
        concepts: vec![Concept {
            instance_prompt: instance_prompt("zwx", "dog"),
            instance_data_dir: "photos/0".into(),
            class_prompt: Some(class_prompt("dog")),
            class_data_dir: Some("class-images/0".into()),
        }],
        resolution: Some(64),
        max_train_steps: steps,
        learning_rate: 1e-3,
        prior: Some(PriorPreservation {
            num_class_images: 3,
            ..PriorPreservation::default()
        }),
        hflip: true,
        checkpointing_steps: 3,
        samples: SamplePlan {
            save_sample_prompt: "photo of zwx dog".into(),
            n_save_sample: 2,
            sample_interval: 3,
            save_infer_steps: 2,
            ..SamplePlan::default()
        },
        ..RecipeDraft::default()
    }
}

/// A job folder with drawn photos: stripes of different widths and colours.
pub struct Job {
    folder: tempfile::TempDir,
}

impl Job {
    pub fn new(recipe: &RecipeDraft) -> Self {
        Self::with_photos(recipe, 3)
    }

    pub fn with_photos(recipe: &RecipeDraft, photos: u32) -> Self {
        let count = photos;
        let folder = tempfile::tempdir().unwrap();
        let photos = folder.path().join("photos/0");
        std::fs::create_dir_all(&photos).unwrap();
        for number in 1..=count {
            let stripe = |x, y| {
                image::Rgb([
                    (x * number * 9 % 256) as u8,
                    (y * 5 % 256) as u8,
                    (60 * number % 256) as u8,
                ])
            };
            let photo = RgbImage::from_fn(96, 64 + number, stripe);
            photo.save(photos.join(format!("{number}.png"))).unwrap();
        }
        std::fs::write(
            folder.path().join("recipe.json"),
            serde_json::to_vec_pretty(recipe).unwrap(),
        )
        .unwrap();
        Self { folder }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub fn start(&self) -> Trainer {
        self.start_with(&[])
    }

    /// With more flags than it needs.
    pub fn start_with(&self, more: &[&OsStr]) -> Trainer {
        let mut child = Command::new(tests::executable("likeness-trainer"))
            .args(["job", "--device", "cpu", "--dir"])
            .arg(self.folder.path())
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Trainer { child, lines }
    }

    /// Runs to the end and gives what it printed.
    pub fn run(&self) -> (ExitStatus, Vec<Event>) {
        self.start().finish()
    }

    pub fn log(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(self.path("events.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn exports(&self) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.path("export"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let read = |path: PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        };
        files.into_iter().map(read).collect()
    }
}

pub struct Trainer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Trainer {
    /// The next event it prints; `None` when it ended.
    fn next(&mut self) -> Option<Event> {
        let mut line = String::new();
        match self.lines.read_line(&mut line).unwrap() {
            0 => None,
            _ => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    pub fn wait_for(&mut self, wanted: impl Fn(&EventKind) -> bool) -> Event {
        let since = Instant::now();
        while let Some(event) = self.next() {
            assert!(since.elapsed() < PATIENCE, "too slow");
            if wanted(&event.kind) {
                return event;
            }
        }
        panic!("the trainer ended before the event that was waited for")
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn finish(mut self) -> (ExitStatus, Vec<Event>) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let events = rest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (self.child.wait().unwrap(), events)
    }
}

fn is_step(kind: &EventKind, wanted: u32) -> bool {
    matches!(kind, EventKind::Step { step, .. } if *step == wanted)
}

fn sha256(path: &Path) -> String {
    hex::encode(Sha256::digest(std::fs::read(path).unwrap()))
}

#[test]
fn a_job_ends_with_samples_and_both_checkpoints() {
    let job = Job::new(&recipe(6));
    std::fs::write(job.path("photos/0/Thumbs.db"), b"no photo").unwrap();
    let (status, printed) = job.run();
    assert!(status.success(), "{status}: {:?}", printed.last());
    assert_eq!(printed, job.log(), "what is printed is what is on disk");
    let run = Run::from_events(&printed).expect("no gap in seq");
    assert_eq!(run.state, JobState::Done);
    assert_eq!((run.steps, run.step()), (6, 6));
    assert_eq!((run.class_images.done, run.class_images.total), (3, 3));
    assert_eq!(run.samples.keys().copied().collect::<Vec<_>>(), [0, 3, 6]);
    assert!(
        run.warnings.iter().any(|w| w.contains("Thumbs.db")),
        "{:?}",
        run.warnings
    );
    for shot in run.samples.values().flatten() {
        let full = image::open(job.path(&shot.file)).unwrap();
        assert_eq!((full.width(), full.height()), (64, 64));
        let preview = image::open(job.path(&shot.preview)).unwrap();
        assert!(preview.width() <= 256);
    }
    assert_ne!(
        sha256(&job.path("samples/0/0.png")),
        sha256(&job.path("samples/6/0.png")),
        "training changes what is drawn"
    );
    let formats: Vec<ExportFormat> = run.exported.iter().map(|f| f.format).collect();
    assert_eq!(formats, [ExportFormat::Safetensors, ExportFormat::Ckpt]);
    for file in &run.exported {
        let path = job.path("export").join(&file.name);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), file.bytes);
        assert_eq!(sha256(&path), file.sha256);
    }
    assert!(
        !job.path("state/training.safetensors").exists(),
        "a finished run needs no state"
    );
}

#[test]
fn a_killed_run_continues_and_ends_with_the_same_bits() {
    is_killed_and_ends_with_the_same_bits(&recipe(24));
}

#[test]
fn a_run_in_low_memory_says_what_is_different_and_continues_with_the_same_bits() {
    let log = is_killed_and_ends_with_the_same_bits(&RecipeDraft {
        low_memory: true,
        ..recipe(24)
    });
    let told = |event: &Event| matches!(&event.kind, EventKind::Warning { code, message } if code == "low_memory" && message.contains("clipped"));
    assert!(log.iter().any(told));
}

/// `recipe` is of enough steps that the kill lands before the end on any machine. Gives the log of the killed run.
fn is_killed_and_ends_with_the_same_bits(recipe: &RecipeDraft) -> Vec<Event> {
    let steps = recipe.max_train_steps;
    let whole = Job::new(recipe);
    assert!(whole.run().0.success());

    let cut = Job::new(recipe);
    // In the class images, then after a saved state, between two saves.
    let mut trainer = cut.start();
    trainer.wait_for(|kind| matches!(kind, EventKind::ClassImage { .. }));
    trainer.kill();
    let mut trainer = cut.start();
    trainer.wait_for(|kind| is_step(kind, 5));
    trainer.kill();
    let (status, printed) = cut.run();
    assert!(status.success(), "{status}");
    let EventKind::Started { rewound_to, .. } = &printed[0].kind else {
        panic!("{:?}", printed[0])
    };
    let rewound_to = rewound_to.expect("it goes on from a saved state");
    assert!((3..steps).contains(&rewound_to), "{rewound_to}");
    let run = Run::from_events(&cut.log()).expect("no gap in seq over three processes");
    assert_eq!(run.state, JobState::Done);
    assert_eq!(
        run.points.iter().map(|p| p.step).collect::<Vec<_>>(),
        (1..=steps).collect::<Vec<_>>()
    );

    let losses = |job: &Job| -> Vec<(u32, f32)> {
        let run = Run::from_events(&job.log()).unwrap();
        run.points.iter().map(|p| (p.step, p.loss)).collect()
    };
    assert_eq!(losses(&whole), losses(&cut));
    let (whole_files, cut_files) = (whole.exports(), cut.exports());
    assert_eq!(whole_files.len(), 2);
    for ((name, bytes), (cut_name, cut_bytes)) in whole_files.iter().zip(&cut_files) {
        assert_eq!(name, cut_name);
        assert!(bytes == cut_bytes, "{name} differs");
    }
    assert_eq!(
        sha256(&whole.path(&format!("samples/{steps}/1.png"))),
        sha256(&cut.path(&format!("samples/{steps}/1.png")))
    );
    cut.log()
}

/// Everything that a state must hold: accumulated gradients, a warm-up, averages, moments in 8 bits, a text encoder that
/// stops learning.
#[test]
fn a_run_stopped_and_killed_anywhere_ends_with_the_same_bits() {
    const STEPS: u32 = 20;
    let recipe = RecipeDraft {
        gradient_accumulation_steps: 2,
        lr_scheduler: LrScheduler::Cosine,
        lr_warmup_steps: 4,
        text_encoder_learning_rate: Some(3e-4),
        stop_text_encoder_at: Some(11),
        snr_gamma: Some(5.0),
        offset_noise: 0.1,
        use_ema: true,
        ema_decay: 0.8,
        use_8bit_adam: true,
        train_batch_size: 2,
        samples: SamplePlan {
            sample_interval: 0,
            ..recipe(STEPS).samples
        },
        ..recipe(STEPS)
    };
    let whole = Job::new(&recipe);
    assert!(whole.run().0.success());
    let exports = whole.exports();
    // Drawn from a fixed seed, so that a failure can be repeated.
    let drawn = Noise::new(20_261_126).uniform(Purpose::Shuffle, 0, 6);
    let mut places = drawn.iter().map(|u| 1 + (u * f64::from(STEPS - 2)) as u32);
    let mut stopped = 0;
    for round in 0..3 {
        let (stop, kill) = (places.next().unwrap(), places.next().unwrap());
        println!("round {round}: stopped after step {stop} or soon after, killed in step {kill} or later");
        let cut = Job::new(&recipe);
        let mut trainer = cut.start();
        trainer.wait_for(|kind| is_step(kind, stop));
        std::fs::write(cut.path("stop"), b"").unwrap();
        let (status, _) = trainer.finish();
        // It may have been over before the file was seen.
        if status.code() == Some(130) {
            stopped += 1;
            std::fs::remove_file(cut.path("stop")).unwrap();
            let mut trainer = cut.start();
            while let Some(event) = trainer.next() {
                if matches!(event.kind, EventKind::Step { step, .. } if step >= kill) {
                    break;
                }
            }
            trainer.kill();
            assert!(cut.run().0.success());
        }
        // A stop left its own export besides, named after its step.
        let cut_exports = cut.exports();
        assert_eq!(exports.len(), 2);
        for (name, bytes) in &exports {
            let same = cut_exports
                .iter()
                .find(|(other, _)| other == name)
                .map(|(_, there)| there == bytes);
            assert_eq!(same, Some(true), "round {round}: {name}");
        }
        assert_eq!(
            sha256(&whole.path(&format!("samples/{STEPS}/1.png"))),
            sha256(&cut.path(&format!("samples/{STEPS}/1.png")))
        );
    }
    assert!(stopped > 0, "no stop came in time");
}

#[test]
fn a_stop_file_ends_it_early_with_a_checkpoint() {
    let job = Job::new(&recipe(10_000));
    let mut trainer = job.start();
    trainer.wait_for(|kind| is_step(kind, 2));
    std::fs::write(job.path("stop"), b"").unwrap();
    let (status, _) = trainer.finish();
    assert_eq!(status.code(), Some(130));
    let run = Run::from_events(&job.log()).unwrap();
    assert_eq!(run.state, JobState::Stopped);
    assert_eq!(run.exported.len(), 2);
    assert_eq!(run.exported_step, Some(run.step()));
    assert!(
        job.path("state/training.safetensors").exists(),
        "it can be taken up again"
    );
}

#[test]
fn a_signal_ends_it_as_the_stop_file_does() {
    let job = Job::new(&recipe(10_000));
    let mut trainer = job.start();
    trainer.wait_for(|kind| is_step(kind, 1));
    let pid = rustix::process::Pid::from_child(&trainer.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (status, _) = trainer.finish();
    assert_eq!(status.code(), Some(130));
    assert_eq!(Run::from_events(&job.log()).unwrap().state, JobState::Stopped);
}

fn failure(job: &Job) -> app::job::Failure {
    let (status, _) = job.run();
    assert_eq!(status.code(), Some(1));
    match job.log().pop().unwrap().kind {
        EventKind::Failed { failure } => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_photo_is_named() {
    let job = Job::new(&recipe(2));
    let bytes = std::fs::read(job.path("photos/0/1.png")).unwrap();
    std::fs::write(job.path("photos/0/torn.png"), &bytes[..bytes.len() / 2]).unwrap();
    let failure = failure(&job);
    assert_eq!(failure.code, "bad_photo");
    assert!(failure.message.contains("torn.png"), "{}", failure.message);
}

#[test]
fn a_folder_without_photos_is_named() {
    let job = Job::new(&recipe(2));
    for number in 1..=3 {
        std::fs::remove_file(job.path(&format!("photos/0/{number}.png"))).unwrap();
    }
    let failure = failure(&job);
    assert_eq!(failure.code, "no_photos");
    assert!(failure.message.contains("photos/0"), "{}", failure.message);
}

#[test]
fn a_bad_recipe_is_named_with_its_field() {
    let job = Job::new(&recipe(2));
    let text = std::fs::read_to_string(job.path("recipe.json")).unwrap();
    std::fs::write(
        job.path("recipe.json"),
        text.replace("\"resolution\": 64", "\"resolution\": 63"),
    )
    .unwrap();
    let failure = failure(&job);
    assert_eq!(failure.code, "bad_recipe");
    assert!(failure.message.contains("recipe.json") && failure.message.contains("resolution is 63"));
}

#[test]
fn a_missing_model_is_named() {
    let mut recipe = recipe(2);
    recipe.pretrained_model_name_or_path = "/nowhere/model.safetensors".into();
    let failure = failure(&Job::new(&recipe));
    assert_eq!(failure.code, "bad_model");
    assert!(
        failure.message.contains("/nowhere/model.safetensors"),
        "{}",
        failure.message
    );
}

#[test]
fn a_second_trainer_leaves_a_running_job_alone() {
    let job = Job::new(&recipe(10_000));
    let mut trainer = job.start();
    trainer.wait_for(|kind| is_step(kind, 1));
    let (status, printed) = job.run();
    assert_eq!((status.code(), printed.len()), (Some(1), 0));
    trainer.wait_for(|kind| is_step(kind, 2));
    trainer.kill();
}
