//! `--config FILE`: the flags of an earlier run, as its `args.json` has them.

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, Command, FromArgMatches};
use serde_json::{Map, Value};

use super::args::TrainArgs;
use crate::cli::WrongUse;

const NAMES: [&str; 2] = ["--config", "--args"];
/// What `concepts_list` stands for.
const CONCEPT_FLAGS: [&str; 4] = ["instance_prompt", "instance_data_dir", "class_prompt", "class_data_dir"];

/// Puts the flags of the file of `--config FILE` (or `--args FILE`) of a `train` command before all others, so that what
/// is typed beside it wins.
///
/// # Errors
/// A file that is not an `args.json`.
pub fn expand(args: Vec<OsString>) -> Result<Vec<OsString>, WrongUse> {
    if args.get(1).is_none_or(|command| command != "train") {
        return Ok(args);
    }
    let (mut out, mut from_file) = (Vec::new(), Vec::new());
    let mut rest = args.into_iter();
    out.extend(rest.by_ref().take(2));
    let mut typed = Vec::new();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy().into_owned();
        let inline = text.split_once('=').filter(|(name, _)| NAMES.contains(name));
        let path = match inline {
            Some((_, path)) => OsString::from(path),
            None if NAMES.contains(&text.as_str()) => rest
                .next()
                .ok_or_else(|| WrongUse(format!("{text} needs a file, such as out/400/args.json")))?,
            None => {
                typed.push(arg);
                continue;
            }
        };
        let settings = settings(Path::new(&path))?;
        from_file.extend(flags(&settings).map_err(|what| wrong(Path::new(&path), &what))?);
        let mut config = OsString::from("--config=");
        config.push(path);
        typed.push(config);
    }
    out.extend(from_file);
    out.extend(typed);
    Ok(out)
}

fn wrong(path: &Path, what: &dyn std::fmt::Display) -> WrongUse {
    WrongUse(format!("--config: {}: {what}", path.display()))
}

fn settings(path: &Path) -> Result<Map<String, Value>, WrongUse> {
    let text = std::fs::read_to_string(path).map_err(|e| wrong(path, &e))?;
    serde_json::from_str(&text).map_err(|e| wrong(path, &e))
}

/// `args` without what a `--config` file says: an `args.json` has a value for every flag, most of them nobody's wish.
///
/// # Errors
/// As `expand`, when the file has changed since.
pub fn typed(args: &TrainArgs) -> anyhow::Result<TrainArgs> {
    let Some(path) = &args.config else {
        return Ok(args.clone());
    };
    let from_file = settings(path)?;
    let mut own: Map<String, Value> = serde_json::from_value(serde_json::to_value(args)?)?;
    own.retain(|name, value| name == "pretrained_model_name_or_path" || from_file.get(name) != Some(value));
    // A list beside which those of a single subject would be left out.
    own.remove("concepts_list");
    let words = [OsString::from("train")]
        .into_iter()
        .chain(flags(&own).map_err(WrongUse)?);
    let matches = TrainArgs::augment_args(Command::new("train")).try_get_matches_from(words)?;
    Ok(TrainArgs {
        concepts_list: args.concepts_list.clone(),
        hub_token: args.hub_token.clone(),
        validation_images: args.validation_images.clone(),
        ..TrainArgs::from_arg_matches(&matches)?
    })
}

/// The flags that an `args.json` stands for.
///
/// # Errors
/// What is no flag of train, in words.
pub fn flags(settings: &Map<String, Value>) -> Result<Vec<OsString>, String> {
    let known = TrainArgs::augment_args(Command::new("train"));
    let has_concepts = settings.get("concepts_list").is_some_and(|list| !list.is_null());
    let mut flags = Vec::new();
    for (name, value) in settings {
        let arg = known.get_arguments().find(|arg| arg.get_long() == Some(name));
        let arg = arg.ok_or_else(|| format!("`{name}` is no flag of train"))?;
        let takes_value = arg.get_action().takes_values();
        let flag = match value {
            Value::Null => continue,
            Value::Bool(false) if !takes_value => continue,
            Value::Bool(true) if !takes_value => format!("--{name}"),
            _ if has_concepts && CONCEPT_FLAGS.contains(&name.as_str()) => continue,
            _ if !takes_value => return Err(format!("`{name}` is true or false")),
            Value::String(text) => format!("--{name}={text}"),
            other => format!("--{name}={other}"),
        };
        flags.push(flag.into());
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(json: &str, before: &[&str], after: &[&str]) -> Result<Vec<String>, WrongUse> {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("args.json");
        std::fs::write(&path, json).expect("writes");
        let mut line: Vec<OsString> = before.iter().map(Into::into).collect();
        line.extend(["--config".into(), path.into()]);
        line.extend(after.iter().map(OsString::from));
        let out = expand(line)?.into_iter().map(|arg| arg.into_string().expect("text"));
        Ok(out.filter(|arg| !arg.starts_with("--config=")).collect())
    }

    #[test]
    fn the_files_flags_come_before_typed_ones() {
        let json = r#"{"learning_rate": 2e-6, "hflip": true, "center_crop": false, "seed": null,
            "instance_prompt": "old", "train_text_encoder": false, "concepts_list": [{"instance_prompt": "p"}]}"#;
        let line = expanded(json, &["x", "train", "--seed=1"], &["--output_dir", "b"]).expect("good");
        let wanted = [
            "x",
            "train",
            "--learning_rate=2e-6",
            "--hflip",
            "--train_text_encoder=false",
            r#"--concepts_list=[{"instance_prompt":"p"}]"#,
            "--seed=1",
            "--output_dir",
            "b",
        ];
        assert_eq!(line, wanted);
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let words = |json| expanded(json, &["x", "train"], &[]).expect_err("bad").to_string();
        let unknown = words(r#"{"learning_rat": 1}"#);
        assert!(
            unknown.contains("args.json") && unknown.contains("learning_rat"),
            "{unknown}"
        );
        assert!(words("[]").contains("args.json"));
        assert!(words(r#"{"hflip": 3}"#).contains("hflip"));
        assert!(expand(vec!["x".into(), "train".into(), "--config".into()]).is_err());
    }

    #[test]
    fn other_commands_are_left_alone() {
        let line: Vec<OsString> = ["x", "sample", "--config", "nowhere"].map(Into::into).into();
        assert_eq!(expand(line.clone()).expect("untouched"), line);
    }
}
