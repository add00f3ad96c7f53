//! Every flag reaches what it is about: where the line from the recipe to the training is cut, one of these fails.

use std::collections::BTreeMap;

use super::world::{Output, Told, World, stripes};

/// Three photos, and two pictures of their class.
fn world() -> World {
    let world = World::with_photos(3);
    for number in 0..2 {
        world.picture(&format!("class/{number}.png"), stripes(5 + number, 64, 64));
    }
    world
}

const CLASS: &str =
    "--with_prior_preservation --class_prompt \"photo of a dog\" --class_data_dir class --num_class_images 2";

fn train(world: &World, output: &str, flags: &str) -> Output {
    world.train_on("photos", output, flags)
}

/// Whatever is the same of a strict run: a folder of the last step, and each photo's own loss.
fn instance_losses(output: &Output) -> Vec<f32> {
    output.steps().values().map(|told| told.instance_loss).collect()
}

#[test]
fn gradients_are_clipped_unless_the_run_is_strict() {
    let world = world();
    // Adam divides a clipped gradient by its own size, which so large an epsilon makes felt.
    let unet = |output: &str, flags: &str| {
        let output = train(&world, output, &format!("--adam_epsilon 1e-2 {flags}"));
        let norm = output.steps()[&1].grad_norm.unwrap();
        assert!(norm > 1.0, "{norm} is not clipped by default");
        output.unet(1)
    };
    let never = unet("never", "--max_grad_norm 0");
    let clipped = unet("clipped", "--max_grad_norm 0.01");
    assert!(clipped != never);
    assert!(unet("usual", "") != never, "clipped to 1 by default");
    let strict = "--strict_tutorial --pad_tokens";
    assert!(unet("strict", strict) == never);
    assert!(unet("asked", &format!("{strict} --max_grad_norm 0.01")) == never);
}

#[test]
fn the_noise_of_a_strict_run_is_as_coarse_as_mixed_precision() {
    let world = world();
    let loss = |output: &str, flags: &str| instance_losses(&train(&world, output, flags));
    let plain = loss("plain", "");
    assert_eq!(loss("bf16", "--mixed_precision bf16"), plain);
    let strict = loss("strict", "--strict_tutorial --pad_tokens");
    assert_eq!(strict, plain);
    assert_ne!(
        loss("coarse", "--strict_tutorial --pad_tokens --mixed_precision bf16"),
        plain
    );
}

#[test]
fn batches_of_several_stay_together_in_a_strict_run() {
    let world = world();
    let losses = |size: u32, strict: &str| {
        let flags = format!("--train_batch_size {size} --max_train_steps 6 --learning_rate 0 --pad_tokens {strict}");
        instance_losses(&train(&world, &format!("out{size}{}", strict.replace(' ', "")), &flags))
    };
    assert_eq!(losses(1, "--strict_tutorial"), losses(1, ""));
    assert_ne!(losses(2, "--strict_tutorial"), losses(2, ""));
    // Encoded anew for every step they are not, in the script neither.
    let anew = "--not_cache_latents";
    assert_eq!(losses(2, &format!("--strict_tutorial {anew}")), losses(2, anew));
}

#[test]
fn a_strict_run_takes_captions_of_the_scripts_name_alone() {
    let world = World::with_photos(1);
    world.write("photos/0.txt", "a red cat");
    let flags = "--read_prompts_from_txts --instance_prompt x --instance_data_dir photos --output_dir out";
    world.train(flags).ok();
    let strict = world.train(&format!("{flags} --strict_tutorial"));
    strict.ends(1, &["photos/0.png.txt"]);
}

#[test]
fn the_loss_is_weighed_and_its_noise_offset() {
    let world = world();
    let told = |output: &str, flags: &str| train(&world, output, flags).steps()[&1];
    let plain = told("plain", "");
    // So small a gamma weighs all but the noisiest timesteps.
    let weighed = told("weighed", "--snr_gamma 0.01");
    assert!(weighed.loss < plain.loss, "{weighed:?} {plain:?}");
    assert!(weighed.grad_norm < plain.grad_norm, "{weighed:?} {plain:?}");
    let offset = told("offset", "--offset_noise 0.5");
    assert_ne!(offset.loss, plain.loss);
    assert_eq!(told("usual", "--offset_noise"), told("tenth", "--offset_noise 0.1"));
}

#[test]
fn class_images_count_as_much_as_they_are_told_to() {
    let world = world();
    let with = |output: &str, weight: &str| {
        train(
            &world,
            output,
            &format!("{CLASS} {weight} --adam_epsilon 1e-2 --max_grad_norm 0"),
        )
    };
    let (half, whole) = (with("half", "--prior_loss_weight 0.5"), with("whole", ""));
    let Told {
        loss,
        instance_loss,
        prior_loss,
        ..
    } = half.steps()[&1];
    let prior_loss = prior_loss.expect("class images are there");
    assert!((loss - (instance_loss + 0.5 * prior_loss)).abs() < 1e-6 * loss);
    let told = whole.steps()[&1];
    assert_eq!((told.instance_loss, told.prior_loss), (instance_loss, Some(prior_loss)));
    assert!((told.loss - (instance_loss + prior_loss)).abs() < 1e-6 * told.loss);
    assert!(half.unet(1) != whole.unet(1), "so do their gradients");
}

