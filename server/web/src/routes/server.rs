//! What trains here, and with which models.

use app::api::{HubToken, InspectModel, InspectVae, ModelInfo, ServerInfo, VaeInfo};
use app::recipe::{self, RecipeProblem};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::ApiJson;
use crate::error::{ApiError, chain, problem};
use crate::hub_token::HubTokenError;
use crate::server::AppState;
use crate::trainer::TrainerError;

pub async fn info(State(state): State<AppState>) -> Result<Json<ServerInfo>, ApiError> {
    let trainer = state.trainers.chosen().await.map_err(missing)?;
    Ok(Json(ServerInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        device: trainer.device.clone(),
        models: state.trainers.models().await,
        has_hub_token: state.trainers.hub_token.is_known(),
    }))
}

pub async fn inspect(
    State(state): State<AppState>,
    ApiJson(asked): ApiJson<InspectModel>,
) -> Result<Json<ModelInfo>, ApiError> {
    if let Some(got) = asked.revision.clone().filter(|name| !recipe::is_revision(name)) {
        let wrong = RecipeProblem::NoRevision { got };
        return Err(ApiError::Invalid(vec![problem(
            wrong.code(),
            wrong.to_string(),
            wrong.field(),
        )]));
    }
    let (reference, revision) = (&asked.pretrained_model_name_or_path, asked.revision.as_deref());
    Ok(Json(
        model(&state, reference, revision, "pretrained_model_name_or_path").await?,
    ))
}

/// What the model is, or which field names one that cannot be used.
pub async fn model(
    state: &AppState,
    reference: &str,
    revision: Option<&str>,
    field: &'static str,
) -> Result<ModelInfo, ApiError> {
    let info = state.trainers.inspect(reference, revision).await;
    info.map_err(|e| refused(e, "model", field))
}

pub async fn inspect_vae(
    State(state): State<AppState>,
    ApiJson(asked): ApiJson<InspectVae>,
) -> Result<Json<VaeInfo>, ApiError> {
    let field = "pretrained_vae_name_or_path";
    Ok(Json(vae(&state, &asked.pretrained_vae_name_or_path, field).await?))
}

/// What the VAE is, or that `field` names one that cannot be used.
pub async fn vae(state: &AppState, reference: &str, field: &'static str) -> Result<VaeInfo, ApiError> {
    let info = state.trainers.inspect_vae(reference).await;
    info.map_err(|e| refused(e, "VAE", field))
}

fn refused(error: TrainerError, what: &'static str, field: &'static str) -> ApiError {
    match error {
        TrainerError::Refused { said, hub } => ApiError::Model {
            what,
            field,
            code: hub.unwrap_or("model"),
            message: said,
        },
        e => missing(e),
    }
}

pub async fn set_hub_token(
    State(state): State<AppState>,
    ApiJson(HubToken { token }): ApiJson<HubToken>,
) -> Result<StatusCode, ApiError> {
    state.trainers.hub_token.set(&token).map_err(token_error)?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn forget_hub_token(State(state): State<AppState>) -> Result<StatusCode, ApiError> {
    state.trainers.hub_token.forget().map_err(token_error)?;
    Ok(StatusCode::NO_CONTENT)
}

fn token_error(error: HubTokenError) -> ApiError {
    match error {
        HubTokenError::Text => ApiError::HubToken(error.to_string()),
        HubTokenError::Io { .. } => ApiError::internal(error),
    }
}

fn missing(error: TrainerError) -> ApiError {
    ApiError::TrainerMissing(chain(&error))
}
