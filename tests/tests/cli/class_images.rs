//! Class images: drawn once, whatever is cut off; of use, each of them; and found again by the next run.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use app::event::EventKind;
use app::recipe::RecipeDraft;
use image::RgbImage;
use trainer::device::Device;
use trainer::dreambooth::learner::Learner;
use trainer::noise::{Noise, Purpose};
use trainer::pipeline::SampleRequest;
use trainer::schedulers::SamplerKind;

use super::world::{World, names, stripes, tiny_model};
use crate::job::{Job, recipe};

/// One step on nine class images, drawn by twos, slowly enough to be killed between them.
fn nine() -> RecipeDraft {
    let mut recipe = RecipeDraft {
        sample_batch_size: 2,
        ..recipe(1)
    };
    if let Some(prior) = &mut recipe.prior {
        prior.num_class_images = 9;
    }
    recipe.samples.save_infer_steps = 24;
    recipe.samples.save_sample_prompt.clear();
    recipe
}

fn images(job: &Job) -> Vec<(String, Vec<u8>)> {
    let folder = job.path("class-images/0");
    let read = |name: String| {
        let bytes = std::fs::read(folder.join(&name)).unwrap();
        (name, bytes)
    };
    names(&folder).into_iter().map(read).collect()
}

/// What was said about class images: so many are done, and warnings about them.
fn told(job: &Job) -> (Vec<u32>, Vec<String>) {
    let (mut done, mut warnings) = (Vec::new(), Vec::new());
    for event in job.log() {
        match event.kind {
            EventKind::ClassImage { done: count, .. } => done.push(count),
            EventKind::Warning { message, .. } => warnings.push(message),
            _ => {}
        }
    }
    (done, warnings)
}

/// A job whose class images are another one's.
fn with_images_of(recipe: &RecipeDraft, other: &Job) -> Job {
    let job = Job::new(recipe);
    std::fs::create_dir_all(job.path("class-images/0")).unwrap();
    for (name, bytes) in images(other) {
        std::fs::write(job.path("class-images/0").join(name), bytes).unwrap();
    }
    job
}

/// The ninth is drawn beside one that nobody wants, and not by itself.
#[test]
fn an_image_is_the_same_however_many_are_drawn() {
    let (nine, mut ten) = (Job::new(&nine()), nine());
    if let Some(prior) = &mut ten.prior {
        prior.num_class_images = 10;
    }
    let ten = Job::new(&ten);
    assert!(nine.run().0.success() && ten.run().0.success());
    let (nine, ten) = (images(&nine), images(&ten));
    assert_eq!((nine.len(), ten.len()), (9, 10));
    assert!(ten[..9] == nine, "the same bits");
}

#[test]
fn a_killed_run_draws_what_is_missing_and_unusable_ones_are_made_again() {
    let whole = Job::new(&nine());
    assert!(whole.run().0.success());
    let wanted = images(&whole);
    assert_eq!(wanted.len(), 9);
    assert_eq!(told(&whole).0, (1..=9).collect::<Vec<_>>());

    let cut = Job::new(&nine());
    let mut trainer = cut.start();
    trainer.wait_for(|kind| matches!(kind, EventKind::ClassImage { done: 1, .. }));
    trainer.kill();
    let there = images(&cut).len();
    assert!((1..9).contains(&there), "{there}");
    assert!(cut.run().0.success());
    assert!(images(&cut) == wanted, "the same images");

    // One black, one of a single colour, one torn, one gone; and something that is none.
    let spoiled = with_images_of(&nine(), &whole);
    let at = |number: u32| spoiled.path(&format!("class-images/0/class-{number:04}.png"));
    RgbImage::new(64, 64).save(at(2)).unwrap();
    RgbImage::from_pixel(64, 64, image::Rgb([90, 120, 30]))
        .save(at(3))
        .unwrap();
    let torn = std::fs::read(at(5)).unwrap();
    std::fs::write(at(5), &torn[..torn.len() / 2]).unwrap();
    std::fs::remove_file(at(8)).unwrap();
    std::fs::write(spoiled.path("class-images/0/Thumbs.db"), "none").unwrap();
    assert!(spoiled.run().0.success());
    std::fs::remove_file(spoiled.path("class-images/0/Thumbs.db")).unwrap();
    assert!(images(&spoiled) == wanted, "the same images again");
    let (_, warnings) = told(&spoiled);
    for (name, why) in [
        ("class-0002.png", "is black"),
        ("class-0003.png", "is a single colour"),
        ("class-0005.png", "is damaged"),
        ("Thumbs.db", "is left out"),
    ] {
        assert!(
            warnings.iter().any(|w| w.contains(name) && w.contains(why)),
            "{name}: {warnings:?}"
        );
    }
}

