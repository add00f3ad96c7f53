//! Wrong use, failure and stopping: the exit status, and words that name what is wrong and what to do.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::world::{World, finished, stripes};

#[test]
fn wrong_use_ends_with_status_2_and_names_the_flag() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    world.write("list.json", r#"[{"instance_promt": "x"}]"#);
    world.write(
        "nowhere.json",
        r#"[{"instance_prompt": "x", "instance_data_dir": "gone"}]"#,
    );
    world.write("args.json", r#"{"learning_rat": 1}"#);
    let photos = "--instance_data_dir photos --instance_prompt x";
    for (flags, words) in [
        (
            format!("{photos} --learning_rat 1"),
            ["--learning_rat", "--learning_rate"],
        ),
        (
            format!("{photos} --lr_scheduler steps"),
            ["--lr_scheduler", "cosine_with_restarts"],
        ),
        (format!("{photos} --mixed_precision fp8"), ["--mixed_precision", "bf16"]),
        (format!("{photos} --resolution 65"), ["--resolution", "64"]),
        (
            format!("{photos} --learning_rate 2"),
            ["--learning_rate", "between 0 and 1"],
        ),
        (format!("{photos} --adam_beta1 1.5"), ["--adam_beta1", "between"]),
        (
            format!("{photos} --max_train_steps many"),
            ["--max_train_steps", "many"],
        ),
        (
            format!("{photos} --alpha_background sky"),
            ["--alpha_background", "#ffe0c0"],
        ),
        (format!("{photos} --preset car"), ["--preset", "person"]),
        (format!("{photos} --keep_last 0"), ["--keep_last", "0"]),
        (format!("{photos} --save_interval 0"), ["--save_interval", "0"]),
        (format!("{photos} --device tpu"), ["--device", "cuda"]),
        (
            format!("{photos} --with_prior_preservation"),
            ["--class_prompt", "photo of a dog"],
        ),
        (
            format!("{photos} --resume_from_checkpoint gone"),
            ["--resume_from_checkpoint", "gone"],
        ),
        (format!("{photos} --config args.json"), ["args.json", "learning_rat"]),
        (format!("{photos} --config gone.json"), ["--config", "gone.json"]),
        (
            "--instance_data_dir photos".into(),
            ["--instance_prompt", "photo of zwx dog"],
        ),
        ("--instance_prompt x".into(), ["give a folder", "--instance_data_dir"]),
        (
            "--instance_prompt x --instance_data_dir gone".into(),
            ["--instance_data_dir", "gone"],
        ),
        ("--concepts_list gone.json".into(), ["--concepts_list", "gone.json"]),
        ("--concepts_list list.json".into(), ["list.json", "instance_promt"]),
        ("--concepts_list nowhere.json".into(), ["--concepts_list", "gone"]),
        ("--concepts_list []".into(), ["--concepts_list", "at least one subject"]),
    ] {
        println!("{flags}");
        world.train(&flags).ends(2, &words);
    }
    assert!(!world.path("text-inversion-model/1").exists());

    std::fs::create_dir(world.path("folder")).unwrap();
    world.write("run/8/model_index.json", "{}");
    for (line, words) in [
        ("sample --model starter --prompt x --width 63", ["--width", "64"]),
        (
            "sample --model starter --prompt x --clip_skip 0",
            ["--clip_skip", "at least 1"],
        ),
        (
            "sample --model starter --prompt x --clip_skip 99",
            ["--clip_skip", "at most"],
        ),
        ("sample --model starter --prompt x --steps 0", ["--steps", "at least 1"]),
        (
            "sample --model starter --prompt x --scheduler best",
            ["--scheduler", "dpmpp_2m"],
        ),
        ("sample --model starter --prompt x --karras", ["--karras", "euler"]),
        ("sample --model starter", ["--prompt", "required"]),
        (
            "convert --model_path starter --checkpoint_path folder",
            ["--checkpoint_path", "folder/model.safetensors"],
        ),
        (
            "convert --model_path run --checkpoint_path a.ckpt",
            ["--model_path", "run/8"],
        ),
        (
            "convert --model_path starter --checkpoint_path a.ckpt --use_safetensors",
            ["--checkpoint_path", ".safetensors"],
        ),
        ("job --dir gone", ["--dir", "gone"]),
        ("teach", ["teach", "Usage"]),
    ] {
        println!("{line}");
        world.run(line).ends(2, &words);
    }
}

#[test]
fn a_failure_ends_with_status_1_and_is_told_once() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    let whole = std::fs::read(world.path("photos/0.png")).unwrap();
    world.write("torn/0.png", &whole[..whole.len() / 2]);
    world.write("empty/notes.txt", "");
    let prompt = "--instance_prompt x --output_dir out";
    for (flags, words) in [
        (format!("{prompt} --instance_data_dir torn"), "torn/0.png"),
        (format!("{prompt} --instance_data_dir empty"), "no photos in"),
        (
            format!("{prompt} --instance_data_dir photos --pretrained_model_name_or_path ./gone.safetensors"),
            "gone.safetensors",
        ),
    ] {
        let ran = world.train(&flags);
        ran.ends(1, &[words]);
        assert_eq!(ran.stderr.matches("error:").count(), 1, "{}", ran.stderr);
    }
    // The server's own program hands the status on.
    let mut command = Command::new(tests::executable("likeness"));
    command
        .current_dir(world.path(""))
        .args(["convert", "--model_path", "./gone", "--checkpoint_path", "a.ckpt"]);
    finished(&mut command).ends(1, &["gone"]);
}

