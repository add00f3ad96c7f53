//! CLIP's byte-pair tokenizer: a prompt becomes at most 77 ids.
//!
//! Configured as transformers converts `CLIPTokenizer`; `tidy` does before it what ftfy does there. The reference ids
//! are in `tests/golden/tokenizer_cases.json`.

mod tidy;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{self, Lowercase, NFC, Replace, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// Ids of a full prompt, first and last one included.
pub const MAX_TOKENS: usize = 77;
const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// What CLIP calls a word.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("vocab.json cannot be read")]
    Vocab(#[source] serde_json::Error),
    #[error("vocab.json lacks the token `{0}`")]
    Lacks(String),
    #[error("line {line} of merges.txt is not two tokens of vocab.json that make a third: `{text}`")]
    Merge { line: usize, text: String },
    #[error("the tokenizer cannot be built from its files: {0}")]
    Build(String),
    #[error("the prompt cannot be split into tokens: {0}")]
    Encode(String),
}

/// The files of a diffusers folder's `tokenizer/`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerFiles {
    pub vocab_json: Cow<'static, str>,
    pub merges_txt: Cow<'static, str>,
    /// `tokenizer_config.json`, kept as it was.
    pub config: Value,
    /// `special_tokens_map.json`; what it says goes before the configuration.
    pub special_tokens_map: Option<Value>,
}

impl TokenizerFiles {
    /// openai/clip-vit-large-patch14's, which Stable Diffusion 1.x uses; 2.x differs in `pad_token` alone.
    pub fn clip() -> Self {
        Self::clip_padded_with(END)
    }

    /// The same vocabulary with another padding token: Stable Diffusion 2.x pads with `!`.
    pub fn clip_padded_with(pad_token: &str) -> Self {
        Self {
            vocab_json: Cow::Borrowed(include_str!("../tokenizer/vocab.json")),
            merges_txt: Cow::Borrowed(include_str!("../tokenizer/merges.txt")),
            config: serde_json::json!({
                "add_prefix_space": false,
                "bos_token": BEGIN,
                "do_lower_case": true,
                "eos_token": END,
                "errors": "replace",
                "model_max_length": MAX_TOKENS,
                "pad_token": pad_token,
                "tokenizer_class": "CLIPTokenizer",
                "unk_token": END,
            }),
            special_tokens_map: None,
        }
    }

    /// The token that fills a prompt up.
    pub fn pad_token(&self) -> &str {
        fn of(file: &Value) -> Option<&str> {
            let token = file.get("pad_token")?;
            // Written plain or as an AddedToken.
            token.as_str().or_else(|| token.get("content")?.as_str())
        }
        let from_map = self.special_tokens_map.as_ref().and_then(of);
        from_map.or_else(|| of(&self.config)).unwrap_or(END)
    }
}

/// A prompt as the text encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds {
    /// Begin, tokens, end, and padding to 77 if asked for.
    pub ids: Vec<u32>,
    /// Ids before padding, begin and end included.
    pub length: usize,
    /// The words that found no room, to be told to whoever wrote them.
    pub cut: Option<String>,
}

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    begin: u32,
    end: u32,
    pad: u32,
    /// One more than the largest id, for comparison with the text encoder's embedding.
    vocab_size: usize,
}

impl Tokenizer {
    /// Stable Diffusion 1.x's.
    ///
    /// # Errors
    /// None but those of a broken build.
    pub fn clip() -> Result<Self, TokenizerError> {
        Self::from_files(&TokenizerFiles::clip())
    }

