//! A running `likeness` on a free port of this machine.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};

/// Ends with its value, as by a crash (SIGKILL): state must survive that in every test.
pub struct Server {
    child: Child,
    /// Such as `http://127.0.0.1:41003`, without a slash at the end.
    pub url: String,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts the server and waits until it listens. Without `trainer` it takes the one built beside it.
    pub fn start(data: &Path, trainer: Option<&Path>, more: &[&str]) -> anyhow::Result<Self> {
        Self::start_at("127.0.0.1:0", data, trainer, more)
    }

    /// At an address that is already known, as after a crash.
    pub fn start_at(listen: &str, data: &Path, trainer: Option<&Path>, more: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(listen, data, trainer, more, &[])
    }

    /// With variables in its environment.
    pub fn start_with(
        listen: &str,
        data: &Path,
        trainer: Option<&Path>,
        more: &[&str],
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(crate::executable("likeness"));
        command.args(["--listen", listen, "--data"]).arg(data).args(more);
        // Nobody's own token is used by tests.
        command.env_remove("HF_TOKEN").envs(variables.iter().copied());
        if let Some(trainer) = trainer {
            command.arg("--trainer").arg(trainer);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = Arc::new(Mutex::new(String::new()));
        let (errors, kept) = (child.stderr.take().context("piped")?, log.clone());
        std::thread::Builder::new().name("server-log".into()).spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                let mut log = kept.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        })?;
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().context("piped")?);
        out.read_line(&mut line)?;
        let Some(url) = line.trim().strip_prefix("listening on ") else {
            out.read_to_string(&mut line)?;
            child.wait()?;
            bail!(
                "the server does not start: {line}{}",
                log.lock().unwrap_or_else(PoisonError::into_inner)
            );
        };
        Ok(Self {
            child,
            url: url.to_owned(),
            log,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `kill -9`.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.crash()
    }

    /// `kill -9`, for one that is held on to until another takes its place.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, as Ctrl-C does, and waits.
    pub fn end(mut self) -> anyhow::Result<std::process::ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.child.kill().is_ok() && self.child.wait().is_err() {
            eprintln!("the server was not there to be waited for");
        }
    }
}
