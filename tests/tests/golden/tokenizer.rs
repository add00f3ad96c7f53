//! Prompts to ids against transformers' `CLIPTokenizer`.

use serde::Deserialize;
use trainer::tokenizer::{Tokenizer, TokenizerFiles};

use super::support::{Table, json, peek};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    bos: u32,
    eos: u32,
    pad: u32,
    model_max_length: usize,
    vocab_size: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    length: usize,
    untruncated_length: usize,
    ids_fast: Option<Vec<u32>>,
    /// What ours must not give: prompts are repaired.
    ids_slow_without_ftfy: Option<Vec<u32>>,
}

/// Only mojibake, which ftfy repairs and we leave alone.
const AS_THE_FAST_ONE: [&str; 1] = ["schÃ¶n mojibake"];

fn beginning(prompt: &str) -> String {
    format!("{:?}", prompt.chars().take(50).collect::<String>())
}

#[test]
fn prompts_become_the_ids_that_transformers_gives() -> anyhow::Result<()> {
    let file: File = json("tokenizer_cases.json");
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
    let mut table = Table::new("tokenizer");
    table.equal("vocabulary", &embedded.vocab_size(), &file.vocab_size);
    let empty = embedded.encode("", true)?.ids;
    table.equal(
        "bos, eos and padding",
        &[empty[0], empty[1], empty[2]],
        &[file.bos, file.eos, file.pad],
    );
    table.equal("longest", &empty.len(), &file.model_max_length);
    for case in &file.cases {
        let got = embedded.encode(&case.prompt, true)?;
        assert_eq!(from_folder.encode(&case.prompt, true)?, got, "{:?}", case.prompt);
        let item = beginning(&case.prompt);
        if AS_THE_FAST_ONE.contains(&case.prompt.as_str()) {
            table.equal(item + ", as the fast one", &Some(got.ids), &case.ids_fast);
            continue;
        }
        let short = embedded.encode(&case.prompt, false)?;
        let all = (got.ids, got.length, got.cut.is_some(), short.ids);
        if let Some(unrepaired) = &case.ids_slow_without_ftfy {
            assert_ne!(&all.0, unrepaired, "{:?} is left as it is", case.prompt);
        }
        let is_cut = case.untruncated_length > file.model_max_length;
        let wanted = (case.ids.clone(), case.length, is_cut, case.ids[..case.length].to_vec());
        if all != wanted {
            println!("{:?}: {all:?}", case.prompt);
        }
        table.equal(item, &all, &wanted);
    }
    table.finish();
    Ok(())
}

#[test]
fn the_text_encoders_prompts_become_its_ids() -> anyhow::Result<()> {
    let prompts: Vec<String> = json("forward/text_encoder_prompts.json");
    let golden = peek("forward/text_encoder.safetensors");
    let ids = &golden["input_ids"];
    let tokenizer = Tokenizer::clip()?;
    assert_eq!(ids.dims(), [prompts.len(), 77]);
    let mut table = Table::new("the text encoder's prompts");
    for (prompt, wanted) in prompts.iter().zip(ids.to_vec2::<i64>()?) {
        let got: Vec<i64> = tokenizer.encode(prompt, true)?.ids.into_iter().map(i64::from).collect();
        table.equal(beginning(prompt), &got, &wanted);
    }
    table.finish();
    Ok(())
}