#[test]
fn guidance_of_class_images_is_their_own() {
    let with = |change: fn(&mut RecipeDraft)| {
        let mut recipe = nine();
        recipe.samples.save_infer_steps = 2;
        if let Some(prior) = &mut recipe.prior {
            prior.num_class_images = 2;
        }
        change(&mut recipe);
        let job = Job::new(&recipe);
        assert!(job.run().0.success());
        images(&job)
    };
    let usual = with(|_| {});
    assert!(
        usual == with(|recipe| recipe.samples.save_guidance_scale = 2.0),
        "that is the samples'"
    );
    let own = |recipe: &mut RecipeDraft| {
        if let Some(prior) = &mut recipe.prior {
            prior.class_guidance_scale = 2.0;
        }
    };
    assert!(usual != with(own), "as strict as before");
}

/// They are what `sample` draws with the class's prompt and nothing that a recipe could change but steps and guidance.
#[test]
fn a_class_image_is_a_plain_drawing_of_its_prompt() {
    let mut recipe = nine();
    // What is the samples' alone.
    recipe.samples.save_sample_negative_prompt = "cat".into();
    recipe.samples.save_guidance_scale = 2.0;
    recipe.samples.save_infer_steps = 3;
    recipe.sample_batch_size = 1;
    let prior = recipe.prior.as_mut().unwrap();
    prior.num_class_images = 1;
    assert_eq!(prior.class_guidance_scale, 7.5, "as in the script's code");
    let job = Job::new(&recipe);
    assert!(job.run().0.success());
    let request = SampleRequest {
        prompt: recipe.concepts[0].class_prompt.clone().unwrap(),
        negative_prompt: String::new(),
        guidance_scale: 7.5,
        num_inference_steps: 3,
        sampler: SamplerKind::Ddim,
        karras: false,
        width_px: 64,
        height_px: 64,
        clip_skip: 1,
    };
    let drawn = Noise::new(recipe.seed).uniform(Purpose::Sampling, 0, 1)[0];
    let seed = (drawn * f64::from(u32::MAX)) as u64;
    let model = trainer::formats::load(&tiny_model().to_string_lossy()).unwrap();
    let mut learner = Learner::for_drawing(model, &Device::Cpu).unwrap();
    let mut go_on = |_done: usize, _of: usize| ControlFlow::Continue(());
    let pictures = learner.pipeline().draw(&request, &[seed], &mut go_on).unwrap().unwrap();
    let image = image::open(job.path("class-images/0/class-0000.png")).unwrap();
    assert!(image.to_rgb8() == pictures[0].rgb);
}

/// On the command line they have the script's names, which are not known before an image is drawn.
#[test]
fn a_killed_command_draws_the_missing_ones_under_the_scripts_names() {
    let world = World::with_photos(1);
    let line = |output: &str| {
        World::train_line(&format!(
            "--instance_prompt zwx --instance_data_dir photos --output_dir {output} --with_prior_preservation \
             --class_prompt \"photo of a dog\" --class_data_dir {output}-class --num_class_images 5 \
             --sample_batch_size 2 --save_infer_steps 24"
        ))
    };
    let images = |output: &str| -> Vec<(String, Vec<u8>)> {
        let folder = world.path(format!("{output}-class"));
        let there = if folder.is_dir() { names(&folder) } else { Vec::new() };
        let images = there.into_iter().filter(|name| name.ends_with(".jpg"));
        images
            .map(|name| (name.clone(), std::fs::read(folder.join(name)).unwrap()))
            .collect()
    };
    world.run(&line("whole")).ok();
    let mut child = world.command(&line("cut")).stderr(Stdio::null()).spawn().unwrap();
    while images("cut").is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without an image");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let there = images("cut").len();
    assert!((1..5).contains(&there), "{there}");
    world.run(&line("cut")).ok();
    assert_eq!(images("whole").len(), 5);
    assert!(images("cut") == images("whole"), "the same images under the same names");
    assert!(world.output("cut").unet(1) == world.output("whole").unet(1));
}

/// Which file on the disk each name means.
fn files(job: &Job) -> Vec<u64> {
    let folder = job.path("class-images/0");
    let file = |name: String| std::fs::metadata(folder.join(name)).unwrap().ino();
    names(&folder).into_iter().map(file).collect()
}

