//! A server with a data folder of its own, and what tests do with it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use app::api::{CropSquare, PhotoOrigin, PreviewHeader, StoredPhoto, ToPage, ToServer, decode_preview};
use app::event::Event;
use app::job::{JobDetail, JobId, JobSummary};
use futures_util::{SinkExt, StreamExt};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};
use tests::server::Server;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Nothing here takes this long, however busy the machine.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub struct Photo {
    pub bytes: Vec<u8>,
    pub sha256: String,
}

impl Photo {
    pub fn of(bytes: Vec<u8>) -> Self {
        let sha256 = hex::encode(Sha256::digest(&bytes));
        Self { bytes, sha256 }
    }

    pub fn path(&self) -> String {
        format!("/api/photos/{}", self.sha256)
    }

    /// The same pixels with a chunk after the header (33 bytes).
    pub fn with_chunk(&self, kind: &[u8; 4]) -> Self {
        Self::of([&self.bytes[..33], &[0; 4], kind, &[0; 4], &self.bytes[33..]].concat())
    }
}

/// A photo that differs from every other by its shade.
pub fn png(side_px: u32, shade: u8) -> Photo {
    let image = image::RgbImage::from_pixel(side_px, side_px, image::Rgb([shade, 100, 200]));
    let mut file = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut file, image::ImageFormat::Png)
        .expect("encodes in memory");
    Photo::of(file.into_inner())
}

pub struct World {
    pub server: Server,
    client: Client,
    folder: tempfile::TempDir,
    trainer: PathBuf,
}

impl World {
    pub fn new() -> anyhow::Result<Self> {
        Self::with(&[])
    }

    pub fn with(args: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let trainer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/fake_trainer.sh");
        Ok(Self {
            server: Server::start(&folder.path().join("data"), Some(&trainer), args)?,
            client: Client::new(),
            folder,
            trainer,
        })
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub async fn restart_after_kill(self) -> anyhow::Result<Self> {
        self.restart_after(Server::kill).await
    }

    pub async fn restart_after(self, end: impl FnOnce(Server) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let Self {
            server,
            client,
            folder,
            trainer,
        } = self;
        end(server)?;
        let server = Server::start(&folder.path().join("data"), Some(&trainer), &[])?;
        Ok(Self {
            server,
            client,
            folder,
            trainer,
        })
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.server.url))
            .timeout(LIMIT)
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Response> {
        Ok(self.request(Method::GET, path).send().await?)
    }

    pub async fn upload(&self, photo: &Photo) -> anyhow::Result<Response> {
        let origin = PhotoOrigin {
            sha256: "0".repeat(64),
            name: "IMG_1.jpg".into(),
            width: 640,
            height: 480,
            crop: CropSquare {
                x: 0.0,
                y: 0.0,
                side: 480.0,
            },
        };
        let request = self.request(Method::PUT, &photo.path());
        let request = request.header("x-photo-origin", serde_json::to_string(&origin)?);
        Ok(request.body(photo.bytes.clone()).send().await?)
    }

    pub async fn photo_status(&self, photo: &Photo) -> anyhow::Result<StatusCode> {
        Ok(self.request(Method::HEAD, &photo.path()).send().await?.status())
    }

    /// One dog, one photo; `behaviour` tells the pretended trainer what to do.
    pub fn recipe(&self, steps: u32, behaviour: &str) -> serde_json::Value {
        json!({
            "recipe": {
                "concepts": [{ "instance_prompt": "photo of zwx dog", "class_prompt": "photo of a dog" }],
                "max_train_steps": steps,
                "samples": { "save_sample_negative_prompt": behaviour },
            },
            "photos": [[png(64, 0).sha256]],
        })
    }

    pub async fn start_job(&self, steps: u32, behaviour: &str) -> anyhow::Result<JobDetail> {
        let photo = self.upload(&png(64, 0)).await?.error_for_status()?;
        let _: StoredPhoto = photo.json().await?;
        let answer = self
            .request(Method::POST, "/api/jobs")
            .json(&self.recipe(steps, behaviour))
            .send()
            .await?;
        anyhow::ensure!(
            answer.status() == StatusCode::CREATED,
            "{}: {}",
            answer.status(),
            answer.text().await?
        );
        Ok(answer.json().await?)
    }

    pub async fn jobs(&self) -> anyhow::Result<Vec<JobSummary>> {
        Ok(self.get("/api/jobs").await?.json().await?)
    }