#[test]
fn every_number_of_the_optimizer_reaches_it() {
    let world = world();
    let unet = |output: &str, flags: &str| train(&world, output, &format!("--max_train_steps 2 {flags}")).unet(2);
    let mut seen = BTreeMap::from([(unet("plain", ""), "none")]);
    for (output, flags) in [
        ("beta1", "--adam_beta1 0.8"),
        ("beta2", "--adam_beta2 0.9"),
        ("decay", "--adam_weight_decay 0.2"),
        ("epsilon", "--adam_epsilon 1e-3"),
        ("rate", "--learning_rate 2e-3"),
    ] {
        let same = seen.insert(unet(output, flags), flags);
        assert!(same.is_none(), "{flags} does what {same:?} does");
    }
}

#[test]
fn micro_batches_share_an_update() {
    let world = world();
    let steps = |output: &str, flags: &str| train(&world, output, &format!("--learning_rate 0 {flags}")).steps();
    let apart = steps("apart", "--max_train_steps 2");
    let (first, second) = (apart[&1], apart[&2]);
    let together = steps("together", "--gradient_accumulation_steps 2")[&1];
    let mean = (first.loss + second.loss) / 2.0;
    assert!(
        (together.loss - mean).abs() < 1e-6 * mean,
        "{together:?} {first:?} {second:?}"
    );
    // Of a mean it is at most the mean; sums would be above it.
    let [first, second, together] = [first, second, together].map(|told| told.grad_norm.unwrap());
    assert!(together <= (first + second) / 2.0, "{together} of {first} and {second}");
    assert!(together > 0.25 * (first + second) / 2.0, "{together}");
}

#[test]
fn a_scaled_rate_is_multiplied_by_batch_and_accumulation() {
    let world = world();
    let rate = |output: &str, flags: &str| {
        let flags = format!("--learning_rate 1e-4 --train_batch_size 3 --gradient_accumulation_steps 2 {flags}");
        train(&world, output, &flags).steps()[&1].learning_rate
    };
    assert!((rate("plain", "") - 1e-4).abs() < 1e-12);
    assert!((rate("scaled", "--scale_lr") - 6e-4).abs() < 1e-12);
}

#[test]
fn an_average_that_remembers_nothing_is_the_weights() {
    let world = world();
    let unet = |output: &str, flags: &str| train(&world, output, &format!("--max_train_steps 4 {flags}")).unet(4);
    let plain = unet("plain", "");
    assert!(unet("forgets", "--use_ema --ema_decay 0") == plain);
    assert!(unet("remembers", "--use_ema --ema_decay 0.9999") != plain);
}

#[test]
fn samples_are_drawn_as_they_are_asked_for() {
    let world = world();
    let drawn = |output: &str, flags: &str| {
        let usual = "--save_sample_prompt zwx --n_save_sample 1 --save_infer_steps 2";
        let output = train(&world, output, &format!("{usual} {flags}"));
        (output.file("1/samples/0.png"), output.unet(1))
    };
    let (plain, unet) = drawn("plain", "");
    let mut seen = BTreeMap::from([(plain, "none")]);
    for (output, flags) in [
        ("negative", "--save_sample_negative_prompt cat"),
        ("guidance", "--save_guidance_scale 2"),
        ("steps", "--save_infer_steps 3"),
        ("prompt", "--save_sample_prompt cat"),
    ] {
        let (picture, same_unet) = drawn(output, flags);
        assert!(same_unet == unet, "{flags} changes what is learned");
        let same = seen.insert(picture, flags);
        assert!(same.is_none(), "{flags} draws what {same:?} draws");
    }
}

#[test]
fn words_cut_from_any_prompt_are_told() {
    let world = world();
    let long = "word ".repeat(75);
    let class = CLASS.replace("photo of a dog", &format!("{long}of its class"));
    let samples = format!("--save_sample_prompt \"{long}of the samples\" --n_save_sample 1 --save_infer_steps 1");
    let flags = format!("{class} --instance_prompt \"{long}of the subject\" {samples}");
    let told = train(&world, "out", &flags).warnings();
    for words in ["of the subject", "of its class", "of the samples"] {
        let told_of = |warning: &String| warning.ends_with(&format!("these words were left out: {words}"));
        assert!(told.iter().any(told_of), "{words}: {told:?}");
    }
}

#[test]
fn a_run_goes_on_from_the_folder_of_another() {
    let world = world();
    let flags = "--checkpointing_steps 1 --checkpoints_total_limit 2";
    let whole = train(&world, "whole", &format!("{flags} --max_train_steps 5"));
    train(&world, "first", &format!("{flags} --max_train_steps 3"));
    for (output, from) in [("second", "first"), ("third", "first/.likeness")] {
        let more = train(
            &world,
            output,
            &format!("{flags} --max_train_steps 5 --resume_from_checkpoint {from}"),
        );
        assert_eq!(more.steps().into_keys().collect::<Vec<_>>(), [4, 5], "{from}");
        assert!(more.unet(5) == whole.unet(5), "{from}: the same bits");
    }
    let gone = "--instance_prompt x --instance_data_dir photos --output_dir none --resume_from_checkpoint photos";
    world.train(gone).ends(2, &["--resume_from_checkpoint", "photos"]);
}
