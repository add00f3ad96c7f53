//! What holds for any model and any prompt, on seeded random ones: a failure names its seed.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::json as value;
use trainer::formats::{self, Container, ModelWeights, Width, architecture};
use trainer::tokenizer::Tokenizer;

use super::support::json;

/// Marsaglia's xorshift64, which needs no crate and is the same everywhere.
struct Random(u64);

impl Random {
    fn of_seed(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() >> 11) as usize % count
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Numbers in f16 of both signs and all sizes, without infinities: what a cast or a mixed-up stride would change.
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let numbers: Vec<half::f16> = (0..count)
            .map(|_| {
                let number = half::f16::from_bits(self.next() as u16);
                if number.is_finite() { number } else { half::f16::ONE }
            })
            .collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }
}

/// A model of Stable Diffusion's structure in sizes of its own, of 1.x or 2.x. Each network has one of `dtypes`.
fn any_model(random: &mut Random, dtypes: &[DType]) -> ModelWeights {
    let tiny = formats::load(&super::dir().join("tiny-sd").to_string_lossy()).unwrap();
    let mut files = tiny.config_files;
    let groups = random.one_of(&[1, 2, 4]);
    let widths = |random: &mut Random| -> Vec<usize> { (0..4).map(|_| 4 * (1 + random.below(4))).collect() };
    let context = random.one_of(&[4, 8, 12]);
    files.unet["block_out_channels"] = value!(widths(random));
    files.unet["layers_per_block"] = value!(1 + random.below(3));
    files.unet["cross_attention_dim"] = value!(context);
    files.unet["attention_head_dim"] = random.one_of(&["1", "2", "[1, 2, 4, 2]"]).parse().unwrap();
    files.unet["norm_num_groups"] = value!(groups);
    files.unet["use_linear_projection"] = value!(random.below(2) == 1);
    files.vae["block_out_channels"] = value!(widths(random));
    files.vae["layers_per_block"] = value!(1 + random.below(2));
    files.vae["norm_num_groups"] = value!(groups);
    files.text_encoder["hidden_size"] = value!(context);
    files.text_encoder["num_attention_heads"] = value!(2);
    files.text_encoder["intermediate_size"] = value!(8 * (1 + random.below(3)));
    // 23 layers are written in OpenCLIP's names.
    files.text_encoder["num_hidden_layers"] = value!(random.one_of(&[1, 2, 5, 23]));
    let configs = files.parse(Path::new("any model")).unwrap();
    let networks = [
        architecture::unet(&configs.unet),
        architecture::vae(&configs.vae),
        architecture::text_encoder(&configs.text_encoder),
    ];
    let networks = networks.map(|parameters| -> BTreeMap<String, Tensor> {
        let dtype = random.one_of(dtypes);
        let mut tensor = |shape: &[usize]| random.tensor(shape).to_dtype(dtype).unwrap();
        parameters.into_iter().map(|p| (p.path, tensor(&p.shape))).collect()
    });
    ModelWeights::new(Path::new("any model"), files, tiny.tokenizer_files, networks).unwrap()
}

fn assert_same(seed: u64, form: &str, got: &ModelWeights, want: &ModelWeights) {
    assert_eq!(got.configs(), want.configs(), "seed {seed}, {form}");
    let bits = |tensor: &Tensor| -> Vec<u64> {
        let wide = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
        wide.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
    };
    for (got, want) in [
        (&got.unet, &want.unet),
        (&got.vae, &want.vae),
        (&got.text_encoder, &want.text_encoder),
    ] {
        assert_eq!(got.len(), want.len(), "seed {seed}, {form}");
        for (path, want) in want {
            let got = &got[path];
            let same = got.dims() == want.dims() && got.dtype() == want.dtype() && bits(got) == bits(want);
            assert!(same, "seed {seed}, {form}: {path}");
        }
    }
}

#[test]
fn any_model_comes_back_from_every_form_with_the_same_bits() {
    for seed in 0..12 {
        let mut random = Random::of_seed(seed);
        // Half precision changes no bit of a model that has it.
        let (dtypes, widths) = match seed % 3 {
            0 => ([DType::F16].as_slice(), [Width::Half, Width::Full].as_slice()),
            _ => (
                [DType::F16, DType::BF16, DType::F32].as_slice(),
                [Width::Full].as_slice(),
            ),
        };
        let model = any_model(&mut random, dtypes);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, container) in [("a.safetensors", Container::Safetensors), ("a.ckpt", Container::Ckpt)] {
            formats::save_single_file(&path(name), &model, random.one_of(widths), container).unwrap();
            let back = formats::load(&path(name).to_string_lossy()).unwrap();
            assert_same(seed, name, &back, &model);
        }
        // From a single file to a folder and back to the file, byte for byte.
        let single = formats::load(&path("a.ckpt").to_string_lossy()).unwrap();
        formats::save_diffusers(&path("folder"), &single, Width::Full).unwrap();
        let back = formats::load(&path("folder").to_string_lossy()).unwrap();
        assert_same(seed, "folder", &back, &model);
        formats::save_single_file(&path("b.ckpt"), &back, Width::Full, Container::Ckpt).unwrap();
        assert!(
            std::fs::read(path("a.ckpt")).unwrap() == std::fs::read(path("b.ckpt")).unwrap(),
            "seed {seed}: the file is another after a round"
        );
    }
}

