//! Jobs: queue, look, stop, delete.

use app::api::{ApiProblem, MAX_PHOTOS, NewJob};
use app::event::Event;
use app::job::{JobDetail, JobSummary};
use app::recipe::Recipe;
use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;

use super::extract::{ApiJson, Job};
use crate::error::{ApiError, problem};
use crate::jobs::folder::FolderError;
use crate::jobs::no_job;
use crate::server::AppState;

pub async fn create(
    State(state): State<AppState>,
    ApiJson(new): ApiJson<NewJob>,
) -> Result<(StatusCode, Json<JobDetail>), ApiError> {
    let (recipe, photos, loads_in_webuis) = checked(&state, new).await?;
    let files = photos
        .iter()
        .map(|set| set.iter().map(|name| state.photos.path(name)).collect());
    let job = state.jobs.create(recipe, loads_in_webuis, files.collect()).await?;
    Ok((StatusCode::CREATED, Json(job)))
}

/// The recipe with its folders filled in, photos that are all here, and whether WebUIs will load what comes out.
async fn checked(state: &AppState, new: NewJob) -> Result<(Recipe, Vec<Vec<String>>, bool), ApiError> {
    let NewJob { mut recipe, photos } = new;
    for (i, concept) in recipe.concepts.iter_mut().enumerate() {
        concept.instance_data_dir = format!("photos/{i}");
        concept.class_data_dir = recipe.prior.is_some().then(|| format!("class-images/{i}"));
    }
    recipe.pretrained_model_name_or_path = state.trainers.resolve(&recipe.pretrained_model_name_or_path);
    let vae = recipe.pretrained_vae_name_or_path.take();
    recipe.pretrained_vae_name_or_path = vae.map(|vae| state.trainers.resolve(&vae));
    let recipe = recipe.check()?;
    let problems = photo_problems(state, &photos, recipe.concepts.len()).await?;
    if !problems.is_empty() {
        return Err(ApiError::Invalid(problems));
    }
    let field = "recipe.pretrained_model_name_or_path";
    let (reference, revision) = (&recipe.pretrained_model_name_or_path, recipe.revision.as_deref());
    let model = super::server::model(state, reference, revision, field).await?;
    let mut loads_in_webuis = model.loads_in_webuis;
    if let Some(reference) = &recipe.pretrained_vae_name_or_path {
        let field = "recipe.pretrained_vae_name_or_path";
        let vae = super::server::vae(state, reference, field).await?;
        if let Some(words) = vae.misfit(&model) {
            return Err(ApiError::Invalid(vec![problem("vae_channels", words, field.into())]));
        }
        loads_in_webuis &= vae.loads_in_webuis;
    }
    Ok((recipe, photos, loads_in_webuis))
}

async fn photo_problems(
    state: &AppState,
    photos: &[Vec<String>],
    concepts: usize,
) -> Result<Vec<ApiProblem>, ApiError> {
    let mut problems = Vec::new();
    if photos.len() != concepts {
        let message = format!("there are {concepts} subjects but photos for {}", photos.len());
        problems.push(problem("photos_per_subject", message, "photos".into()));
    }
    let total: usize = photos.iter().map(Vec::len).sum();
    if total > MAX_PHOTOS {
        let message = format!("{total} photos are too many; {MAX_PHOTOS} is the most");
        return Ok(vec![problem("too_many_photos", message, "photos".into())]);
    }
    for (concept, set) in photos.iter().enumerate() {
        if set.is_empty() {
            let message = format!("subject {} has no photos", concept + 1);
            problems.push(problem("no_photos", message, format!("photos.{concept}")));
        }
        for (i, name) in set.iter().enumerate() {
            let known = app::upload::is_sha256_name(name)
                && state.photos.find(name).await.map_err(ApiError::internal)?.is_some();
            if !known {
                let message = format!(
                    "photo {} of subject {} is not here; upload it first",
                    i + 1,
                    concept + 1
                );
                problems.push(problem("unknown_photo", message, format!("photos.{concept}.{i}")));
            }
        }
    }
    Ok(problems)
}

pub async fn list(State(state): State<AppState>) -> Json<Vec<JobSummary>> {
    Json(state.jobs.list())
}

pub async fn detail(State(state): State<AppState>, Job(id): Job) -> Result<Json<JobDetail>, ApiError> {
    Ok(Json(state.jobs.detail(&id)?))
}

pub async fn stop(State(state): State<AppState>, Job(id): Job) -> Result<Json<JobSummary>, ApiError> {
    Ok(Json(state.jobs.stop(id).await?))
}

pub async fn remove(State(state): State<AppState>, Job(id): Job) -> Result<StatusCode, ApiError> {
    state.jobs.delete(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn events(
    State(state): State<AppState>,
    Job(id): Job,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Event>>, ApiError> {
    let after = after(query.as_deref())?;
    if state.jobs.watch_log(&id).is_none() {
        return Err(no_job(&id));
    }
    let mut reader = state.jobs.folder(&id).reader();
    let work = move || -> Result<Vec<Event>, FolderError> {
        reader.skip_to(after)?;
        let mut all = Vec::new();
        loop {
            let mut some = reader.next_batch(usize::MAX)?;
            if some.is_empty() {
                return Ok(all);
            }
            all.append(&mut some);
        }
    };
    let events = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?;
    Ok(Json(events.map_err(ApiError::internal)?))
}

/// `?after=N`; everything without it.
fn after(query: Option<&str>) -> Result<u64, ApiError> {
    let bad = |message: String| ApiError::BadQuery {
        field: "after",
        message,
    };
    let mut after = 0;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("after", number)) => {
                after = number
                    .parse()
                    .map_err(|_| bad(format!("`after` is `{number}`; it must be a whole number")))?;
            }
            _ => return Err(bad(format!("`{pair}` is not known; only `after=N` is"))),
        }
    }
    Ok(after)
}
