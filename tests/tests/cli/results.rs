//! What a training leaves: the folders of the tutorial's script, which other programs and our own commands read.

use std::process::Command;

use super::world::{World, finished, json, names, stripes, tiny_model, words};

/// Two subjects in a `concepts.json` as the tutorial's notebook writes it.
fn two_subjects(world: &World) {
    for number in 0..2 {
        world.picture(&format!("dog/{number}.jpg"), stripes(number, 80, 64));
    }
    world.picture("cat/0.png", stripes(3, 64, 70));
    world.write(
        "concepts.json",
        r#"[
            {"instance_prompt": "photo of zwx dog", "class_prompt": "photo of a dog",
             "instance_data_dir": "dog", "class_data_dir": "class/dog"},
            {"instance_prompt": "photo of qwv cat", "class_prompt": "photo of a cat",
             "instance_data_dir": "cat", "class_data_dir": "class/cat"}
        ]"#,
    );
}

/// Every flag that the tutorial gives, with a small model in place of its own.
fn tutorials_command() -> String {
    let model = tiny_model();
    let model = model.display();
    format!(
        "train --pretrained_model_name_or_path=\"{model}\" --pretrained_vae_name_or_path=\"{model}\" --output_dir=out \
         --revision=fp16 --with_prior_preservation --prior_loss_weight=1.0 --seed=1337 --resolution=64 \
         --train_batch_size=1 --train_text_encoder --mixed_precision=fp16 --use_8bit_adam \
         --gradient_accumulation_steps=1 --learning_rate=1e-6 --lr_scheduler=constant --lr_warmup_steps=0 \
         --num_class_images=3 --sample_batch_size=4 --max_train_steps=4 --save_interval=2 --save_infer_steps=2 \
         --save_sample_prompt=\"photo of zwx dog\" --concepts_list=concepts.json"
    )
}

/// Number type of all tensors of a safetensors file.
fn dtypes(bytes: &[u8]) -> Vec<String> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut dtypes: Vec<String> = file.iter().map(|(_, t)| format!("{:?}", t.dtype())).collect();
    dtypes.sort();
    dtypes.dedup();
    dtypes
}

#[test]
fn the_tutorials_command_leaves_the_tutorials_folders() {
    let world = World::new();
    two_subjects(&world);
    let mut command = Command::new(tests::executable("likeness"));
    command.current_dir(world.path(""));
    let ran = finished(command.args(words(&tutorials_command()))).ok();

    let out = world.output("out");
    assert_eq!(names(&world.path("out")), [".likeness", "2", "4"]);
    for step in ["2", "4"] {
        let parts = [
            "args.json",
            "feature_extractor",
            "model_index.json",
            "samples",
            "scheduler",
            "text_encoder",
            "tokenizer",
            "unet",
            "vae",
        ];
        assert_eq!(out.names(step), parts);
        assert_eq!(
            out.names(&format!("{step}/samples")),
            ["0.png", "1.png", "2.png", "3.png"]
        );
    }
    let index = json(&world.path("out/4/model_index.json"));
    assert_eq!(index["scheduler"], serde_json::json!(["diffusers", "DDIMScheduler"]));
    let scheduler = json(&world.path("out/4/scheduler/scheduler_config.json"));
    assert_eq!(scheduler["_class_name"], "DDIMScheduler");
    assert_eq!(dtypes(&out.unet(4)), ["F32"]);
    assert!(out.unet(2) != out.unet(4), "it learns between them");

    for class in ["dog", "cat"] {
        let images = names(&world.path(format!("class/{class}")));
        let numbers: Vec<&str> = images.iter().map(|name| name.split_once('-').unwrap().0).collect();
        assert_eq!(numbers, ["0", "1", "2"]);
        let hashed = images
            .iter()
            .all(|name| name.ends_with(".jpg") && name.len() == "0-.jpg".len() + 40);
        assert!(hashed, "{images:?}");
    }
    assert_eq!(out.pictures(), (3, 6));
    for words in ["--revision has no effect", "mixed_precision"] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    for line in ["step 4/4", "done after 4 steps"] {
        assert!(ran.stderr.contains(line), "{line}: {}", ran.stderr);
    }

    // As the notebook goes on.
    let convert = "convert --model_path out/4 --checkpoint_path weights/model.ckpt --half";
    world.run(convert).ok();
    assert!(world.path("weights/model.ckpt").is_file());
    for model in ["out/4", "weights/model.ckpt"] {
        let draw = "sample --device cpu --prompt \"photo of zwx dog\" --steps 2 --num_samples 1 --width 64 --height 64";
        let ran = world.run(&format!("{draw} --model {model} --out drawn")).ok();
        assert_eq!(ran.stdout.trim(), "drawn/0.png");
        assert_eq!(image::open(world.path("drawn/0.png")).unwrap().width(), 64);
    }
}