#[test]
fn numbers_that_are_not_finite_are_never_exported() {
    let mut random = Random::of_seed(1);
    let model = any_model(&mut random, &[DType::F16]);
    let folder = tempfile::tempdir().unwrap();
    // The last is finite as it is and infinite as f16.
    for (number, width) in [
        (f32::NAN, Width::Full),
        (f32::NEG_INFINITY, Width::Half),
        (7e4, Width::Half),
    ] {
        let mut broken = model.clone();
        let bias = Tensor::new(&[1f32, number, 2., 3.], &Device::Cpu).unwrap();
        broken.unet.insert("conv_out.bias".into(), bias);
        let path = folder.path().join("a.safetensors");
        let error = formats::save_single_file(&path, &broken, width, Container::Safetensors).unwrap_err();
        assert!(
            error.to_string().contains("model.diffusion_model.out.2.bias"),
            "{error}"
        );
        assert!(!path.exists());
        assert!(formats::save_diffusers(&folder.path().join("folder"), &broken, width).is_err());
    }
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    length: usize,
    untruncated_length: usize,
    ids_fast: Option<Vec<u32>>,
    ids_slow_without_ftfy: Option<Vec<u32>>,
}

const BOS: u32 = 49406;
const EOS: u32 = 49407;

#[test]
fn any_prompt_of_reference_prompts_has_their_ids_in_a_row() {
    let Cases { cases } = json("tokenizer_cases.json");
    // Words do not reach over a space, but ftfy's repairs do; those cases stand alone.
    let plain =
        |case: &&Case| case.ids_fast.is_none() && case.ids_slow_without_ftfy.is_none() && case.untruncated_length <= 77;
    let cases: Vec<&Case> = cases.iter().filter(plain).collect();
    assert!(cases.len() > 20, "{}", cases.len());
    let tokenizer = Tokenizer::clip().unwrap();
    for seed in 0..400 {
        let mut random = Random::of_seed(seed);
        let (mut prompt, mut ids) = (String::new(), Vec::new());
        for _ in 0..=random.below(6) {
            let case = random.one_of(&cases);
            prompt += &case.prompt;
            prompt += random.one_of(&[" ", "  ", "\n", " \t "]);
            ids.extend(&case.ids[1..case.length - 1]);
        }
        let whole = ids.len() + 2;
        ids.truncate(75);
        let short: Vec<u32> = [BOS].into_iter().chain(ids).chain([EOS]).collect();
        let got = tokenizer.encode(&prompt, false).unwrap();
        assert_eq!(got.ids, short, "seed {seed}: {prompt:?}");
        assert_eq!(got.cut.is_some(), whole > 77, "seed {seed}: {prompt:?}");
        let padded = tokenizer.encode(&prompt, true).unwrap();
        assert_eq!(
            (padded.length, padded.ids.len()),
            (short.len(), 77),
            "seed {seed}: {prompt:?}"
        );
        assert_eq!(padded.ids[..short.len()], short, "seed {seed}: {prompt:?}");
        assert!(
            padded.ids[short.len()..].iter().all(|id| *id == EOS),
            "seed {seed}: {prompt:?}"
        );
    }
}

#[test]
fn any_text_at_all_becomes_77_known_ids() {
    let tokenizer = Tokenizer::clip().unwrap();
    for seed in 0..400 {
        let mut random = Random::of_seed(seed);
        let any_char = |random: &mut Random| match random.below(4) {
            0 => random.one_of(&[' ', '\t', '\n', '\u{a0}', '\u{200b}', '\0', '<', '|', '&', ';', '\'']),
            1 => char::from(32 + random.below(95) as u8),
            2 => char::from_u32(random.below(0x3000) as u32).unwrap_or('x'),
            _ => char::from_u32(random.below(0x11_0000) as u32).unwrap_or('\u{fffd}'),
        };
        let text: String = (0..random.below(120)).map(|_| any_char(&mut random)).collect();
        let got = tokenizer.encode(&text, true).unwrap();
        assert_eq!(
            (got.ids.len(), got.ids[0], got.ids[got.length - 1]),
            (77, BOS, EOS),
            "seed {seed}: {text:?}"
        );
        assert!(
            got.ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()),
            "seed {seed}: {text:?}"
        );
        assert_eq!(
            tokenizer.encode(&text, false).unwrap().ids,
            got.ids[..got.length],
            "seed {seed}: {text:?}"
        );
    }
}
