//! Prompts to ids against transformers' `CLIPTokenizer`.

use serde::Deserialize;
use trainer::tokenizer::{Tokenizer, TokenizerFiles};

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    length: usize,
    untruncated_length: usize,
    ids_fast: Option<Vec<u32>>,
}

/// Only mojibake, which ftfy repairs and we leave alone.
const AS_THE_FAST_ONE: [&str; 1] = ["schÃ¶n mojibake"];

#[test]
fn prompts_become_the_ids_that_transformers_gives() -> anyhow::Result<()> {
    let file: File = serde_json::from_slice(&std::fs::read(super::dir().join("tokenizer_cases.json"))?)?;
    assert!(file.cases.len() >= 60);
    let folder = super::dir().join("tiny-sd/tokenizer");
    let read = |name: &str| std::fs::read_to_string(folder.join(name));
    let from_folder = Tokenizer::from_files(&TokenizerFiles {
        vocab_json: read("vocab.json")?.into(),
        merges_txt: read("merges.txt")?.into(),
        config: serde_json::from_str(&read("tokenizer_config.json")?)?,
        special_tokens_map: Some(serde_json::from_str(&read("special_tokens_map.json")?)?),
    })?;
    let embedded = Tokenizer::clip()?;
    assert_eq!(embedded.vocab_size(), 49408);
    let mut wrong = Vec::new();
    for case in &file.cases {
        let got = embedded.encode(&case.prompt, true)?;
        assert_eq!(from_folder.encode(&case.prompt, true)?, got, "{:?}", case.prompt);
        let as_fast = AS_THE_FAST_ONE.contains(&case.prompt.as_str());
        let wanted = if as_fast {
            case.ids_fast.as_ref()
        } else {
            Some(&case.ids)
        };
        if wanted != Some(&got.ids) {
            let also_fast = case.ids_fast.as_ref() == Some(&got.ids);
            wrong.push(format!(
                "{:?} (as the fast one: {also_fast}): {:?}",
                case.prompt, got.ids
            ));
            continue;
        }
        if as_fast {
            continue;
        }
        assert_eq!(got.length, case.length, "{:?}", case.prompt);
        assert_eq!(got.cut.is_some(), case.untruncated_length > 77, "{:?}", case.prompt);
        let short = embedded.encode(&case.prompt, false)?;
        assert_eq!(short.ids, case.ids[..case.length], "{:?}", case.prompt);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_text_encoders_prompts_become_its_ids() -> anyhow::Result<()> {
    let prompts: Vec<String> = super::support::json("forward/text_encoder_prompts.json");
    let ids = &super::support::load("forward/text_encoder.safetensors")["input_ids"];
    let tokenizer = Tokenizer::clip()?;
    assert_eq!(ids.dims(), [prompts.len(), 77]);
    for (prompt, wanted) in prompts.iter().zip(ids.to_vec2::<i64>()?) {
        let got = tokenizer.encode(prompt, true)?.ids;
        assert!(got.into_iter().map(i64::from).eq(wanted), "{prompt:?}");
    }
    Ok(())
}