#[test]
fn args_json_read_back_gives_the_same_bits() {
    let world = World::new();
    two_subjects(&world);
    let flags = "--concepts_list concepts.json --max_train_steps 3 --scale_lr --train_batch_size 2 --learning_rate 3e-4 \
                 --lr_scheduler polynomial --lr_power 1.7 --lr_warmup_steps 1 --hflip --offset_noise --snr_gamma 5 \
                 --train_text_encoder --adam_epsilon 1e-7 --seed 5 --save_fp16 --with_prior_preservation \
                 --num_class_images 2 --save_infer_steps 2";
    world.train(&format!("{flags} --output_dir a")).ok();
    let args = json(&world.path("a/3/args.json"));
    assert_eq!(args["concepts_list"][1]["instance_prompt"], "photo of qwv cat");
    assert_eq!((&args["max_train_steps"], &args["hflip"]), (&3.into(), &true.into()));
    // In another folder, where the list's file is gone; `-` for `_` as well.
    std::fs::remove_file(world.path("concepts.json")).unwrap();
    world.run("train --config a/3/args.json --output-dir b").ok();
    assert_eq!(world.output("a").recipe(), world.output("b").recipe());
    // What the file fills in is nobody's wish.
    let told = world.output("b").warnings();
    assert!(told.is_empty(), "{told:?}");
    assert!(world.output("a").unet(3) == world.output("b").unet(3));
    assert_eq!(dtypes(&world.output("b").unet(3)), ["F16"]);
    // What is typed beside it wins.
    world
        .run("train --args=a/3/args.json --output_dir c --seed 6 --train_text_encoder=false")
        .ok();
    let other = world.output("c").recipe();
    assert_eq!(
        (&other["seed"], &other["train_text_encoder"]),
        (&6.into(), &false.into())
    );
    assert_eq!(other["learning_rate"], world.output("a").recipe()["learning_rate"]);
    assert!(world.output("a").unet(3) != world.output("c").unet(3));
}

#[test]
fn only_the_last_models_stay_in_half_the_room() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    // Someone else's: not of this run's steps.
    world.write("half/7/model_index.json", "{}");
    world.write("half/notes.txt", "mine");
    let flags = "--max_train_steps 5 --save_interval 1";
    let half = world.train_on("photos", "half", &format!("{flags} --keep_last 2 --save_fp16"));
    let all = world.train_on("photos", "all", flags);
    assert_eq!(all.names(""), [".likeness", "1", "2", "3", "4", "5"]);
    assert_eq!(half.names(""), [".likeness", "4", "5", "7", "notes.txt"]);
    assert_eq!(
        (dtypes(&half.unet(5)), dtypes(&all.unet(5))),
        (vec!["F16".into()], vec!["F32".into()])
    );
    assert!(half.unet(5).len() * 10 < all.unet(5).len() * 6);
    // Half of it is rounded and nothing else.
    let values = |bytes: Vec<u8>| {
        let tensors = candle_core::safetensors::load_buffer(&bytes, &candle_core::Device::Cpu).unwrap();
        let tensor = tensors["conv_in.weight"].to_dtype(candle_core::DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let rounded: Vec<f32> = values(all.unet(5))
        .into_iter()
        .map(|v| half::f16::from_f32(v).to_f32())
        .collect();
    assert_eq!(values(half.unet(5)), rounded);
}

#[test]
fn a_plain_runs_args_json_says_nothing_of_what_has_no_effect() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    world.train_on("photos", "a", "");
    let again = |flags: &str| {
        world
            .run(&format!("train --config a/1/args.json --output_dir b {flags}"))
            .ok();
        world.output("b").warnings()
    };
    assert_eq!(again(""), Vec::<String>::new());
    let told = again("--n_save_sample 2");
    assert!(told.len() == 1 && told[0].contains("--save_sample_prompt"), "{told:?}");
}

#[test]
fn a_model_that_a_stop_left_counts_among_the_last() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    let flags = "--max_train_steps 5 --save_interval 4 --keep_last 2";
    world.train_on("photos", "out", flags);
    // As if the run had been stopped after step 3, and as if another one had been.
    for (name, seed) in [("3", 1337), ("2", 7)] {
        let mut args = json(&world.path("out/5/args.json"));
        args["seed"] = seed.into();
        world.write(&format!("out/{name}/args.json"), format!("{args:#}\n"));
    }
    let out = world.train_on("photos", "out", flags);
    assert_eq!(out.names(""), [".likeness", "2", "4", "5"]);
}

#[test]
fn another_tokenizer_reads_the_prompts() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    let tokenizer = tiny_model().join("tokenizer");
    for name in names(&tokenizer) {
        world.copy(&tokenizer.join(&name), &format!("same/{name}"));
        world.copy(&tokenizer.join(&name), &format!("other/{name}"));
    }
    // The ids of two words change places.
    let vocabulary = std::fs::read_to_string(tokenizer.join("vocab.json")).unwrap();
    let mut ids: serde_json::Value = serde_json::from_str(&vocabulary).unwrap();
    let (z, q) = (ids["z</w>"].clone(), ids["q</w>"].clone());
    (ids["z</w>"], ids["q</w>"]) = (q, z);
    world.write("other/vocab.json", ids.to_string());
    let loss = |output: &str, flags: &str| {
        let flags = format!("--instance_prompt \"z\" {flags}");
        world.train_on("photos", output, &flags).losses()[&1]
    };
    let own = loss("own", "");
    assert_eq!(loss("a", "--tokenizer_name same"), own);
    assert_ne!(loss("b", "--tokenizer_name other"), own);
    world.write("empty/readme", "");
    let flags = "--instance_prompt z --instance_data_dir photos --output_dir c --tokenizer_name empty";
    world.train(flags).ends(1, &["--tokenizer_name", "empty", "vocab.json"]);
}

#[test]
fn rows_of_samples_come_between_the_models() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    let flags = "--max_train_steps 4 --save_interval 3 --validation_steps 2 --validation_prompt \"photo of zwx dog\" \
                 --num_validation_images 1 --save_infer_steps 1";
    let out = world.train_on("photos", "out", flags);
    assert_eq!(out.names(""), [".likeness", "3", "4"]);
    assert_eq!(out.names(".likeness/samples"), ["0", "2", "3", "4"]);
    assert_eq!(out.names("3/samples"), ["0.png"]);
}
