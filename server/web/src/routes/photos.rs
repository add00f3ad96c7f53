//! Photos: is it here, put it here, show it.

use app::api::{MAX_PHOTO_BYTES, ORIGIN_HEADER, PhotoOrigin};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};

use super::extract::{PhotoName, read_body};
use crate::download::{FOREVER, FileAnswer, send};
use crate::error::ApiError;
use crate::server::AppState;

pub async fn find(State(state): State<AppState>, PhotoName(name): PhotoName) -> Result<Response, ApiError> {
    match state.photos.find(&name).await.map_err(ApiError::internal)? {
        Some(_) => Ok(StatusCode::OK.into_response()),
        None => Err(ApiError::NotFound("such photo".into())),
    }
}

pub async fn get(
    State(state): State<AppState>,
    PhotoName(name): PhotoName,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let answer = FileAnswer {
        content_type: "image/png",
        etag: name.clone(),
        cache_control: FOREVER,
        save_as: None,
    };
    send(&state.photos.path(&name), answer, &method, &headers).await
}

pub async fn put(
    State(state): State<AppState>,
    PhotoName(name): PhotoName,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if let Some(known) = state.photos.find(&name).await.map_err(ApiError::internal)? {
        // Not kept, only taken off the wire: a browser that is cut off while it sends never sees the answer.
        if let Err(e @ ApiError::BrokenUpload) = read_body(body, 0).await {
            return Err(e);
        }
        return Ok(Json(known).into_response());
    }
    let origin = origin(&headers)?;
    let file = read_body(body, MAX_PHOTO_BYTES).await?;
    let photo = state.photos.add(name, file, origin).await?;
    Ok((StatusCode::CREATED, Json(photo)).into_response())
}

fn origin(headers: &HeaderMap) -> Result<PhotoOrigin, ApiError> {
    let bad = |message: String| ApiError::Origin(message);
    let header = headers.get(ORIGIN_HEADER).ok_or_else(|| bad("it is missing".into()))?;
    let text = header.to_str().map_err(|_| bad("it is not ASCII".into()))?;
    let origin: PhotoOrigin = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    if !app::upload::is_sha256_name(&origin.sha256) {
        return Err(bad("`sha256` is not 64 lower-case hex digits".into()));
    }
    Ok(origin)
}
