//! What a person does on the page, step by step.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use app::job::JobDetail;
use tests::browser::{Browser, Screen};
use tests::server::Server;

/// Longest that any one thing may take, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Real photographs of one subject, and its class noun.
pub struct Subject {
    pub photos: Vec<PathBuf>,
    pub noun: &'static str,
}

impl Subject {
    pub fn of(folder: &Path, noun: &'static str) -> anyhow::Result<Self> {
        let mut photos: Vec<PathBuf> = std::fs::read_dir(folder.canonicalize()?)?
            .map(|entry| Ok(entry?.path()))
            .collect::<anyhow::Result<_>>()?;
        photos.sort();
        Ok(Self { photos, noun })
    }

    /// The set that ships with the repository.
    pub fn cat() -> anyhow::Result<Self> {
        Self::of(&tests::repository().join("tests/fixtures/cat"), "cat")
    }

    /// A set that lies beside the repository on some machines; else the one inside.
    pub fn dog() -> anyhow::Result<Self> {
        let beside = tests::repository().join("../shared/photos/dog6");
        if beside.is_dir() {
            Self::of(&beside, "dog")
        } else {
            Self::cat()
        }
    }
}

/// A visit to a fresh server.
pub struct Visit {
    pub folder: tempfile::TempDir,
    pub server: Server,
    pub browser: Browser,
}

impl Visit {
    pub async fn new(screen: Screen) -> anyhow::Result<Self> {
        Self::with(screen, &[]).await
    }

    /// With variables in the server's environment.
    pub async fn with(screen: Screen, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::to(screen, None, variables).await
    }

    /// To a server whose trainer only pretends, and says what its recipe asks for (`api/fake_trainer.sh`).
    pub async fn pretended(screen: Screen) -> anyhow::Result<Self> {
        let trainer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/fake_trainer.sh");
        Self::to(screen, Some(&trainer), &[]).await
    }

    async fn to(screen: Screen, trainer: Option<&Path>, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("downloads"))?;
        let server = Server::start_with("127.0.0.1:0", &folder.path().join("data"), trainer, &[], variables)?;
        let browser = Browser::start(screen, &folder.path().join("downloads")).await?;
        browser.page.goto(server.url.as_str()).await?;
        browser.see("input.pick").await?;
        Ok(Self {
            folder,
            server,
            browser,
        })
    }

    pub async fn add(&self, photos: &[PathBuf]) -> anyhow::Result<()> {
        let paths: Vec<_> = photos.iter().map(|path| path.to_string_lossy()).collect();
        self.browser
            .see("input.pick")
            .await?
            .send_keys(paths.join("\n"))
            .await?;
        Ok(())
    }

    pub async fn wait_for_uploads(&self, count: usize) -> anyhow::Result<()> {
        let all = format!("return document.querySelectorAll('.upload-done').length === {count}");
        self.browser.wait_until("all photos are saved", &all, PATIENCE).await
    }

    pub async fn go(&self, place: &str) -> anyhow::Result<()> {
        self.browser.ask(&format!("location.hash = '{place}'")).await?;
        Ok(())
    }

    pub async fn set(&self, setting: &str, value: &str) -> anyhow::Result<()> {
        self.browser.fill(&format!("[id='{setting}']"), value).await
    }

    /// Opens the settings, fills them in, and starts.
    pub async fn start(&self, settings: &[(&str, &str)]) -> anyhow::Result<String> {
        self.go("#train").await?;
        self.browser.click(".all-settings .disclosure").await?;
        for (setting, value) in settings {
            self.set(setting, value).await?;
        }
        self.browser.shoot("train-settings").await?;
        self.browser.click(".start .button").await?;
        let on_its_run = "return location.hash.startsWith('#run/')";
        self.browser
            .wait_until("the run is shown", on_its_run, PATIENCE)
            .await?;
        let url = self.browser.page.current_url().await?;
        let hash = url.fragment().context("a place")?;
        Ok(hash.trim_start_matches("run/").to_owned())
    }

    pub async fn detail(&self, job: &str) -> anyhow::Result<JobDetail> {
        let answer = reqwest::get(format!("{}/api/jobs/{job}", self.server.url)).await?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    pub async fn wait_for_step(&self, step: u32) -> anyhow::Result<()> {
        let there = format!(
            "return [...document.querySelectorAll('.meters dt')].some(dt => dt.innerText === 'Step' && parseInt(dt.nextElementSibling.innerText) >= {step})"
        );
        let what = format!("step {step}");
        self.browser.wait_until(&what, &there, PATIENCE).await
    }

    pub async fn wait_for_results(&self) -> anyhow::Result<()> {
        let done = "return !!document.querySelector('.watch-head a.button-strong[href^=\"#results\"]')";
        self.browser.wait_until("training is done", done, PATIENCE).await?;
        self.browser.click(".watch-head a.button-strong").await?;
        self.browser.see(".download a").await?;
        Ok(())
    }

    /// Clicks the download of a file with this ending, and gives the file when it is whole.
    pub async fn download(&self, ending: &str) -> anyhow::Result<PathBuf> {
        let link = format!(".download a[download$='{ending}']");
        let name = self
            .browser
            .see(&link)
            .await?
            .attr("download")
            .await?
            .context("a file name")?;
        self.browser.click(&link).await?;
        let path = self.folder.path().join("downloads").join(name);
        for _ in 0..600 {
            // Chromium gives a file its name when all of it is there.
            if path.is_file() {
                return Ok(path);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("{} does not arrive", path.display())
    }

    /// No error in the page's console since the last call. The network's are none: asking whether a photo is there
    /// already is answered with 404.
    pub async fn expect_no_errors(&self) -> anyhow::Result<()> {
        let log = self.browser.page.browser_log().await?;
        let is_error = |entry: &&thirtyfour::BrowserLogEntry| {
            entry.level == "SEVERE" && entry.source.as_deref() != Some("network")
        };
        let severe: Vec<_> = log.iter().filter(is_error).collect();
        anyhow::ensure!(severe.is_empty(), "the page's console: {severe:?}");
        Ok(())
    }
}
