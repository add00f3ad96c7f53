//! A headless Chromium that is driven as a person would: one profile, one window.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use thirtyfour::prelude::*;
use thirtyfour::{ChromiumLikeCapabilities, LoggingPrefsLogLevel};

/// A screen as people have it, in CSS pixels.
#[derive(Clone, Copy)]
pub enum Screen {
    Desktop,
    Phone,
}

/// The driver and its browser: both end with their value.
pub struct Browser {
    driver: Child,
    port: u16,
    pub page: WebDriver,
}

impl Browser {
    /// # Errors
    /// When the programs are not there (`CHROME` and `CHROMEDRIVER` name them) or do not start.
    pub async fn start(screen: Screen, downloads: &Path) -> anyhow::Result<Self> {
        let program = std::env::var("CHROMEDRIVER").unwrap_or_else(|_| "chromedriver".into());
        let mut driver = Command::new(&program)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{program} does not start; `scripts/setup.sh browser` installs it"))?;
        let port = port_of(&mut driver)?;
        let page = match WebDriver::new(format!("http://127.0.0.1:{port}"), options(screen, downloads)?).await {
            Ok(page) => page,
            Err(error) => {
                driver.kill()?;
                driver.wait()?;
                return Err(error).context("the browser does not start");
            }
        };
        Ok(Self { driver, port, page })
    }

    /// The first element, waited for.
    pub async fn see(&self, css: &str) -> anyhow::Result<WebElement> {
        let query = self.page.query(By::Css(css)).wait(WAIT, POLL);
        query.first().await.with_context(|| format!("{css} does not appear"))
    }

    pub async fn click(&self, css: &str) -> anyhow::Result<()> {
        let element = self.see(css).await?;
        element.wait_until().wait(WAIT, POLL).clickable().await?;
        element.scroll_into_view().await?;
        Ok(element.click().await?)
    }

    /// Replaces what a field holds.
    pub async fn fill(&self, css: &str, text: &str) -> anyhow::Result<()> {
        let field = self.see(css).await?;
        field.scroll_into_view().await?;
        field.send_keys(Key::Control + "a").await?;
        Ok(field.send_keys(text).await?)
    }

    pub async fn text(&self, css: &str) -> anyhow::Result<String> {
        Ok(self.see(css).await?.text().await?)
    }

    pub async fn count(&self, css: &str) -> anyhow::Result<usize> {
        Ok(self.page.find_all(By::Css(css)).await?.len())
    }

    /// What a script returns.
    pub async fn ask(&self, script: &str) -> anyhow::Result<Value> {
        Ok(self.page.execute(script, Vec::new()).await?.json().clone())
    }

    /// Until the script returns true.
    pub async fn wait_until(&self, what: &str, script: &str, at_most: Duration) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            // A page that is being loaded has no answer yet.
            let answer = self.ask(script).await.unwrap_or(Value::Null);
            if answer == Value::Bool(true) {
                return Ok(());
            }
            if since.elapsed() > at_most {
                let page = self.text("body").await.unwrap_or_default();
                bail!("{what}: not within {at_most:?}. The page says:\n{page}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A picture of the page, into the folder `LIKENESS_SCREENSHOTS` when it is named.
    pub async fn shoot(&self, name: &str) -> anyhow::Result<()> {
        if let Some(folder) = std::env::var_os("LIKENESS_SCREENSHOTS") {
            std::fs::create_dir_all(&folder)?;
            let path = Path::new(&folder).join(format!("{name}.png"));
            self.page.screenshot(&path).await?;
        }
        Ok(())
    }

    /// Ends it in order, so that its profile folder goes too.
    pub async fn end(self) -> anyhow::Result<()> {
        Ok(self.page.clone().quit().await?)
    }
}

const WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

fn port_of(driver: &mut Child) -> anyhow::Result<u16> {
    let mut lines = BufReader::new(driver.stdout.take().context("piped")?).lines();
    let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse().ok()
    });
    // Someone must read on, or the driver stops at a full pipe.
    std::thread::Builder::new()
        .name("chromedriver-log".into())
        .spawn(move || lines.for_each(drop))?;
    port.context("chromedriver does not say its port")
}

fn options(screen: Screen, downloads: &Path) -> anyhow::Result<thirtyfour::ChromeCapabilities> {
    let mut caps = DesiredCapabilities::chrome();
    if let Ok(chrome) = std::env::var("CHROME") {
        caps.set_binary(&chrome)?;
    }
    for arg in [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ] {
        caps.add_arg(arg)?;
    }
    match screen {
        Screen::Desktop => caps.add_arg("--window-size=1440,1043")?,
        Screen::Phone => caps.add_experimental_option(
            "mobileEmulation",
            json!({ "deviceMetrics": { "width": 390, "height": 844, "pixelRatio": 2.0, "touch": true } }),
        )?,
    }
    caps.add_experimental_option(
        "prefs",
        json!({ "download.default_directory": downloads, "download.prompt_for_download": false }),
    )?;
    caps.set_browser_log_level(LoggingPrefsLogLevel::All)?;
    Ok(caps)
}

impl Drop for Browser {
    /// A driver that is killed leaves its browser behind: it is asked to end, and killed only when it does not answer.
    fn drop(&mut self) {
        let asked = TcpStream::connect(("127.0.0.1", self.port))
            .and_then(|mut driver| driver.write_all(b"GET /shutdown HTTP/1.1\r\nhost: localhost\r\n\r\n"));
        for _ in 0..50 {
            if asked.is_err() || matches!(self.driver.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(POLL);
        }
        if self.driver.kill().is_ok() && self.driver.wait().is_err() {
            eprintln!("chromedriver was not there to be waited for");
        }
    }
}