#[test]
fn the_next_job_of_the_same_class_finds_them() {
    let cache = tempfile::tempdir().unwrap();
    let run = |recipe: &RecipeDraft, cache: &Path| {
        let job = Job::new(recipe);
        let flag = OsStr::new("--class_image_cache");
        assert!(job.start_with(&[flag, cache.as_os_str()]).finish().0.success());
        job
    };
    let mut wanted = nine();
    wanted.sample_batch_size = 4;
    let first = run(&wanted, cache.path());
    let second = run(&wanted, cache.path());
    assert_eq!(files(&first), files(&second), "none was drawn again");
    assert_eq!(
        told(&second).0,
        (1..=9).collect::<Vec<_>>(),
        "each is told all the same"
    );

    // Fewer are the first of them, more are drawn beside them.
    let with = |count: u32, change: &dyn Fn(&mut RecipeDraft)| {
        let mut recipe = wanted.clone();
        if let Some(prior) = &mut recipe.prior {
            prior.num_class_images = count;
        }
        change(&mut recipe);
        files(&run(&recipe, cache.path()))
    };
    assert_eq!(with(5, &|_| {}), files(&first)[..5]);
    assert_eq!(with(11, &|_| {})[..9], files(&first)[..9]);
    // Other images: by another seed, prompt, number of steps or size.
    let changes: [&dyn Fn(&mut RecipeDraft); 4] = [
        &|recipe| recipe.seed = 5,
        &|recipe| recipe.concepts[0].class_prompt = Some("photo of a cat".into()),
        &|recipe| recipe.samples.save_infer_steps = 3,
        &|recipe| recipe.resolution = Some(72),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let others = with(5, change);
        assert!(
            others.iter().all(|file| !files(&first).contains(file)),
            "change {number}"
        );
    }
    // They outlive the job that drew them.
    let kept = images(&second);
    drop(first);
    assert!(images(&second) == kept);
}

#[test]
fn pictures_that_lie_there_count_and_are_kept() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    for number in 0..2 {
        world.picture(&format!("class/mine {number}.png"), stripes(5 + number, 70, 64));
    }
    world.write("class/notes.txt", "none");
    let flags = "--with_prior_preservation --class_prompt \"photo of a dog\" --class_data_dir class --num_class_images 3 \
                 --save_infer_steps 2";
    let out = world.train_on("photos", "out", flags);
    assert_eq!(out.pictures(), (1, 3));
    let there = names(&world.path("class"));
    assert_eq!(there.len(), 4, "{there:?}");
    // Numbered as the script does: after what was there.
    let drawn = there
        .iter()
        .find(|name| name.starts_with("2-") && name.ends_with(".jpg"))
        .unwrap();
    let bytes = std::fs::read(world.path("class").join(drawn)).unwrap();
    assert!(
        out.warnings().iter().any(|line| line.contains("notes.txt")),
        "{:?}",
        out.warnings()
    );
    // Nothing is missing any more.
    let again = world.train_on("photos", "again", flags);
    assert_eq!(names(&world.path("class")), there);
    assert!(std::fs::read(world.path("class").join(drawn)).unwrap() == bytes);
    assert!(again.unet(1) == out.unet(1));

    // The script takes the text for a class image, and stops at it. A folder it counts, and does not train on.
    let strict =
        "--instance_prompt \"photo of zwx dog\" --instance_data_dir photos --output_dir strict --strict_tutorial";
    world
        .train(&format!("{strict} {flags} --num_class_images 4"))
        .ends(1, &["notes.txt"]);
    std::fs::remove_file(world.path("class/notes.txt")).unwrap();
    std::fs::create_dir(world.path("class/.ipynb_checkpoints")).unwrap();
    let before = names(&world.path("class"));
    world.train(&format!("{strict} {flags} --num_class_images 4")).ok();
    assert_eq!(names(&world.path("class")), before);
    assert_eq!(world.output("strict").pictures(), (1, 3));
}

#[test]
fn images_that_were_drawn_otherwise_are_used_and_told() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    let told = |output: &str, flags: &str| {
        let flags = format!(
            "--with_prior_preservation --class_data_dir class --num_class_images 2 --save_infer_steps 2 {flags}"
        );
        let out = world.train_on("photos", output, &flags);
        let warnings = out.warnings().into_iter();
        warnings
            .filter(|words| words.contains("an earlier run drew"))
            .collect::<Vec<_>>()
    };
    let dog = "--class_prompt \"photo of a dog\"";
    assert!(told("first", dog).is_empty());
    let there = names(&world.path("class"));
    assert!(told("again", &format!("{dog} --seed 5")).is_empty());
    let cat = told("cat", "--class_prompt \"photo of a cat\"");
    assert_eq!(cat.len(), 1, "{cat:?}");
    assert!(cat[0].contains("for the prompt `photo of a dog`: 2;"), "{cat:?}");
    let more = told("more", &format!("{dog} --save_infer_steps 3 --num_class_images 3"));
    assert!(more[0].contains("in 2 steps: 2;"), "{more:?}");
    assert!(
        names(&world.path("class")).starts_with(&there),
        "they are used as they are"
    );
}
