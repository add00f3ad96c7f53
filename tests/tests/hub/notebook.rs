//! The tutorial's notebook, its commands letter for letter: the models' names are the Hub's, and only what would take
//! hours is made smaller by flags behind its own.

use std::process::Output;

use tests::hub::{Hub, Repository};

use super::{Home, files, good, published};
use crate::cli::world::{json, names, stripes, words};

const OUTPUT_DIR: &str = "stable_diffusion_weights/zwx";

/// As its cell has them, with `likeness train` for `python3 train_dreambooth.py`.
const TRAIN: &str = r#"train \
  --pretrained_model_name_or_path=$MODEL_NAME \
  --pretrained_vae_name_or_path="stabilityai/sd-vae-ft-mse" \
  --output_dir=$OUTPUT_DIR \
  --revision="fp16" \
  --with_prior_preservation --prior_loss_weight=1.0 \
  --seed=1337 \
  --resolution=512 \
  --train_batch_size=1 \
  --train_text_encoder \
  --mixed_precision="fp16" \
  --use_8bit_adam \
  --gradient_accumulation_steps=1 \
  --learning_rate=1e-6 \
  --lr_scheduler="constant" \
  --lr_warmup_steps=0 \
  --num_class_images=50 \
  --sample_batch_size=4 \
  --max_train_steps=800 \
  --save_interval=10000 \
  --save_sample_prompt="photo of zwx dog" \
  --concepts_list="concepts_list.json""#;

const SMALLER: &str = "--device=cpu --resolution=64 --num_class_images=2 --max_train_steps=2 --save_infer_steps=2";

const CONCEPTS: &str = r#"[
    {
        "instance_prompt": "photo of zwx dog",
        "class_prompt": "photo of a dog",
        "instance_data_dir": "data/zwx",
        "class_data_dir": "data/dog"
    }
]"#;

fn likeness(home: &Home, line: &str) -> Output {
    let line = line.replace("\\\n", " ").replace("$OUTPUT_DIR", OUTPUT_DIR);
    let line = line.replace("$MODEL_NAME", "runwayml/stable-diffusion-v1-5");
    let output = home.program("likeness", &words(&line)).output().unwrap();
    good(&output);
    output
}

#[test]
fn hub_the_notebooks_commands_work_as_they_are() {
    let mut model = published();
    // Its 16-bit files are all there is of the revision that the notebook names.
    let half = model.files["vae/diffusion_pytorch_model.safetensors"].clone();
    let name = "vae/diffusion_pytorch_model.fp16.safetensors";
    model.files.insert(name.into(), half);
    let vae = crate::golden::dir_of("tiny-sd21").join("vae");
    let hub = Hub::start([
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", model),
        ("stabilityai/sd-vae-ft-mse", Repository::of_folder(&vae).unwrap()),
    ])
    .unwrap();
    let home = Home::new(&hub);
    for number in 0..2 {
        let path = home.path(&format!("data/zwx/{number}.png"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        stripes(number, 80, 64).save(path).unwrap();
    }
    std::fs::write(home.path("concepts_list.json"), CONCEPTS).unwrap();

    likeness(&home, &format!("{TRAIN} {SMALLER}"));
    assert!(files(&hub).contains(&name.to_owned()));
    let newest = home.path(OUTPUT_DIR).join("2");
    assert_eq!(names(&newest.join("samples")), ["0.png", "1.png", "2.png", "3.png"]);
    assert_eq!(names(&home.path("data/dog")).len(), 2);
    assert_eq!(
        json(&newest.join("vae/config.json"))["block_out_channels"],
        json(&vae.join("config.json"))["block_out_channels"]
    );

    likeness(
        &home,
        "convert --model_path $OUTPUT_DIR/2 --checkpoint_path $OUTPUT_DIR/2/model.ckpt --half",
    );
    // Its inference cell; the Hub is asked for nothing any more.
    for model in ["$OUTPUT_DIR/2", "$OUTPUT_DIR/2/model.ckpt"] {
        let drawn = likeness(
            &home,
            &format!(
                "sample --device cpu --model {model} --prompt \"photo of zwx dog in a bucket\" --negative_prompt \"\" \
                 --num_samples 4 --guidance_scale 7.5 --steps 24 --seed 52362 --height 64 --width 64 --out drawn"
            ),
        );
        assert_eq!(String::from_utf8_lossy(&drawn.stdout).lines().count(), 4);
        assert_eq!(names(&home.path("drawn")).len(), 4);
    }
    assert_eq!(files(&hub), [""; 0]);
}
