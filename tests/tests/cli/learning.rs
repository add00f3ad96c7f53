//! What flags of training do to what is learned.

use super::world::{Output, World};

fn text_encoder(output: &Output, step: u32) -> Vec<u8> {
    output.file(&format!("{step}/text_encoder/model.safetensors"))
}

#[test]
fn the_text_encoder_has_a_rate_of_its_own_and_stops_where_it_is_told_to() {
    let world = World::with_photos(3);
    let flags = "--train_text_encoder --max_train_steps 3 --save_interval 1 --adam_weight_decay 0";
    let still = world.train_on("photos", "still", &format!("{flags} --text_encoder_learning_rate 0"));
    assert!(text_encoder(&still, 1) == text_encoder(&still, 3), "its rate is 0");
    assert!(still.unet(1) != still.unet(3), "the U-Net's is not");
    let stops = world.train_on("photos", "stops", &format!("{flags} --stop_text_encoder_at 2"));
    assert!(text_encoder(&stops, 1) != text_encoder(&stops, 2));
    assert!(text_encoder(&stops, 2) == text_encoder(&stops, 3), "it learned on");
    assert!(stops.unet(2) != stops.unet(3));
    let plain = world.train_on("photos", "plain", flags);
    assert!(plain.unet(2) == stops.unet(2) && text_encoder(&plain, 2) == text_encoder(&stops, 2));
    assert!(text_encoder(&plain, 2) != text_encoder(&plain, 3));
}

#[test]
fn averages_are_what_is_left_and_change_nothing_of_the_training() {
    let world = World::with_photos(3);
    let train = |output: &str, flags: &str| world.train_on("photos", output, &format!("--max_train_steps 4 {flags}"));
    let plain = train("plain", "");
    let slowly = train("slowly", "--use_ema --ema_decay 0.9");
    assert_eq!(plain.losses(), slowly.losses());
    assert!(plain.unet(4) != slowly.unet(4));
}

#[test]
fn checkpointing_gradients_changes_no_bit() {
    let world = World::with_photos(3);
    let train = |output: &str, flags: &str| {
        world.train_on(
            "photos",
            output,
            &format!("--train_text_encoder --max_train_steps 3 {flags}"),
        )
    };
    let (plain, again) = (train("plain", ""), train("again", "--gradient_checkpointing"));
    assert_eq!(plain.losses(), again.losses());
    assert!(plain.unet(3) == again.unet(3) && text_encoder(&plain, 3) == text_encoder(&again, 3));
}

#[test]
fn moments_of_8_bits_learn_nearly_the_same() {
    let world = World::with_photos(3);
    let losses = |output: &str, flags: &str| {
        let flags = format!("--max_train_steps 8 --learning_rate 1e-4 {flags}");
        world.train_on("photos", output, &flags).losses()
    };
    let (whole, eight) = (losses("whole", ""), losses("eight", "--use_8bit_adam"));
    assert_eq!(whole[&1], eight[&1], "before the first update");
    assert_ne!(whole[&8], eight[&8]);
    for (step, loss) in &whole {
        let apart = (loss - eight[step]).abs() / loss;
        assert!(apart < 0.02, "step {step}: {loss} and {}", eight[step]);
    }
}

#[test]
fn lines_about_the_progress_come_every_so_many_steps() {
    let world = World::with_photos(3);
    let line = "--instance_prompt zwx --instance_data_dir photos --output_dir out --max_train_steps 7 --log_interval 3";
    let told = world.train(line).ok().stderr;
    let steps: Vec<&str> = told
        .lines()
        .filter_map(|line| line.strip_prefix("step ")?.split('/').next())
        .collect();
    assert_eq!(steps, ["3", "6", "7"], "{told}");
}

#[test]
fn stable_diffusion_2_is_trained_converted_and_drawn_with() {
    let world = World::with_photos(3);
    let model = crate::golden::dir_of("tiny-sd21");
    let flags = format!(
        "--pretrained_model_name_or_path \"{}\" --train_text_encoder --max_train_steps 2 --save_sample_prompt zwx \
         --n_save_sample 1 --save_infer_steps 2 --with_prior_preservation --num_class_images 2 \
         --class_prompt \"photo of a dog\" --class_data_dir class",
        model.display()
    );
    let trained = world.train_on("photos", "out", &flags);
    let scheduler: serde_json::Value =
        serde_json::from_slice(&trained.file("2/scheduler/scheduler_config.json")).unwrap();
    assert_eq!(scheduler["prediction_type"], "v_prediction");
    let picture = |model: &str| {
        let flags = "--device cpu --prompt zwx --steps 3 --num_samples 1 --width 64 --height 64 --out drawn";
        world.run(&format!("sample --model {model} {flags}")).ok();
        std::fs::read(world.path("drawn/0.png")).unwrap()
    };
    let of_folder = picture("out/2");
    for file in ["whole.safetensors", "whole.ckpt"] {
        let container = if file.ends_with("ckpt") {
            ""
        } else {
            "--use_safetensors"
        };
        world
            .run(&format!(
                "convert --model_path out/2 --checkpoint_path {file} {container}"
            ))
            .ok();
        assert!(picture(file) == of_folder, "{file} draws something else");
    }
    assert!(
        picture(&format!("\"{}\"", model.display())) != of_folder,
        "it learned nothing"
    );
}
