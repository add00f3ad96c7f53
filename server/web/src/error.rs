//! Every error answer of the API, in one place: status, code, words and field.

use app::api::{ApiProblem, ErrorBody};
use app::recipe::RecipeProblems;
use app::upload::UploadProblem;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("there is no {0}")]
    NotFound(String),
    #[error("this address does not take that method")]
    MethodNotAllowed,
    #[error("the request body is not the JSON that is expected: {message}")]
    BadJson { field: Option<String>, message: String },
    #[error("{message}")]
    BadQuery { field: &'static str, message: String },
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("the upload broke off; send it again")]
    BrokenUpload,
    #[error("the body's sha256 is {got}, the address says {expected}; send it again")]
    HashMismatch { expected: String, got: String },
    #[error("header `x-photo-origin`: {0}")]
    Origin(String),
    #[error(transparent)]
    Photo(#[from] UploadProblem),
    #[error("{0}")]
    Recipe(#[from] RecipeProblems),
    /// Several problems of one request that are not the recipe's own. Never empty.
    #[error("{}", .0.iter().map(|p| p.message.as_str()).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<ApiProblem>),
    #[error("job {0} is running; stop it first")]
    JobRuns(String),
    #[error("job {0} is over already")]
    JobIsOver(String),
    #[error("the {what} cannot be used: {message}")]
    Model {
        /// `model` or `VAE`.
        what: &'static str,
        field: &'static str,
        /// `model`, or one of `hub_codes`.
        code: &'static str,
        message: String,
    },
    #[error("{0}")]
    HubToken(String),
    #[error("{0}")]
    TrainerMissing(String),
    #[error("no part of the file lies in the range asked for")]
    Range { length_bytes: u64 },
    #[error("this server does not answer to the name `{0}`; start it with --public-url to allow it")]
    WrongHost(String),
    #[error("the request comes from another site ({0}); start the server with --public-url if it is yours")]
    CrossSite(String),
    #[error("a password is needed")]
    Password,
    #[error("something went wrong on the server; its log says what")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ApiError {
    /// Hides the cause from the outside; it is logged once, when the answer is made.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadJson { .. } | Self::BadQuery { .. } | Self::BrokenUpload | Self::Origin(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HashMismatch { .. }
            | Self::Photo(_)
            | Self::Recipe(_)
            | Self::Invalid(_)
            | Self::Model { .. }
            | Self::HubToken(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::JobRuns(_) | Self::JobIsOver(_) => StatusCode::CONFLICT,
            Self::TrainerMissing(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Range { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::WrongHost(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::CrossSite(_) => StatusCode::FORBIDDEN,
            Self::Password => StatusCode::UNAUTHORIZED,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BadJson { .. } => "bad_json",
            Self::BadQuery { .. } => "bad_query",
            Self::TooLarge { .. } => "too_large",
            Self::BrokenUpload => "broken_upload",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::Origin(_) => "bad_photo_origin",
            Self::Photo(problem) => problem.code(),
            Self::Recipe(problems) => problems.0.first().map_or("recipe", |p| p.code()),
            Self::Invalid(_) => "invalid",
            Self::JobRuns(_) => "job_runs",
            Self::JobIsOver(_) => "job_is_over",
            Self::Model { code, .. } => code,
            Self::HubToken(_) => "no_token",
            Self::TrainerMissing(_) => "trainer_missing",
            Self::Range { .. } => "range",
            Self::WrongHost(_) => "wrong_host",
            Self::CrossSite(_) => "cross_site",
            Self::Password => "password",
            Self::Internal(_) => "internal",
        }
    }

    /// Which part of the request is wrong.
    fn field(&self) -> Option<String> {
        match self {
            Self::BadJson { field, .. } => field.clone(),
            Self::BadQuery { field, .. } | Self::Model { field, .. } => Some((*field).to_owned()),
            Self::Origin(_) => Some(app::api::ORIGIN_HEADER.to_owned()),
            Self::HashMismatch { .. } => Some("sha256".to_owned()),
            Self::HubToken(_) => Some("token".to_owned()),
            _ => None,
        }
    }

    fn problem(&self) -> ApiProblem {
        let problems = match self {
            Self::Recipe(RecipeProblems(problems)) => problems
                .iter()
                .map(|p| problem(p.code(), p.to_string(), format!("recipe.{}", p.field())))
                .collect(),
            Self::Invalid(problems) => problems.clone(),
            _ => Vec::new(),
        };
        match problems.first() {
            Some(first) => ApiProblem {
                problems: problems.clone(),
                ..first.clone()
            },
            None => ApiProblem {
                code: self.code().into(),
                message: self.to_string(),
                field: self.field(),
                problems,
            },
        }
    }
}

/// One problem of one field.
pub fn problem(code: &str, message: String, field: String) -> ApiProblem {
    ApiProblem {
        code: code.into(),
        message,
        field: Some(field),
        problems: Vec::new(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!("a request failed: {}", chain(&self));
        }
        let body = Json(ErrorBody { error: self.problem() });
        let mut answer = (status, [(header::CACHE_CONTROL, "no-store")], body).into_response();
        let headers = answer.headers_mut();
        match self {
            Self::Password => {
                let how = HeaderValue::from_static("Basic realm=\"Likeness\", charset=\"UTF-8\"");
                headers.insert(header::WWW_AUTHENTICATE, how);
            }
            Self::Range { length_bytes } => {
                if let Ok(value) = HeaderValue::from_str(&format!("bytes */{length_bytes}")) {
                    headers.insert(header::CONTENT_RANGE, value);
                }
            }
            _ => {}
        }
        answer
    }
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipe_problems_all_arrive_with_the_requests_field_names() {
        let draft = app::recipe::RecipeDraft {
            max_train_steps: 0,
            ..Default::default()
        };
        let error = ApiError::from(draft.check().expect_err("bad"));
        assert_eq!(error.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let body = error.problem();
        assert_eq!(body.field.as_deref(), Some("recipe.concepts"));
        let fields: Vec<_> = body.problems.iter().filter_map(|p| p.field.as_deref()).collect();
        assert_eq!(fields, ["recipe.concepts", "recipe.max_train_steps"]);
    }

    #[test]
    fn the_cause_of_an_internal_error_stays_inside() {
        let error = ApiError::internal("password is 1234");
        assert!(!error.problem().message.contains("1234"));
        assert!(chain(&error).contains("1234"));
    }
}
