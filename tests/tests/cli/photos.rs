//! What a folder of photos means: which files count, which way up they stand, what is cut out and what they are called.

use image::{DynamicImage, RgbaImage};

use super::world::{World, stripes};

#[test]
fn strays_are_left_out_with_a_line_each() {
    let world = World::new();
    for number in 0..2 {
        world.picture(&format!("clean/{number}.png"), stripes(number, 64, 64));
        world.picture(&format!("messy/{number}.png"), stripes(number, 64, 64));
    }
    world.write("messy/Thumbs.db", "no picture");
    world.write("messy/notes.txt", "to do");
    world.write("messy/.ipynb_checkpoints/0-checkpoint.png", "no picture");
    world.write("messy/broken.jpg", "");
    let clean = world.train_on("clean", "a", "");
    let messy = world.train_on("messy", "b", "");
    assert!(clean.warnings().is_empty(), "{:?}", clean.warnings());
    let told = messy.warnings();
    for (name, why) in [
        ("Thumbs.db", "is not a JPEG, PNG or WebP picture"),
        ("notes.txt", "is the caption of no photo"),
        (".ipynb_checkpoints", "is hidden"),
        ("broken.jpg", "is not a JPEG, PNG or WebP picture"),
    ] {
        let lines = told.iter().filter(|line| line.contains(name) && line.contains(why));
        assert_eq!(lines.count(), 1, "{name}: {told:?}");
    }
    assert_eq!(told.len(), 4);
    assert!(clean.unet(1) == messy.unet(1), "the photos are the same");
}

#[test]
fn captions_beside_the_photos_take_the_prompts_place() {
    let world = World::new();
    for (folder, captions) in [
        ("script", ["0.png.txt", "1.png.txt"]),
        ("common", ["0.txt", "1.txt"]),
        ("both", ["0.png.txt", "1.png.txt"]),
    ] {
        for (number, caption) in captions.iter().enumerate() {
            let number = number as u32;
            world.picture(&format!("{folder}/{number}.png"), stripes(number, 64, 64));
            world.write(&format!("{folder}/{caption}"), "  a zwx dog asleep\n");
        }
    }
    // The script's name wins over the common one.
    world.write("both/0.txt", "another one");
    let captioned = |folder: &str| {
        let flags = format!("--read_prompts_from_txts --instance_data_dir {folder} --output_dir out-{folder}");
        let ran = world.train(&flags).ok();
        assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
        world.output(&format!("out-{folder}")).unet(1)
    };
    let wanted = world.train_on("script", "said", "--instance_prompt \"a zwx dog asleep\"");
    for folder in ["script", "common", "both"] {
        assert!(captioned(folder) == wanted.unet(1), "{folder}");
    }
    let other = world.train_on("script", "other", "");
    assert!(other.unet(1) != wanted.unet(1), "prompts matter");

    world.picture("common/2.png", stripes(2, 64, 64));
    let flags = "--read_prompts_from_txts --instance_data_dir common --output_dir none";
    world
        .train(flags)
        .ends(1, &["2.png.txt", "2.txt", "--read_prompts_from_txts"]);
}

#[test]
fn photos_stand_as_the_camera_says_and_as_they_lie_when_strict() {
    let world = World::new();
    let lying = crate::golden::dir().join("images/exif_6.jpg");
    world.copy(&lying, "camera/0.jpg");
    // The same decoder without its EXIF block, so that pixels are equal.
    let raw = image::open(&lying).unwrap();
    world.picture("upright/0.png", raw.rotate90());
    world.picture("raw/0.png", raw);
    let right = |photos: &str| world.train_on(photos, &format!("right-{photos}"), "").unet(1);
    assert!(right("camera") == right("upright"));
    assert!(right("camera") != right("raw"));
    let strict = |photos: &str| {
        let flags = "--strict_tutorial";
        world.train_on(photos, &format!("strict-{photos}"), flags).unet(1)
    };
    assert!(strict("camera") == strict("raw"));
}

#[test]
fn transparent_parts_are_laid_on_the_background() {
    let world = World::new();
    let below = stripes(1, 64, 64);
    let cut_out = RgbaImage::from_fn(64, 64, |x, y| {
        let [r, g, b] = below.get_pixel(x, y).0;
        image::Rgba([r, g, b, if x < 30 { 0 } else { 255 }])
    });
    let on = |color: [u8; 3]| {
        let mut picture = below.clone();
        for (x, _, pixel) in picture.enumerate_pixels_mut() {
            if x < 30 {
                pixel.0 = color;
            }
        }
        picture
    };
    world.picture("cut-out/0.png", cut_out);
    world.picture("white/0.png", on([255; 3]));
    world.picture("beige/0.png", on([255, 224, 192]));
    world.picture("below/0.png", below.clone());
    let unet = |photos: &str, output: &str, flags: &str| world.train_on(photos, output, flags).unet(1);
    let plain = |photos: &str| unet(photos, &format!("plain-{photos}"), "");
    assert!(unet("cut-out", "a", "") == plain("white"));
    assert!(unet("cut-out", "b", "--alpha_background #ffe0c0") == plain("beige"));
    assert!(unet("cut-out", "c", "--alpha_background drop") == plain("below"));
    assert!(plain("white") != plain("below"));
    let told = world.output("b").warnings();
    assert!(
        told.len() == 1 && told[0].contains("0.png") && told[0].contains("#ffe0c0"),
        "{told:?}"
    );
    let strict = |photos: &str| unet(photos, &format!("strict-{photos}"), "--strict_tutorial");
    assert!(strict("cut-out") == strict("below"));
}

