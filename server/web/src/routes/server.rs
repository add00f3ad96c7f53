//! What trains here, and with which models.

use app::api::{InspectModel, ModelInfo, ServerInfo};
use axum::Json;
use axum::extract::State;

use super::extract::ApiJson;
use crate::error::{ApiError, chain};
use crate::server::AppState;
use crate::trainer::TrainerError;

pub async fn info(State(state): State<AppState>) -> Result<Json<ServerInfo>, ApiError> {
    let trainer = state.trainers.chosen().await.map_err(missing)?;
    Ok(Json(ServerInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        device: trainer.device.clone(),
        models: state.trainers.models().await,
    }))
}

pub async fn inspect(
    State(state): State<AppState>,
    ApiJson(asked): ApiJson<InspectModel>,
) -> Result<Json<ModelInfo>, ApiError> {
    let reference = &asked.pretrained_model_name_or_path;
    Ok(Json(model(&state, reference, "pretrained_model_name_or_path").await?))
}

/// What the model is, or which field names one that cannot be used.
pub async fn model(state: &AppState, reference: &str, field: &'static str) -> Result<ModelInfo, ApiError> {
    state.trainers.inspect(reference).await.map_err(|e| match e {
        TrainerError::Refused { said } => ApiError::Model { field, message: said },
        e => missing(e),
    })
}

fn missing(error: TrainerError) -> ApiError {
    ApiError::TrainerMissing(chain(&error))
}