#[test]
fn a_run_is_stopped_with_status_130_and_taken_up_where_it_was() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    let flags = "--max_train_steps 40 --lr_scheduler linear --log_interval 1";
    let whole = world.train_on("photos", "whole", flags);

    let line = World::train_line(&format!(
        "--instance_prompt \"photo of zwx dog\" --instance_data_dir photos --output_dir cut {flags}"
    ));
    let mut child = world.command(&line).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let at = |line: &str, words: &str| line.contains(words);
    assert!(lines.any(|line| at(&line.unwrap(), "step 3/40")));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| at(line, "the state is saved")), "{rest:?}");

    let cut = world.output("cut");
    let stopped: u32 = cut.names("").iter().find_map(|name| name.parse().ok()).unwrap();
    assert!((3..40).contains(&stopped), "{stopped}");
    assert!(cut.unet(stopped) != whole.unet(40));
    let ran = world.run(&line).ok();
    let words = format!("continuing after step {stopped}");
    assert!(ran.stderr.contains(&words), "{words}: {}", ran.stderr);
    assert!(cut.unet(40) == whole.unet(40), "the same bits");
    // Once it is done, the same command begins again.
    let again = world.run(&line).ok();
    assert!(!again.stderr.contains("continuing"), "{}", again.stderr);
}

#[test]
fn flags_without_effect_are_told_with_the_reason() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    world.write("photos/0.txt", "x");
    let flags = "--instance_prompt x --instance_data_dir photos --output_dir out";
    for (flag, words) in [
        ("--class_prompt y", "--with_prior_preservation"),
        ("--num_class_images 3", "--with_prior_preservation"),
        ("--prior_loss_weight 0.5", "--with_prior_preservation"),
        ("--read_prompts_from_txts", "each photo has its own"),
        ("--num_train_epochs 2", "--max_train_steps"),
        ("--scale_lr", "are 1"),
        ("--lr_warmup_steps 5", "constant_with_warmup"),
        ("--lr_num_cycles 2", "only cosine_with_restarts"),
        ("--lr_power 2", "only polynomial"),
        ("--n_save_sample 2", "--save_sample_prompt"),
        ("--save_guidance_scale 3", "--save_sample_prompt"),
        ("--validation_steps 3", "--save_sample_prompt"),
        ("--save_infer_steps 5", "neither samples nor class images"),
        ("--sample_batch_size 2", "neither samples nor class images"),
        ("--save_min_steps 2", "--save_interval"),
        (
            "--save_min_steps 2 --save_interval 3 --max_train_steps 4",
            "by --save_interval",
        ),
        ("--keep_last 1", "no more models"),
        ("--checkpointing_steps 1", "the run ends before"),
        ("--pad_tokens", "padded anyway"),
        ("--low_memory --use_8bit_adam", "--low_memory, which has 8-bit"),
        (
            "--low_memory --gradient_checkpointing",
            "beside --low_memory, which has it",
        ),
        ("--stop_text_encoder_at 1", "train_text_encoder"),
        ("--train_text_encoder --stop_text_encoder_at 1", "the run ends before"),
        (
            "--train_text_encoder --text_encoder_learning_rate 1e-6 --scale_lr --train_batch_size 2",
            "used as it is",
        ),
        (
            "--save_sample_prompt x --n_save_sample 1 --save_infer_steps 1 --save_guidance_scale 1 \
             --save_sample_negative_prompt y",
            "save_guidance_scale of 1 or less",
        ),
        (
            "--strict_tutorial --gradient_accumulation_steps 2",
            "the model stays as it was",
        ),
        ("--validation_epochs 5", "--validation_steps"),
        ("--validation_scheduler DDPMScheduler", "DDIM"),
        ("--validation_images a.png b.png", "start from noise"),
        ("--text_encoder_learning_rate 1e-6", "train_text_encoder"),
        ("--lora_alpha 4", "without lora_rank"),
        ("--ema_decay 0.9", "use_ema"),
        ("--strict_tutorial --max_grad_norm 2", "does not clip"),
        ("--strict_tutorial --alpha_background black", "lets show what is below"),
        ("--mixed_precision bf16", "CPU"),
        ("--revision fp16", "not from the Hub"),
        ("--logging_dir logs", "events.jsonl"),
        ("--push_to_hub", "as in the script"),
        ("--hub_token secret", "as in the script"),
        ("--local_rank 0", "one process"),
    ] {
        println!("{flag}");
        world.train(&format!("{flags} {flag}")).ok();
        let told = world.output("out").warnings();
        let about = told.iter().filter(|line| line.contains(words));
        assert_eq!(about.count(), 1, "{told:?}");
    }
    world.train(flags).ok();
    let told = world.output("out").warnings();
    assert!(told.is_empty(), "{told:?}");
    let args = std::fs::read_to_string(world.path("out/1/args.json")).unwrap();
    assert!(!args.contains("hub_token"), "a secret");
}

#[test]
fn help_groups_the_flags_as_a_person_thinks() {
    let world = World::new();
    let help = world.run("train --help").ok().stdout;
    let titles = [
        "Model:",
        "Subject:",
        "Photos:",
        "Training:",
        "Speed and memory:",
        "Results:",
        "Going on:",
        "Without effect:",
    ];
    let places: Vec<usize> = titles
        .iter()
        .map(|title| help.find(&format!("\n{title}\n")).expect(title))
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    let subject = &help[places[1]..places[2]];
    for flag in [
        "--instance_data_dir",
        "--class_prompt",
        "--concepts_list",
        "--num_class_images",
    ] {
        assert!(subject.contains(flag), "{flag}");
    }
    assert!(help[places[7]..].contains("--push_to_hub"));
}
