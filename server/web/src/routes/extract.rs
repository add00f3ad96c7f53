//! Parts of requests, refused in our words.

use app::job::JobId;
use app::upload::is_sha256_name;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::MAX_JSON_BYTES;
use crate::error::ApiError;

/// A JSON body; what does not fit is named by its field or line.
pub struct ApiJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(body_error)?;
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

fn body_error(rejection: BytesRejection) -> ApiError {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge {
            limit_bytes: MAX_JSON_BYTES,
        },
        _ => ApiError::BrokenUpload,
    }
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
