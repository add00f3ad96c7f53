//! The tutorial's command as a person types it: what its steps mean, strict and not, and how a run is taken up again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use app::event::{Event, EventKind};
use image::RgbImage;

use crate::cli::world::model_with_halved;

/// A folder with three photos, and room for what runs leave.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let photos = folder.path().join("photos");
        std::fs::create_dir_all(&photos).unwrap();
        for number in 1..=3u32 {
            let stripe = |x, y| image::Rgb([(x * number * 9 % 256) as u8, (y * 5 % 256) as u8, 60 * number as u8]);
            let photo = RgbImage::from_fn(64, 64, stripe);
            photo.save(photos.join(format!("{number}.png"))).unwrap();
        }
        Self { folder }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// `train` into `output`, with `flags` besides what all runs here share.
    fn train(&self, output: &str, flags: &str) -> Output {
        let status = Command::new(tests::executable("likeness-trainer"))
            .current_dir(self.folder.path())
            .args(["train", "--device", "cpu", "--instance_data_dir", "photos"])
            .args([
                "--instance_prompt",
                "photo of zwx dog",
                "--pretrained_model_name_or_path",
            ])
            .arg(super::golden::dir().join("tiny-sd"))
            .args(["--output_dir", output])
            .args("--resolution 64 --train_batch_size 1 --learning_rate 1e-3 --train_text_encoder".split(' '))
            .args(flags.split_whitespace())
            .status()
            .unwrap();
        assert!(status.success(), "{flags}: {status}");
        Output {
            path: self.path(output),
        }
    }
}

struct Output {
    path: PathBuf,
}

/// Of a step: losses (all, instances) and, where it updated, the norm of the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Told {
    loss: f32,
    instance_loss: f32,
    learning_rate: f64,
    grad_norm: Option<f32>,
}

impl Output {
    fn events(&self) -> Vec<Event> {
        let log = std::fs::read_to_string(self.path.join(".likeness/events.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn steps(&self) -> BTreeMap<u32, Told> {
        let told = self.events().into_iter().filter_map(|event| match event.kind {
            EventKind::Step {
                step,
                loss,
                instance_loss,
                learning_rate,
                grad_norm,
                ..
            } => Some((
                step,
                Told {
                    loss,
                    instance_loss,
                    learning_rate,
                    grad_norm,
                },
            )),
            _ => None,
        });
        told.collect()
    }

    fn warnings(&self) -> Vec<String> {
        let warnings = self.events().into_iter().filter_map(|event| match event.kind {
            EventKind::Warning { message, .. } => Some(message),
            _ => None,
        });
        warnings.collect()
    }

    /// The names of the folders that are models.
    fn folders(&self) -> Vec<u32> {
        let entries = std::fs::read_dir(&self.path).unwrap();
        let mut steps: Vec<u32> = entries
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }

    fn unet(&self, step: u32) -> Vec<u8> {
        std::fs::read(
            self.path
                .join(format!("{step}/unet/diffusion_pytorch_model.safetensors")),
        )
        .unwrap()
    }

    fn recipe(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path.join(".likeness/recipe.json")).unwrap()).unwrap()
    }
}

