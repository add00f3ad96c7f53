//! A LoRA from its training to pictures and to a whole model.

use super::world::{World, names, stripes, tiny_model};

#[test]
fn a_lora_is_trained_drawn_with_and_merged() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    // The rate of the first two updates is 0 and half of it: the check of gradients must see through both.
    let flags = "--lora_rank 4 --lora_alpha 8 --train_text_encoder --learning_rate 5e-2 --max_train_steps 4 \
                 --lr_scheduler constant_with_warmup --lr_warmup_steps 2 --text_encoder_learning_rate 0 --save_interval 2 \
                 --keep_last 1";
    let out = world.train_on("photos", "out", flags);
    assert_eq!(out.names(""), [".likeness", "4"]);
    assert_eq!(out.names("4"), ["args.json", "zwx-dog-4.safetensors"], "no whole model");
    let lora = "out/4/zwx-dog-4.safetensors";

    let model = tiny_model();
    let model = model.display();
    let merge = |lora: &str| format!("convert --model_path \"{model}\" --checkpoint_path merged.safetensors {lora}");
    world.run(&merge(&format!("--lora {lora}"))).ok();
    let draw = |flags: &str, out: &str| {
        let line = "sample --device cpu --prompt \"photo of zwx dog\" --steps 3 --seed 5";
        world.run(&format!("{line} --out {out} {flags}")).ok();
        let drawn = names(&world.path(out)).into_iter().find(|name| name.ends_with(".png"));
        std::fs::read(world.path(out).join(drawn.unwrap())).unwrap()
    };
    let with_lora = draw(&format!("--model \"{model}\" --lora {lora}"), "with");
    assert_ne!(with_lora, draw(&format!("--model \"{model}\""), "without"));
    assert_eq!(with_lora, draw("--model merged.safetensors", "merged"));

    let no_lora = model.to_string() + "/unet/diffusion_pytorch_model.safetensors";
    world
        .run(&merge(&format!("--lora \"{no_lora}\"")))
        .ends(1, &["diffusion_pytorch_model.safetensors"]);
    world
        .run(&merge("--lora none.safetensors"))
        .ends(1, &["none.safetensors"]);
}

#[test]
fn a_lora_has_the_networks_that_were_trained() {
    let world = World::new();
    world.picture("photos/0.png", stripes(1, 64, 64));
    for (to, flags, text) in [("unet", "", false), ("both", "--train_text_encoder", true)] {
        let line = format!("--lora_rank 2 --learning_rate 1e-2 {flags}");
        let out = world.train_on("photos", to, &line);
        let tensors =
            candle_core::safetensors::load_buffer(&out.file("1/zwx-dog-1.safetensors"), &candle_core::Device::Cpu);
        let tensors = tensors.unwrap();
        let has = |start: &str| tensors.keys().any(|name| name.starts_with(start));
        assert!(has("lora_unet_"), "{flags}");
        assert_eq!(has("lora_te_"), text, "{flags}");
    }
}
