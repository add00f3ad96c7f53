//! Another VAE in the base model's place: who uses it for what.

use candle_core::Device;

use super::world::{Output, World, model_with_halved};

const FILE: &str = "vae/diffusion_pytorch_model.safetensors";

/// Pictures drawn with it and the VAE that is left, after a step.
fn drawn_and_left(output: &Output) -> (Vec<u8>, Vec<u8>) {
    (output.file("1/samples/0.png"), output.file(&format!("1/{FILE}")))
}

/// Another decoder is not seen by what only encodes photos.
#[test]
fn another_decoder_draws_and_is_left_and_changes_nothing_that_is_learned() {
    let world = World::with_photos(1);
    let tensor = "decoder.conv_in.weight";
    model_with_halved(&world.path("other"), FILE, tensor);
    for strict in ["", "--strict_tutorial"] {
        let train = |output: &str, flags: &str| {
            let samples = "--save_sample_prompt zwx --n_save_sample 1 --save_infer_steps 1";
            world.train_on(
                "photos",
                &format!("{output}{strict}"),
                &format!("{samples} {strict} {flags}"),
            )
        };
        let own = train("own", "");
        let other = train("other", "--pretrained_vae_name_or_path other");
        assert_eq!(own.steps(), other.steps(), "{strict}");
        assert!(own.unet(1) == other.unet(1), "{strict}");
        let (own, (picture, left)) = (drawn_and_left(&own), drawn_and_left(&other));
        assert!(own.0 != picture, "{strict}: drawn with the base model's");
        let decoder = |bytes: &[u8]| {
            let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).unwrap();
            tensors[tensor]
                .flatten_all()
                .unwrap()
                .to_dtype(candle_core::DType::F32)
                .unwrap()
        };
        let halved = (decoder(&own.1) * 0.5).unwrap();
        let apart = (decoder(&left) - halved).unwrap().abs().unwrap().max(0).unwrap();
        assert!(
            apart.to_scalar::<f32>().unwrap() < 1e-7,
            "{strict}: it is not the one that is left"
        );
    }
}
