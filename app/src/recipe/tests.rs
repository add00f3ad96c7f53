//! Recipes that are complete, and what is said of those that are not.

use super::*;

fn dog() -> RecipeDraft {
    RecipeDraft {
        concepts: vec![Concept {
            instance_prompt: instance_prompt("zwx", "dog"),
            instance_data_dir: "photos/0".into(),
            class_prompt: Some(class_prompt("dog")),
            class_data_dir: Some("class-images/0".into()),
        }],
        ..RecipeDraft::default()
    }
}

#[test]
fn a_good_draft_becomes_a_recipe_and_survives_json() {
    let recipe = dog().check().expect("good");
    let json = serde_json::to_string(&recipe).expect("serialises");
    assert_eq!(serde_json::from_str::<Recipe>(&json).expect("parses"), recipe);
}

#[test]
fn every_problem_is_reported_with_its_field() {
    let mut draft = dog();
    draft.concepts[0].class_prompt = Some(" ".into());
    draft.resolution = Some(510);
    draft.learning_rate = f64::NAN;
    draft.max_train_steps = 0;
    let problems = draft.check().expect_err("bad").0;
    let mut fields: Vec<String> = problems.iter().map(RecipeProblem::field).collect();
    fields.sort();
    let wanted = [
        "concepts.0.class_prompt",
        "learning_rate",
        "max_train_steps",
        "resolution",
    ];
    assert_eq!(fields, wanted);
}

#[test]
fn a_photo_is_held_out_where_it_can_be_spared_and_is_measured() {
    let mut draft = dog();
    draft.samples.save_sample_prompt = "photo of zwx dog".into();
    assert!(!draft.holds_out(11) && draft.holds_out(12));
    let without = |change: fn(&mut RecipeDraft)| {
        let mut draft = draft.clone();
        change(&mut draft);
        !draft.holds_out(40)
    };
    assert!(without(|d| d.holdout_photo = false));
    assert!(
        without(|d| d.strict_tutorial = true),
        "the script trains on every photo"
    );
    assert!(without(|d| d.samples.save_sample_prompt = " ".into()), "never measured");
}

#[test]
fn a_hub_id_is_told_from_a_path() {
    for id in ["stable-diffusion-v1-5/stable-diffusion-v1-5", " a/b.c "] {
        assert!(may_be_hub_id(id), "{id}");
    }
    for path in [
        "starter",
        "/models/sd15",
        "./a/b",
        "../a",
        "a/b/c",
        "models/dog.ckpt",
        "a/",
        "",
    ] {
        assert!(!may_be_hub_id(path), "{path}");
    }
}

#[test]
fn a_revision_leads_nowhere_else() {
    for good in [
        "main",
        "fp16",
        "refs/pr/3",
        "v1.5",
        "39593d5650112b4cc580433f6b0435385882d819",
    ] {
        assert!(is_revision(good), "{good}");
    }
    for bad in [
        "", " ", "../main", "a..b", "/etc", "a//b", "a/.git", "ma in", "main?x=1", "a/", "\u{e4}",
    ] {
        let draft = RecipeDraft {
            revision: Some(bad.into()),
            ..dog()
        };
        let fields: Vec<String> = draft
            .check()
            .expect_err("bad")
            .0
            .iter()
            .map(RecipeProblem::field)
            .collect();
        assert_eq!(fields, ["revision"], "{bad}");
    }
}

#[test]
fn a_recipe_read_from_disk_is_checked_again() {
    let bad = r#"{"concepts":[]}"#;
    assert!(serde_json::from_str::<Recipe>(bad).is_err());
    let unknown = r#"{"learning_rte":1}"#;
    assert!(serde_json::from_str::<RecipeDraft>(unknown).is_err());
}

#[test]
fn a_recipe_of_before_a_setting_was_there_still_loads() {
    let old = r#"{"pretrained_model_name_or_path":"starter","concepts":[{"instance_prompt":"photo of zwx dog",
        "instance_data_dir":"photos/0","class_prompt":"photo of a dog","class_data_dir":"class-images/0"}],
        "resolution":null,"max_train_steps":360,"train_batch_size":1,"sample_batch_size":4,
        "gradient_accumulation_steps":1,"learning_rate":0.0005,"lr_scheduler":"constant","lr_warmup_steps":0,
        "train_text_encoder":true,"prior":{"num_class_images":12,"prior_loss_weight":1.0},"hflip":false,
        "center_crop":false,"seed":1337,"mixed_precision":"no","adam":{"adam_beta1":0.9,"adam_beta2":0.999,
        "adam_weight_decay":0.01,"adam_epsilon":1e-8,"max_grad_norm":1.0},"samples":{"save_sample_prompt":
        "photo of zwx dog","save_sample_negative_prompt":"","n_save_sample":4,"sample_interval":120,
        "save_guidance_scale":4.0,"save_infer_steps":16},"checkpointing_steps":60,"pad_tokens":false,
        "read_prompts_from_txts":false}"#;
    let recipe: Recipe = serde_json::from_str(old).expect("loads");
    assert_eq!(recipe.mixed_precision, MixedPrecision::No);
    assert!(!recipe.pad_tokens && !recipe.use_ema && !recipe.strict_tutorial);
    assert_eq!(
        (recipe.snr_gamma, recipe.lr_num_cycles, recipe.lr_power),
        (None, 1, 1.0)
    );
}

#[test]
fn low_memory_neither_accumulates_nor_averages_nor_computes_in_fp16() {
    let mut draft = dog();
    draft.low_memory = true;
    draft.mixed_precision = MixedPrecision::Bf16;
    assert!(draft.clone().check().is_ok());
    (draft.gradient_accumulation_steps, draft.mixed_precision) = (2, MixedPrecision::Fp16);
    draft.use_ema = true;
    let problems = draft.check().expect_err("bad").0;
    let fields: Vec<String> = problems.iter().map(RecipeProblem::field).collect();
    assert_eq!(fields, ["gradient_accumulation_steps", "mixed_precision", "use_ema"]);
}

#[test]
fn settings_that_would_stop_learning_are_named() {
    let mut draft = dog();
    draft.snr_gamma = Some(0.0);
    draft.offset_noise = f64::NAN;
    draft.lr_scheduler = LrScheduler::Polynomial;
    draft.learning_rate = 1e-7;
    draft.checkpoints_total_limit = Some(0);
    (draft.lora_rank, draft.lora_alpha) = (Some(0), Some(0.0));
    let problems = draft.check().expect_err("bad").0;
    let mut fields: Vec<String> = problems.iter().map(RecipeProblem::field).collect();
    fields.sort();
    let wanted = [
        "checkpoints_total_limit",
        "learning_rate",
        "lora_alpha",
        "lora_rank",
        "offset_noise",
        "snr_gamma",
    ];
    assert_eq!(fields, wanted);
}

#[test]
fn samples_come_first_each_interval_and_last() {
    let mut draft = dog();
    draft.max_train_steps = 250;
    assert!(draft.sample_steps().is_empty());
    draft.samples.save_sample_prompt = "photo of zwx dog".into();
    assert_eq!(draft.sample_steps(), [250]);
    draft.samples.sample_interval = 100;
    assert_eq!(draft.sample_steps(), [0, 100, 200, 250]);
}

#[test]
fn class_prompts_use_the_right_article() {
    assert_eq!(class_prompt("dog"), "photo of a dog");
    assert_eq!(class_prompt(" owl"), "photo of an owl");
}