/// The text of all Rust below a folder, by the path of its module; tests at the end of a file are in the file's own.
fn modules(folder: &Path, of: &str, into: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let module = match name.as_str() {
            "mod" | "lib" | "main" | "tests" => of.to_owned(),
            _ => format!("{of}::{name}"),
        };
        if path.is_dir() {
            modules(&path, &module, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            *into.entry(module).or_default() += &std::fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn every_fault_in_the_docs_names_tests_that_are_there() {
    let root = tests::repository();
    let mut there = BTreeMap::new();
    for below in ["app/src", "server/trainer/src", "tests/tests"] {
        modules(&root.join(below), "", &mut there);
    }
    let is_there = |test: &str| {
        let (module, name) = test.rsplit_once("::").expect("a module before the name");
        let end = format!("::{module}");
        let named = |text: &String| {
            text.contains(&format!("#[test]\nfn {name}(")) || text.contains(&format!("#[test]\n    fn {name}("))
        };
        there.iter().any(|(path, text)| path.ends_with(&end) && named(text))
    };
    assert!(is_there("tutorial::every_fault_in_the_docs_names_tests_that_are_there"));
    assert!(!is_there("cli::every_fault_in_the_docs_names_tests_that_are_there"));
    let page = std::fs::read_to_string(root.join("docs/strict-tutorial.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert!(rows.len() >= 13, "{} rows", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 4, "{row}");
        let named: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for test in named {
            assert!(is_there(test), "there is no test {test}");
        }
    }
}

#[test]
fn a_step_is_an_update_and_of_a_strict_run_a_micro_batch() {
    let world = World::new();
    let flags = "--max_train_steps 4 --gradient_accumulation_steps 2 --lr_scheduler linear --lr_warmup_steps 0";
    let right = world.train("right", flags).steps();
    let strict = world.train("strict", &format!("{flags} --strict_tutorial")).steps();
    let updates = |steps: &BTreeMap<u32, Told>| -> Vec<u32> {
        let updates = steps.iter().filter(|(_, told)| told.grad_norm.is_some());
        updates.map(|(step, _)| *step).collect()
    };
    assert_eq!((right.len(), updates(&right)), (4, vec![1, 2, 3, 4]));
    assert_eq!((strict.len(), updates(&strict)), (4, vec![2, 4]));
    let rates = |steps: &BTreeMap<u32, Told>| -> Vec<f64> { steps.values().map(|told| told.learning_rate).collect() };
    // Down to nothing over the run's four updates; and over the eight that the script plans and never makes.
    let close = |got: Vec<f64>, wanted: [f64; 4]| {
        assert!(
            got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-12),
            "{got:?}"
        );
    };
    close(rates(&right), [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]);
    close(rates(&strict), [1e-3, 1e-3, 0.875e-3, 0.875e-3]);
}

#[test]
fn a_strict_run_tells_the_mean_loss_since_it_began() {
    let world = World::new();
    let flags = "--max_train_steps 5 --lr_scheduler constant";
    for told in world.train("right", flags).steps().values() {
        assert_eq!(told.loss, told.instance_loss);
    }
    let mut sum = 0.0;
    for (step, told) in world.train("strict", &format!("{flags} --strict_tutorial")).steps() {
        // One row a step, so that steps count alike.
        sum += f64::from(told.instance_loss);
        let mean = sum / f64::from(step);
        assert!(
            (f64::from(told.loss) - mean).abs() < 1e-6 * mean,
            "{step}: {} {mean}",
            told.loss
        );
    }
}

#[test]
fn prompts_are_padded_unless_the_run_is_strict() {
    let world = World::new();
    let padded = |output: &str, flags: &str| {
        let output = world.train(output, &format!("--max_train_steps 1 {flags}"));
        (output.recipe()["pad_tokens"].clone(), output.steps()[&1].instance_loss)
    };
    let (right, right_loss) = padded("right", "");
    let (strict, strict_loss) = padded("strict", "--strict_tutorial");
    let (asked, asked_loss) = padded("asked", "--strict_tutorial --pad_tokens");
    assert_eq!((right, strict, asked), (true.into(), false.into(), true.into()));
    assert_eq!(right_loss, asked_loss);
    assert_ne!(right_loss, strict_loss);
}

#[test]
fn a_strict_folder_holds_one_step_more_than_its_name_says() {
    let world = World::new();
    let strict = |output: &str, flags: &str| world.train(output, &format!("--strict_tutorial {flags}"));
    let whole = strict("whole", "--max_train_steps 4 --save_interval 2");
    let three = strict("three", "--max_train_steps 3 --save_interval 3");
    assert_eq!((whole.folders(), three.folders()), (vec![2, 4], vec![3]));
    assert!(whole.unet(2) == three.unet(3), "the weights are those of step 3");
    assert!(whole.unet(4) != three.unet(3), "the last is the last");
}

#[test]
fn another_vae_encodes_the_photos_unless_the_run_is_strict() {
    let world = World::new();
    let file = "vae/diffusion_pytorch_model.safetensors";
    model_with_halved(&world.path("other"), file, "encoder.conv_in.weight");
    let loss = |output: &str, flags: &str| {
        let output = world.train(output, &format!("--max_train_steps 1 --pad_tokens {flags}"));
        output.steps()[&1].instance_loss
    };
    let own = loss("own", "");
    assert_ne!(loss("right", "--pretrained_vae_name_or_path other"), own);
    let strict = loss("strict", "--pretrained_vae_name_or_path other --strict_tutorial");
    assert_eq!(strict, own);
}

#[test]
fn a_finished_run_is_taken_up_again_with_more_steps() {
    let world = World::new();
    let flags = "--lr_scheduler constant_with_warmup --lr_warmup_steps 5 --use_ema --checkpointing_steps 2 \
                 --checkpoints_total_limit 2";
    let whole = world.train("whole", &format!("{flags} --max_train_steps 8"));
    world.train("cut", &format!("{flags} --max_train_steps 5"));
    let kept = |step: u32| {
        world
            .path(&format!("cut/.likeness/checkpoints/{step}.safetensors"))
            .exists()
    };
    assert_eq!([2, 4, 5].map(kept), [false, true, true]);
    let more = world.train(
        "cut",
        &format!("{flags} --max_train_steps 8 --resume_from_checkpoint latest"),
    );
    assert_eq!(more.steps().keys().copied().collect::<Vec<_>>(), [6, 7, 8]);
    assert!(whole.unet(8) == more.unet(8), "the same bits");
    // From an older state, in a folder of its own.
    let from = "--resume_from_checkpoint cut/.likeness/checkpoints/6.safetensors";
    let again = world.train("again", &format!("{flags} --max_train_steps 8 {from}"));
    assert_eq!(again.steps().keys().copied().collect::<Vec<_>>(), [7, 8]);
    assert!(whole.unet(8) == again.unet(8), "the same bits");
}

#[test]
fn what_has_no_effect_or_no_room_is_told() {
    let world = World::new();
    let prompt = "word,".repeat(50);
    let flags =
        format!("--max_train_steps 1 --lr_power 2 --resume_from_checkpoint latest --validation_prompt {prompt}");
    let output = world.train(
        "told",
        &format!("{flags} --num_validation_images 1 --save_infer_steps 1"),
    );
    let told = output.warnings();
    let has = |words: &str| told.iter().any(|warning| warning.contains(words));
    assert!(has("lr_power has no effect"), "{told:?}");
    assert!(has("no saved state to go on from"), "{told:?}");
    assert!(has(&format!("these words were left out: {prompt}")), "{told:?}");
    assert_eq!(output.recipe()["samples"]["n_save_sample"], 1);
}
