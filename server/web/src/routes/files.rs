//! Pictures and checkpoints out of job folders.

use std::path::{Component, Path, PathBuf};

use app::event::ExportFile;
use app::job::JobId;
use app::run::Run;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::Response;

use super::extract::Job;
use crate::download::{FOREVER, FileAnswer, send, weak_identity};
use crate::error::ApiError;
use crate::jobs::folder::{FolderError, JobFolder};
use crate::jobs::{names, no_job};
use crate::server::AppState;

/// Only what events name: pictures below these folders.
const FOLDERS: [&str; 3] = ["samples", "class-images", "photos"];

pub async fn file(
    State(state): State<AppState>,
    Job(id): Job,
    UrlPath((_, path)): UrlPath<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if state.jobs.watch_log(&id).is_none() {
        return Err(no_job(&id));
    }
    let folder = state.jobs.folder(&id);
    let missing = || ApiError::NotFound("such file".into());
    let (path, content_type) = picture(folder.path(), &path).ok_or_else(missing)?;
    let meta = tokio::fs::metadata(&path).await.map_err(|_| missing())?;
    let answer = FileAnswer {
        content_type,
        etag: weak_identity(&meta),
        cache_control: FOREVER,
        save_as: None,
    };
    send(&path, answer, &method, &headers).await
}

/// The file behind a path of an event, and its type. `None` for every path that is not plainly inside.
pub fn picture(job: &Path, path: &str) -> Option<(PathBuf, &'static str)> {
    let relative = Path::new(path);
    let plain = |part: Component<'_>| match part {
        Component::Normal(name) => name
            .to_str()
            .is_some_and(|n| !n.starts_with('.') && !n.contains(['\\', '\0'])),
        _ => false,
    };
    let inside = FOLDERS.iter().any(|folder| relative.starts_with(folder));
    if !inside || path.contains("//") || !relative.components().all(plain) {
        return None;
    }
    let content_type = match relative.extension()?.to_str()? {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        _ => return None,
    };
    // A link must not lead out either.
    let (job, path) = (job.canonicalize().ok()?, job.join(relative).canonicalize().ok()?);
    path.starts_with(job).then_some((path, content_type))
}

pub async fn export(
    State(state): State<AppState>,
    Job(id): Job,
    UrlPath((_, name)): UrlPath<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = state.jobs.detail(&id)?;
    let folder = state.jobs.folder(&id);
    let (step, file) = exported(folder.clone(), &id, name).await?;
    let save_as = names::download(&job.recipe, step, &file);
    let answer = FileAnswer {
        content_type: "application/octet-stream",
        etag: file.sha256.clone(),
        cache_control: "private, no-cache",
        save_as: Some(&save_as),
    };
    let path = folder.path().join("export").join(&file.name);
    let mut response = send(&path, answer, &method, &headers).await?;
    let sha256 = HeaderValue::from_str(&file.sha256).map_err(ApiError::internal)?;
    response.headers_mut().insert("x-sha256", sha256);
    Ok(response)
}

/// Looks the name up in the log: what the trainer did not announce is not served.
async fn exported(folder: JobFolder, id: &JobId, name: String) -> Result<(u32, ExportFile), ApiError> {
    let work = move || -> Result<Option<(u32, ExportFile)>, FolderError> {
        let mut reader = folder.reader();
        let mut run = Run::default();
        loop {
            let events = reader.next_batch(usize::MAX)?;
            if events.is_empty() {
                break;
            }
            // A gap would be logged by whoever follows the job; what was announced counts here.
            for event in &events {
                run.last_seq = event.seq.saturating_sub(1);
                if run.apply(event).is_err() {
                    break;
                }
            }
        }
        let file = run.exported.iter().find(|f| f.name == name).cloned();
        let plain = |f: &ExportFile| Path::new(&f.name).components().count() == 1 && !f.name.starts_with('.');
        Ok(file
            .filter(plain)
            .map(|f| (run.exported_step.unwrap_or_else(|| run.step()), f)))
    };
    let found = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?;
    let missing = || ApiError::NotFound(format!("such download of job {id}"));
    found.map_err(ApiError::internal)?.ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pictures_of_the_job_are_served() {
        let dir = tempfile::tempdir().expect("folder");
        let job = dir.path().join("job");
        std::fs::create_dir_all(job.join("samples/0")).expect("made");
        for file in [
            "samples/0/0.png",
            "samples/0/0.txt",
            "samples/0/.0.png",
            "secret.png",
            "../outside.png",
        ] {
            std::fs::write(job.join(file), "x").expect("written");
        }
        std::os::unix::fs::symlink(dir.path(), job.join("samples/out")).expect("linked");
        assert_eq!(picture(&job, "samples/0/0.png").map(|p| p.1), Some("image/png"));
        for bad in [
            "samples/0/0.txt",
            "samples/0/.0.png",
            "samples/../secret.png",
            "secret.png",
            "../outside.png",
            "samples/../../outside.png",
            "samples/out/outside.png",
            "/etc/passwd",
            "samples//0/0.png",
            "samples/0/1.png",
            "samples",
            "",
        ] {
            assert!(picture(&job, bad).is_none(), "{bad}");
        }
    }
}
