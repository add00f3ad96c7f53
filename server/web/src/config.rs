//! What was typed on the command line or set in the environment.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Teach Stable Diffusion a subject, on a page in your browser.
#[derive(Debug, Parser)]
#[command(name = "likeness", version, args_conflicts_with_subcommands = true)]
pub struct Config {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: Serve,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the page (also without a command)
    Serve(Serve),
    /// Train on folders of photos, without the page; takes the tutorial script's flags
    #[command(disable_help_flag = true)]
    Train(Rest),
    /// Draw images with a model
    #[command(disable_help_flag = true)]
    Sample(Rest),
    /// Turn a diffusers folder into a single-file checkpoint
    #[command(disable_help_flag = true)]
    Convert(Rest),
    /// Measure training or sampling
    #[command(disable_help_flag = true)]
    Bench(Rest),
    /// Say what this machine has and what would be used
    #[command(disable_help_flag = true)]
    Doctor(Rest),
    /// Say what a model file or folder is
    #[command(disable_help_flag = true)]
    Inspect(Rest),
    /// Check every operation on the GPU
    #[command(disable_help_flag = true)]
    Selftest(Rest),
    /// Make the starter model
    #[command(disable_help_flag = true)]
    Pretrain(Rest),
}

/// Everything after the command is the trainer's business.
#[derive(Debug, Args)]
pub struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub args: Vec<OsString>,
}

impl Command {
    /// The trainer's command and its arguments; `None` for `serve`.
    pub fn for_trainer(&self) -> Option<(&'static str, &[OsString])> {
        let (name, rest) = match self {
            Self::Serve(_) => return None,
            Self::Train(rest) => ("train", rest),
            Self::Sample(rest) => ("sample", rest),
            Self::Convert(rest) => ("convert", rest),
            Self::Bench(rest) => ("bench", rest),
            Self::Doctor(rest) => ("doctor", rest),
            Self::Inspect(rest) => ("inspect", rest),
            Self::Selftest(rest) => ("selftest", rest),
            Self::Pretrain(rest) => ("pretrain", rest),
        };
        Some((name, &rest.args))
    }
}

#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Address and port; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "LIKENESS_LISTEN", default_value = "127.0.0.1:7860")]
    pub listen: SocketAddr,
    /// Folder for photos, jobs and results [default: $XDG_DATA_HOME/likeness or ~/.local/share/likeness]
    #[arg(long, value_name = "DIR", env = "LIKENESS_DATA")]
    pub data: Option<PathBuf>,
    /// File whose first line is the password; needed to listen beyond this machine
    #[arg(long, value_name = "FILE", env = "LIKENESS_PASSWORD_FILE")]
    pub password_file: Option<PathBuf>,
    /// Listen beyond this machine without a password: whoever reaches the port may train and see every photo
    #[arg(long)]
    pub no_password: bool,
    /// The address people type when it is not the one listened on, such as https://train.example.org
    #[arg(long, value_name = "URL", env = "LIKENESS_PUBLIC_URL")]
    pub public_url: Option<String>,
    /// The trainer to use, instead of the one beside this executable that fits
    #[arg(long, value_name = "PATH", env = "LIKENESS_TRAINER")]
    pub trainer: Option<PathBuf>,
    /// Serve the page from this folder instead of the one built in, for those who work on it
    #[arg(long, value_name = "DIR", env = "LIKENESS_PAGE", hide = true)]
    pub page: Option<PathBuf>,
}

impl Serve {
    /// The folder given, or the user's data folder. `None` when there is no home either.
    pub fn data_dir(&self) -> Option<PathBuf> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        self.data
            .clone()
            .or_else(|| absolute("XDG_DATA_HOME").map(|dir| dir.join("likeness")))
            .or_else(|| absolute("HOME").map(|dir| dir.join(".local/share/likeness")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Config::command().debug_assert();
    }

    #[test]
    fn serving_is_the_default() {
        let plain = Config::try_parse_from(["likeness", "--listen", "127.0.0.1:0"]).expect("good");
        assert!(plain.command.is_none());
        assert_eq!(plain.serve.listen.port(), 0);
        let named = Config::try_parse_from(["likeness", "serve", "--listen", "127.0.0.1:1"]).expect("good");
        assert!(matches!(named.command, Some(Command::Serve(s)) if s.listen.port() == 1));
    }

    #[test]
    fn the_trainers_flags_pass_untouched() {
        let line = [
            "likeness",
            "train",
            "--max_train_steps=8",
            "--help",
            "-x",
            "--",
            "--listen",
        ];
        let config = Config::try_parse_from(line).expect("good");
        let command = config.command.expect("a command");
        let (name, args) = command.for_trainer().expect("for the trainer");
        assert_eq!(name, "train");
        assert_eq!(args, &line[2..]);
    }
}
