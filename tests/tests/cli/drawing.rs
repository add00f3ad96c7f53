//! `sample`: what its flags do to a picture, and the words that found no room.

use super::world::{Ran, World, json, names, tiny_model, words};

/// What is drawn unless `flags` say otherwise.
const USUAL: &str = "--prompt dog --steps 3 --num_samples 1 --seed 5 --width 64 --height 64";

fn draw(world: &World, out: &str, flags: &str) -> Ran {
    let usual = words(USUAL);
    let left = usual.chunks(2).filter(|pair| !flags.contains(&pair[0]));
    let usual: Vec<String> = left.map(|pair| pair.join(" ")).collect();
    let (model, usual) = (tiny_model(), usual.join(" "));
    let model = model.display();
    world.run(&format!(
        "sample --device cpu --model \"{model}\" --out {out} {usual} {flags}"
    ))
}

fn picture(world: &World, flags: &str) -> Vec<u8> {
    draw(world, "drawn", flags).ok();
    std::fs::read(world.path("drawn/0.png")).unwrap()
}

#[test]
fn every_flag_changes_the_picture_and_the_same_ones_give_it_again() {
    let world = World::new();
    let plain = picture(&world, "");
    assert!(
        plain == picture(&world, "--scheduler ddim --clip_skip 1"),
        "the same bits"
    );
    let mut seen = vec![(String::new(), plain)];
    for flags in [
        "--seed 6",
        "--steps 4",
        "--guidance_scale 2",
        "--negative_prompt cat",
        "--clip_skip 2",
        "--width 72",
        "--height 56",
        "--scheduler pndm",
        "--scheduler lms",
        "--scheduler euler",
        "--scheduler euler_a",
        "--scheduler dpmpp_2m",
        "--scheduler dpmpp_2m --karras",
        "--scheduler unipc",
        "--scheduler ddpm",
    ] {
        let drawn = picture(&world, flags);
        let same = seen.iter().find(|(_, other)| *other == drawn);
        assert!(
            same.is_none(),
            "{flags} draws what {:?} draws",
            same.map(|(flags, _)| flags)
        );
        seen.push((flags.to_owned(), drawn));
    }
    let wide = image::load_from_memory(&seen[6].1).unwrap();
    assert_eq!((wide.width(), wide.height()), (72, 64));
}

#[test]
fn images_count_on_from_the_first_ones_seed() {
    let world = World::new();
    draw(&world, "three", "--num_samples 3").ok();
    draw(&world, "third", "--seed 7").ok();
    let read = |path: &str| std::fs::read(world.path(path)).unwrap();
    assert!(read("three/0.png") != read("three/2.png"));
    // Alone it is drawn in another batch, whose sums may round otherwise.
    let levels = |path: &str| image::load_from_memory(&read(path)).unwrap().to_rgb8();
    let (row, alone) = (levels("three/2.png"), levels("third/0.png"));
    let apart = row.iter().zip(alone.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(apart.unwrap() <= 1, "{apart:?}");
}

#[test]
fn what_is_not_asked_for_is_as_the_help_says() {
    let world = World::new();
    let model = tiny_model();
    let line = format!("sample --device cpu --model \"{}\" --prompt dog", model.display());
    let small = "--width 64 --height 64";
    world.run(&format!("{line} --out usual {small}")).ok();
    let said = "--scheduler ddim --steps 24 --guidance_scale 7.5 --num_samples 4 --seed 1337 --clip_skip 1";
    let named = world
        .run(&format!("{line} --out named {small} {said} --negative_prompt \"\""))
        .ok();
    let files = ["0.png", "1.png", "2.png", "3.png"];
    assert_eq!(names(&world.path("usual")), files);
    let told: Vec<&str> = named.stdout.lines().collect();
    assert_eq!(told, files.map(|file| format!("named/{file}")));
    for file in files {
        let read = |folder: &str| std::fs::read(world.path(folder).join(file)).unwrap();
        assert!(read("usual") == read("named"), "{file}");
    }
    // The folder is `samples`, and the size the model's own.
    world.run(&format!("{line} --steps 1 --num_samples 1")).ok();
    let own = json(&model.join("unet/config.json"))["sample_size"].as_u64().unwrap() as u32 * 8;
    let picture = image::open(world.path("samples/0.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (own, own));
}

#[test]
fn a_size_that_latents_do_not_have_is_wrong_use() {
    let world = World::new();
    for (flag, words) in [("--height 63", "--height"), ("--width 100", "--width")] {
        draw(&world, "drawn", flag).ends(2, &[words, "multiple of 8"]);
    }
    assert!(!world.path("drawn").exists());
}

#[test]
fn words_that_find_no_room_are_named() {
    let world = World::new();
    let long = format!("{}the last words", "word ".repeat(75));
    let told = draw(&world, "drawn", &format!("--prompt \"{long}\"")).stderr;
    assert!(told.contains("these words were left out: the last words"), "{told}");
    let told = draw(&world, "drawn", &format!("--negative_prompt \"{long}\"")).stderr;
    assert!(told.contains("these words were left out: the last words"), "{told}");
}