#[test]
fn a_photo_that_is_no_square_is_cut_in_the_middle_or_at_random() {
    let world = World::new();
    let wide = stripes(1, 107, 64);
    // torchvision rounds half of 43 to the even 22.
    let middle = image::imageops::crop_imm(&wide, 22, 0, 64, 64).to_image();
    world.picture("middle/0.png", middle);
    world.picture("wide/0.png", wide);
    let unet = |photos: &str, output: &str, flags: &str| world.train_on(photos, output, flags).unet(1);
    let middle = unet("middle", "a", "");
    assert!(unet("wide", "b", "--center_crop") == middle);
    let random = unet("wide", "c", "");
    assert!(random != middle);
    assert!(random == unet("wide", "d", ""), "the same seed, the same place");
    assert!(random != unet("wide", "e", "--seed 2"));
}

#[test]
fn the_shorter_side_is_resized_and_keeps_the_aspect() {
    let world = World::new();
    let large = stripes(1, 200, 128);
    // PIL's antialiased bilinear resize: 64 x int(64 * 200 / 128).
    let half = trainer::dataset::resize_shorter_side(&large, 64);
    assert_eq!(half.dimensions(), (100, 64));
    world.picture("half/0.png", half);
    world.picture("large/0.png", large);
    for flags in ["", "--center_crop"] {
        let unet = |photos: &str| world.train_on(photos, &format!("{photos}{flags}"), flags).unet(1);
        assert!(unet("large") == unet("half"), "{flags}");
    }
}

#[test]
fn half_of_the_photos_are_mirrored_when_that_is_asked_for() {
    let world = World::new();
    let photo = stripes(1, 64, 64);
    world.picture("mirrored/0.png", DynamicImage::from(photo.clone()).fliph());
    world.picture("plain/0.png", photo);
    let mut seen = [0, 0];
    for seed in 1..=4 {
        let loss = |photos: &str, name: &str, flags: &str| {
            let output = format!("{name}-{seed}");
            world
                .train_on(photos, &output, &format!("--seed {seed} {flags}"))
                .losses()[&1]
        };
        let drawn = loss("plain", "drawn", "--hflip");
        let known = [loss("plain", "plain", ""), loss("mirrored", "mirrored", "")];
        assert_ne!(known[0], known[1]);
        let which = known.iter().position(|loss| *loss == drawn);
        seen[which.expect("one or the other")] += 1;
    }
    assert!(seen.iter().all(|times| *times > 0), "{seen:?}");
}

#[test]
fn photos_that_are_not_cached_are_cut_anew_in_each_round() {
    let world = World::new();
    world.picture("square/0.png", stripes(1, 64, 64));
    world.picture("wide/0.png", stripes(1, 200, 64));
    let losses = |photos: &str, output: &str, flags: &str| {
        let flags = format!("--max_train_steps 3 --learning_rate 0 {flags}");
        world.train_on(photos, output, &flags).losses()
    };
    let square = losses("square", "a", "");
    assert_eq!(
        square,
        losses("square", "b", "--not_cache_latents"),
        "there is one way to cut it"
    );
    let (cached, live) = (losses("wide", "c", ""), losses("wide", "d", "--not_cache_latents"));
    assert_eq!(cached[&1], live[&1], "the first round");
    assert_ne!(cached[&2], live[&2]);
    assert_ne!(cached[&3], live[&3]);
}

#[test]
fn several_subjects_are_learned_each_by_its_prompt() {
    let world = World::new();
    world.picture("a/0.png", stripes(1, 64, 64));
    world.picture("b/0.png", stripes(2, 64, 64));
    // A round is a step for each; nothing learned in one changes the other's loss.
    let losses = |output: &str, second: &str| {
        let concept =
            |prompt: &str, folder: &str| serde_json::json!({ "instance_prompt": prompt, "instance_data_dir": folder });
        let list = serde_json::json!([concept("photo of zwx dog", "a"), concept(second, "b")]);
        world.write("concepts.json", list.to_string());
        let flags = "--concepts_list concepts.json --max_train_steps 2 --learning_rate 0";
        world.train(&format!("{flags} --output_dir {output}")).ok();
        assert_eq!(world.output(output).pictures(), (2, 0));
        world.output(output).losses()
    };
    let one = losses("one", "photo of qwv cat");
    let other = losses("other", "photo of a chair");
    let differ = one.iter().zip(&other).filter(|(one, other)| one != other);
    assert_eq!(differ.count(), 1, "{one:?} {other:?}");
}
