//! Several subjects in one training, each with a class of its own.

use std::path::Path;

use super::world::{Output, World, names, stripes};

/// A list of two subjects, with these classes' prompts.
fn list(world: &World, name: &str, classes: [&str; 2]) {
    let subject = |(subject, class): (&str, &str)| {
        serde_json::json!({
            "instance_prompt": format!("photo of zwx {subject}"), "instance_data_dir": subject,
            "class_prompt": class, "class_data_dir": format!("class/{subject}"),
        })
    };
    let subjects = [("dog", classes[0]), ("cat", classes[1])].map(subject);
    world.write(name, serde_json::to_vec(&subjects).unwrap());
}

fn world() -> World {
    let world = World::new();
    for (number, subject) in [(0, "dog"), (1, "cat")] {
        world.picture(&format!("{subject}/0.png"), stripes(number, 64, 64));
    }
    list(&world, "list.json", ["photo of a dog", "photo of a cat"]);
    list(&world, "swapped.json", ["photo of a cat", "photo of a dog"]);
    world
}

const PRIOR: &str = "--with_prior_preservation --num_class_images 2 --sample_batch_size 2 --save_infer_steps 2";

fn train(world: &World, output: &str, flags: &str) -> Output {
    let line = format!("--output_dir {output} --max_train_steps 2 {PRIOR} {flags}");
    world.train(&line).ok();
    world.output(output)
}

/// Names and content of the class images in a folder.
fn images(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| {
        let bytes = std::fs::read(folder.join(&name)).unwrap();
        (name, bytes)
    };
    names(folder).into_iter().map(read).collect()
}

#[test]
fn each_subject_has_class_images_of_its_own_class_in_its_own_folder() {
    let world = world();
    let both = train(&world, "both", "--concepts_list list.json");
    assert_eq!(both.pictures(), (2, 4));
    for subject in ["dog", "cat"] {
        let alone = format!(
            "--instance_data_dir {subject} --instance_prompt \"photo of zwx {subject}\" \
             --class_prompt \"photo of a {subject}\" --class_data_dir alone/{subject}"
        );
        train(&world, &format!("alone-{subject}"), &alone);
        let [ours, alone] = ["class", "alone"].map(|folder| images(&world.path(folder).join(subject)));
        assert_eq!(ours.len(), 2);
        assert!(
            ours == alone,
            "{subject}: other images than when it is trained on alone"
        );
    }
    assert!(images(&world.path("class/dog")) != images(&world.path("class/cat")));

    // With the same images, each learns under its class's words.
    let swapped = train(&world, "swapped", "--concepts_list swapped.json");
    let losses = |output: &Output| -> Vec<(f32, Option<f32>)> {
        let steps = output.steps().into_values();
        steps
            .take(1)
            .map(|told| (told.instance_loss, told.prior_loss))
            .collect()
    };
    let ([(instance, prior)], [(same_instance, other_prior)]) = (&losses(&both)[..], &losses(&swapped)[..]) else {
        panic!("a step each");
    };
    assert_eq!(instance, same_instance);
    assert!(prior.is_some() && prior != other_prior, "{prior:?}");
}

#[test]
fn subjects_of_the_same_class_get_different_images() {
    let world = world();
    list(&world, "twins.json", ["photo of a dog", "photo of a dog"]);
    train(&world, "twins", "--concepts_list twins.json");
    let [dog, cat] = ["dog", "cat"].map(|subject| images(&world.path("class").join(subject)));
    assert!(dog.iter().all(|(_, image)| cat.iter().all(|(_, other)| other != image)));
}