    /// # Errors
    /// Files that are not a byte-pair vocabulary with CLIP's special tokens.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self, TokenizerError> {
        let vocab: BTreeMap<String, u32> = serde_json::from_str(&files.vocab_json).map_err(TokenizerError::Vocab)?;
        let merges = parse_merges(&files.merges_txt, &vocab)?;
        let id = |token: &str| {
            let found = vocab.get(token).copied();
            found.ok_or_else(|| TokenizerError::Lacks(token.into()))
        };
        let (begin, end, pad) = (id(BEGIN)?, id(END)?, id(files.pad_token())?);
        let vocab_size = vocab.values().max().map_or(0, |&largest| largest as usize + 1);
        let inner = build(vocab.into_iter().collect(), merges).map_err(|e| TokenizerError::Build(e.to_string()))?;
        Ok(Self {
            inner,
            begin,
            end,
            pad,
            vocab_size,
        })
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids of a prompt, of which 75 tokens are kept; `pad` fills up to 77.
    ///
    /// # Errors
    /// None known for any text.
    pub fn encode(&self, prompt: &str, pad: bool) -> Result<TokenIds, TokenizerError> {
        let tidy = tidy::tidy(prompt);
        let encoding = self
            .inner
            .encode(tidy.as_str(), false)
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let tokens = encoding.get_ids();
        let kept = tokens.len().min(MAX_TOKENS - 2);
        let cut = encoding.get_offsets().get(kept).map(|&(start, _)| {
            // Counted in words, because tidying moves letters.
            let before = tidy[..start].split_whitespace().count();
            let mid_word = !tidy[..start].is_empty() && !tidy[..start].ends_with(char::is_whitespace);
            let words: Vec<&str> = prompt.split_whitespace().collect();
            words[(before - usize::from(mid_word)).min(words.len())..].join(" ")
        });
        let mut ids = Vec::with_capacity(MAX_TOKENS);
        ids.push(self.begin);
        ids.extend_from_slice(&tokens[..kept]);
        ids.push(self.end);
        let length = ids.len();
        if pad {
            ids.resize(MAX_TOKENS, self.pad);
        }
        Ok(TokenIds { ids, length, cut })
    }
}

fn parse_merges(text: &str, vocab: &BTreeMap<String, u32>) -> Result<Merges, TokenizerError> {
    let mut merges = Merges::new();
    for (line, text) in text.lines().enumerate() {
        if text.starts_with("#version") || text.is_empty() {
            continue;
        }
        let pair = text.split_once(' ').filter(|(a, b)| {
            // The byte-pair builder panics on a pair longer than any token.
            vocab.contains_key(*a) && vocab.contains_key(*b) && vocab.contains_key(&[*a, *b].concat())
        });
        let Some((a, b)) = pair else {
            let line = line + 1;
            return Err(TokenizerError::Merge {
                line,
                text: text.into(),
            });
        };
        merges.push((a.into(), b.into()));
    }
    Ok(merges)
}

/// As transformers' `CLIPConverter`; begin and end are added by `encode`.
fn build(vocab: Vocab, merges: Merges) -> tokenizers::Result<tokenizers::Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .end_of_word_suffix("</w>".into())
        .unk_token(END.into())
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(vec![
        NFC.into(),
        Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?.into(),
        Lowercase.into(),
    ])))?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
    let special = [BEGIN, END].map(|token| AddedToken::from(token, true).normalized(true));
    tokenizer.add_special_tokens(special)?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_find_no_room_are_named_whole_and_as_typed() {
        let tokenizer = Tokenizer::clip().expect("embedded");
        let prompt = format!("{} Photograph of ZWX Dog", "dog ".repeat(74));
        let ids = tokenizer.encode(&prompt, true).expect("encodes");
        assert_eq!((ids.ids.len(), ids.length), (77, 77));
        assert_eq!(ids.cut.as_deref(), Some("of ZWX Dog"));
        assert_eq!(tokenizer.encode("photo of zwx dog", true).expect("encodes").cut, None);
        let one_word = "x".repeat(2000);
        assert_eq!(tokenizer.encode(&one_word, false).expect("encodes").cut, Some(one_word));
    }

    #[test]
    fn padding_is_the_models_own_or_absent() {
        let sd2 = Tokenizer::from_files(&TokenizerFiles::clip_padded_with("!")).expect("builds");
        let ids = sd2.encode("dog", true).expect("encodes");
        assert_eq!(ids.ids[..4], [49406, 1929, 49407, 0]);
        assert_eq!(sd2.encode("dog", false).expect("encodes").ids, [49406, 1929, 49407]);
        let mut files = TokenizerFiles::clip();
        files.special_tokens_map = Some(serde_json::json!({"pad_token": {"content": "!"}}));
        assert_eq!(files.pad_token(), "!");
    }

    #[test]
    fn broken_files_are_refused() {
        let mut files = TokenizerFiles::clip();
        files.merges_txt = "#version: 0.2\ni nonsense".into();
        assert!(matches!(
            Tokenizer::from_files(&files),
            Err(TokenizerError::Merge { line: 2, .. })
        ));
        files.vocab_json = "{}".into();
        files.merges_txt = "".into();
        assert!(matches!(Tokenizer::from_files(&files), Err(TokenizerError::Lacks(_))));
    }
}
