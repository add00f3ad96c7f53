//! Puts the service together, listens, and ends it gently.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::Serve;
use crate::db::{Db, DbError};
use crate::guard::{Guard, GuardError};
use crate::hub_token::HubToken;
use crate::jobs::Jobs;
use crate::jobs::runner::ChildRunner;
use crate::jobs::supervisor::OpenError;
use crate::page::Page;
use crate::photos::Photos;
use crate::routes;
use crate::trainer::Trainers;

/// Open downloads get this long after the server was asked to end.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("no home folder is known; say where to keep photos and jobs with --data DIR")]
    NoDataDir,
    #[error("{path}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("another likeness uses {0}; end it, or give this one another --data folder")]
    InUse(PathBuf),
    #[error("port {} is in use; end what uses it, or take another with --listen {}:PORT", .0.port(), .0.ip())]
    PortInUse(SocketAddr),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Jobs(#[from] OpenError),
    #[error("serving ended")]
    Serve(#[source] std::io::Error),
}

/// What routes work with.
#[derive(Clone)]
pub struct AppState {
    pub photos: Photos,
    pub jobs: Jobs,
    pub trainers: Arc<Trainers>,
    pub page: Page,
    /// Turns true when the server ends: viewers are let go.
    pub ending: watch::Receiver<bool>,
}

/// Serves until SIGINT or SIGTERM. Trainers go on.
///
/// # Errors
/// When it cannot start, in words that say what to do.
pub async fn serve(config: Serve) -> Result<(), ServeError> {
    let guard = Arc::new(Guard::new(&config)?);
    let data = config.data_dir().ok_or(ServeError::NoDataDir)?;
    std::fs::create_dir_all(&data).map_err(io(&data))?;
    // The trainer's paths must hold wherever it runs.
    let data = std::fs::canonicalize(&data).map_err(io(&data))?;
    let _lock = lock(&data)?;
    let listener = listen(config.listen).await?;
    let address = listener.local_addr().map_err(ServeError::Serve)?;

    let db = Db::open(&data.join("likeness.sqlite"))?;
    let models = data.join("models");
    std::fs::create_dir_all(&models).map_err(io(&models))?;
    let photos = Photos::open(db.clone(), data.join("photos")).map_err(io(&data))?;
    let jobs = Jobs::open(db, data.join("jobs"))?;
    let hub_token = HubToken::at(data.join("hub-token"));
    let trainers = Arc::new(Trainers::new(config.trainer.clone(), models, hub_token));
    let (end, ending) = watch::channel(false);
    let state = AppState {
        photos,
        jobs: jobs.clone(),
        trainers: trainers.clone(),
        page: config.page.map_or(Page::Embedded, Page::Folder),
        ending,
    };
    let supervisor = tokio::spawn(jobs.supervise(Arc::new(ChildRunner(trainers.clone()))));
    // Found out now, so that the first visitor does not wait for it.
    tokio::spawn(async move {
        if let Err(e) = trainers.chosen().await {
            tracing::error!("{}", crate::error::chain(&e));
        }
    });

    say_where(address);
    if config.no_password && !address.ip().is_loopback() {
        tracing::warn!("no password: whoever reaches {address} may train and see every photo");
    }
    tracing::info!("photos, jobs and results are in {}", data.display());
    let listener = listener.tap_io(|stream| {
        // Steps are small messages; they must not wait for each other.
        if let Err(e) = stream.set_nodelay(true) {
            tracing::debug!("no TCP_NODELAY: {e}");
        }
    });
    let mut told = state.ending.clone();
    let told_to_end = async move {
        if told.wait_for(|end| *end).await.is_err() {
            tracing::debug!("the signal task is gone");
        }
    };
    let served = axum::serve(listener, routes::router(state, guard)).with_graceful_shutdown(told_to_end);
    let served = tokio::spawn(served.into_future());
    signal().await;
    tracing::info!("ending; a training that runs goes on and is found again at the next start");
    end.send_replace(true);
    supervisor.abort();
    match tokio::time::timeout(GRACE, served).await {
        Ok(Ok(done)) => done.map_err(ServeError::Serve),
        // A download that is still going on is cut; its range can be asked for later.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ServeError + '_ {
    move |source| ServeError::Io {
        path: path.to_owned(),
        source,
    }
}

/// One server per data folder.
fn lock(data: &Path) -> Result<File, ServeError> {
    let path = data.join("lock");
    let file = File::create(&path).map_err(io(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServeError::InUse(data.to_owned())),
        Err(errno) => Err(io(&path)(errno.into())),
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => ServeError::PortInUse(address),
        _ => ServeError::Listen { address, source },
    })
}

/// The one line on stdout: for people to click, and for programs that asked for any free port.
fn say_where(address: SocketAddr) {
    println!("listening on http://{address}");
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => signals.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = wait(SignalKind::interrupt()) => {}
        _ = wait(SignalKind::terminate()) => {}
    }
}
