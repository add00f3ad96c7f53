//! Parts of requests, refused in our words.

use std::time::Duration;

use app::job::JobId;
use app::upload::is_sha256_name;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::MAX_JSON_BYTES;
use crate::error::ApiError;

/// A body that takes longer than this is sent again.
const BODY_LIMIT: Duration = Duration::from_secs(120);
const FAR_TOO_LONG_BYTES: usize = 64 << 20;

/// A JSON body; what does not fit is named by its field or line.
pub struct ApiJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = read_body(request.into_body(), MAX_JSON_BYTES).await?;
        let mut json = serde_json::Deserializer::from_slice(&body);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
            let path = e.path().to_string();
            ApiError::BadJson {
                // A body that is no JSON at all has no field.
                field: (path != "." && !e.inner().is_syntax() && !e.inner().is_eof()).then_some(path),
                message: e.inner().to_string(),
            }
        })?;
        json.end().map_err(|e| ApiError::BadJson {
            field: None,
            message: e.to_string(),
        })?;
        Ok(Self(value))
    }
}

/// Reads a body to its end, and refuses it then when it is longer than `limit_bytes`: a browser that is cut off while
/// it sends never sees the answer. Only what is far too long is not read on.
pub async fn read_body(body: Body, limit_bytes: usize) -> Result<Vec<u8>, ApiError> {
    let work = async {
        let mut stream = body.into_data_stream();
        let (mut kept, mut seen) = (Vec::new(), 0);
        while seen <= FAR_TOO_LONG_BYTES
            && let Some(part) = stream.next().await
        {
            let part = part.map_err(|_| ApiError::BrokenUpload)?;
            seen += part.len();
            if seen <= limit_bytes {
                kept.extend_from_slice(&part);
            }
        }
        if seen > limit_bytes {
            return Err(ApiError::TooLarge { limit_bytes });
        }
        Ok(kept)
    };
    tokio::time::timeout(BODY_LIMIT, work)
        .await
        .map_err(|_| ApiError::BrokenUpload)?
}

/// `{id}` of the address. What cannot be a job's name is no job.
pub struct Job(pub JobId);

impl<S: Send + Sync> FromRequestParts<S> for Job {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = first_part(parts, state, "id").await;
        let id = JobId::parse(&id).map_err(|_| ApiError::NotFound("such job".into()))?;
        Ok(Self(id))
    }
}

/// `{sha256}` of the address.
pub struct PhotoName(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PhotoName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name = first_part(parts, state, "sha256").await;
        if !is_sha256_name(&name) {
            return Err(ApiError::BadQuery {
                field: "sha256",
                message: "a photo's name is the sha256 of its PNG: 64 lower-case hex digits".into(),
            });
        }
        Ok(Self(name))
    }
}

async fn first_part<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> String {
    let all = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, state).await;
    all.ok().and_then(|Path(mut all)| all.remove(name)).unwrap_or_default()
}
