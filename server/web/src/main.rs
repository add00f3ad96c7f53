//! `likeness`: serves the page, or hands over to the trainer that fits.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use web::config::{Command, Config};
use web::{server, trainer};

fn main() -> ExitCode {
    let config = Config::parse();
    let filter = EnvFilter::try_from_env("LIKENESS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    let serve = match config.command {
        None => config.serve,
        Some(Command::Serve(serve)) => serve,
        Some(command) => return hand_over(&command).await,
    };
    server::serve(serve).await?;
    Ok(())
}

async fn hand_over(command: &Command) -> anyhow::Result<()> {
    let named = std::env::var_os("LIKENESS_TRAINER").map(std::path::PathBuf::from);
    let (name, args) = command.for_trainer().context("serve is not the trainer's")?;
    let trainer = trainer::choose(named.as_deref()).await?;
    tracing::info!("{}: {}", trainer.path.display(), trainer.device.why);
    Err(trainer::become_trainer(&trainer, name, args).into())
}