    pub async fn job(&self, job: &JobDetail) -> anyhow::Result<JobDetail> {
        let answer = self.get(&format!("/api/jobs/{}", job.summary.id)).await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    pub async fn events(&self, job: &JobDetail, after: u64) -> anyhow::Result<Vec<Event>> {
        let path = format!("/api/jobs/{}/events?after={after}", job.summary.id);
        Ok(self.get(&path).await?.error_for_status()?.json().await?)
    }

    pub async fn stop(&self, job: &JobDetail) -> anyhow::Result<JobSummary> {
        let path = format!("/api/jobs/{}/stop", job.summary.id);
        Ok(self
            .request(Method::POST, &path)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?)
    }

    /// Waits on the live list of jobs, as a page does.
    async fn wait(&self, job: &JobDetail, enough: impl Fn(&JobSummary) -> bool) -> anyhow::Result<JobDetail> {
        let mut viewer = Viewer::connect(&self.server.url).await?;
        loop {
            let words = viewer.next_words().await.with_context(|| self.server.log())?;
            let ToPage::Jobs { jobs } = words else { continue };
            let Some(now) = jobs.iter().find(|j| j.id == job.summary.id) else {
                bail!("the job is gone")
            };
            if enough(now) {
                return self.job(job).await;
            }
            if now.state.is_over() {
                bail!("the job is over: {now:?}");
            }
        }
    }

    pub async fn wait_until_over(&self, job: &JobDetail) -> anyhow::Result<JobDetail> {
        self.wait(job, |j| j.state.is_over()).await
    }

    pub async fn wait_for_step(&self, job: &JobDetail, step: u32) -> anyhow::Result<JobDetail> {
        self.wait(job, |j| j.step >= step).await
    }
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// A page's WebSocket.
pub struct Viewer {
    socket: Socket,
    pub seqs: Vec<u64>,
    pub previews: Vec<(PreviewHeader, Vec<u8>)>,
    pub previews_came_after_their_events: bool,
    over: bool,
}

impl Viewer {
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        Self::connect_as(url, url).await
    }

    pub async fn connect_as(url: &str, origin: &str) -> anyhow::Result<Self> {
        let mut request = format!("{}/api/ws", url.replacen("http", "ws", 1)).into_client_request()?;
        request.headers_mut().insert("origin", origin.parse()?);
        let (socket, _) = tokio_tungstenite::connect_async(request).await?;
        Ok(Self {
            socket,
            seqs: Vec::new(),
            previews: Vec::new(),
            previews_came_after_their_events: true,
            over: false,
        })
    }

    pub async fn watch(&mut self, job: &JobId, after: u64) -> anyhow::Result<()> {
        let job = job.clone();
        let words = serde_json::to_string(&ToServer::Watch { job, after })?;
        Ok(self.socket.send(Message::text(words)).await?)
    }

    /// The next text frame. Binary ones on the way are kept.
    pub async fn next_words(&mut self) -> anyhow::Result<ToPage> {
        loop {
            if let Some(words) = self.next_frame().await? {
                return Ok(words);
            }
        }
    }

    async fn next_frame(&mut self) -> anyhow::Result<Option<ToPage>> {
        let frame = tokio::time::timeout(LIMIT, self.socket.next())
            .await
            .context("nothing comes")?;
        match frame.context("the server hung up")?? {
            Message::Text(text) => {
                let words: ToPage = serde_json::from_str(&text)?;
                if let ToPage::Events { events, .. } = &words {
                    self.seqs.extend(events.iter().map(|e| e.seq));
                    self.over |= events.iter().any(|e| e.kind.is_last());
                }
                Ok(Some(words))
            }
            Message::Binary(frame) => {
                let (header, image) = decode_preview(&frame).context("not a preview")?;
                self.previews_came_after_their_events &= self.seqs.contains(&header.seq);
                self.previews.push((header, image.to_vec()));
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    pub async fn until_seq(&mut self, seq: u64) -> anyhow::Result<()> {
        while self.seqs.last().is_none_or(|last| *last < seq) {
            self.next_frame().await?;
        }
        Ok(())
    }

    pub async fn until_over(&mut self) -> anyhow::Result<()> {
        while !self.over {
            self.next_frame().await?;
        }
        Ok(())
    }

    pub async fn until_previews(&mut self, count: usize) -> anyhow::Result<()> {
        while self.previews.len() < count {
            self.next_frame().await?;
        }
        Ok(())
    }

    pub async fn until_gone(&mut self) -> anyhow::Result<()> {
        while !matches!(self.next_words().await?, ToPage::Gone { .. }) {}
        Ok(())
    }
}
