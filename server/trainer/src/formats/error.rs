//! What is wrong with a model file: which file, which tensor.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{}: no such model; give `starter`, a diffusers folder, a .safetensors or .ckpt file, or a Hub id such as owner/name", .0.display())]
    NotFound(PathBuf),
    #[error("{}: cannot be read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: cannot be written", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: not the JSON that was expected", .path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{}: not a sound safetensors file", .path.display())]
    Safetensors {
        path: PathBuf,
        #[source]
        source: safetensors::SafeTensorError,
    },
    #[error("{}: not a sound torch file: {reason}", .path.display())]
    Torch { path: PathBuf, reason: String },
    #[error("{}: refused, because it asks for `{what}` on loading, which weights never need", .path.display())]
    Refused { path: PathBuf, what: String },
    #[error("{}: {what}, which Likeness does not train", .path.display())]
    Unsupported { path: PathBuf, what: String },
    #[error("{}: lacks the {which} (looked for {names})", .path.display())]
    Lacks {
        path: PathBuf,
        which: &'static str,
        names: String,
    },
    #[error("{}: tensor `{tensor}` is missing{}", .path.display(), more(.others))]
    Missing {
        path: PathBuf,
        tensor: String,
        /// How many others are.
        others: usize,
    },
    #[error("{}: tensor `{tensor}` belongs to no known part of the model{}", .path.display(), more(.others))]
    Unknown {
        path: PathBuf,
        tensor: String,
        others: usize,
    },
    #[error("{}: tensor `{tensor}` has shape {got:?}; the configuration asks for {expected:?}", .path.display())]
    Shape {
        path: PathBuf,
        tensor: String,
        got: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("{}: tensor `{tensor}` holds {got}, not floating-point numbers", .path.display())]
    DType { path: PathBuf, tensor: String, got: String },
    #[error("{}: the tokenizer knows {tokens} tokens, the text encoder only {rows}", .path.display())]
    Vocabulary { path: PathBuf, tokens: usize, rows: usize },
    #[error("{}: what was written does not read back: {reason}", .path.display())]
    ReadBack { path: PathBuf, reason: String },
    #[error("{}: `{tensor}` holds numbers that are not finite as {dtype}; nothing was written. Training went astray: a lower learning rate helps", .path.display())]
    NotFinite {
        path: PathBuf,
        tensor: String,
        dtype: &'static str,
    },
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    #[error("{}: {source}", .path.display())]
    Tokenizer {
        path: PathBuf,
        #[source]
        source: crate::tokenizer::TokenizerError,
    },
    #[error("{}: tensor `{tensor}`", .path.display())]
    Tensor {
        path: PathBuf,
        tensor: String,
        #[source]
        source: Box<candle_core::Error>,
    },
}

fn more(others: &usize) -> String {
    match others {
        0 => String::new(),
        n => format!(", and {n} more"),
    }
}
