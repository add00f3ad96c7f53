//! The token for the Hub: entered, handed to trainers, forgotten, and never told to anyone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use app::api::{ErrorBody, ModelInfo, ServerInfo};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::Tested;
use super::world::{World, png};

const TOKEN: &str = "hf_secretForTests";

async fn inspect(world: &World) -> anyhow::Result<reqwest::Response> {
    let body = json!({ "pretrained_model_name_or_path": "wants/token" });
    Ok(world
        .request(Method::POST, "/api/models/inspect")
        .json(&body)
        .send()
        .await?)
}

async fn enter(world: &World, token: &str) -> anyhow::Result<reqwest::Response> {
    Ok(world
        .request(Method::PUT, "/api/hub/token")
        .json(&json!({ "token": token }))
        .send()
        .await?)
}

async fn is_known(world: &World) -> anyhow::Result<bool> {
    Ok(world
        .get("/api/server")
        .await?
        .json::<ServerInfo>()
        .await?
        .has_hub_token)
}

/// Files below `folder` that hold the token.
fn holders(folder: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            holders(&path, found)?;
        } else if std::fs::read(&path)?
            .windows(TOKEN.len())
            .any(|part| part == TOKEN.as_bytes())
        {
            found.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_token_for_the_hub_opens_models_and_is_told_to_nobody() -> Tested {
    let world = World::new()?;
    let refused = inspect(&world).await?;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let error = refused.json::<ErrorBody>().await?.error;
    assert_eq!(error.code, "hub_token");
    assert!(error.message.contains("the Hub wants a token"), "{}", error.message);

    let bad = enter(&world, "two words").await?;
    assert_eq!(bad.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(bad.json::<ErrorBody>().await?.error.field.as_deref(), Some("token"));
    assert!(!is_known(&world).await?);

    assert_eq!(
        enter(&world, &format!(" {TOKEN} ")).await?.status(),
        StatusCode::NO_CONTENT
    );
    assert!(is_known(&world).await?);
    let model: ModelInfo = inspect(&world).await?.error_for_status()?.json().await?;
    assert_eq!(model.pretrained_model_name_or_path, "wants/token");

    // A job with it, after a crash of the server.
    let world = world.restart_after_kill().await?;
    let mut job = world.recipe(2, "ms=1");
    job["recipe"]["pretrained_model_name_or_path"] = "wants/token".into();
    world.upload(&png(64, 0)).await?.error_for_status()?;
    let started = world.request(Method::POST, "/api/jobs").json(&job).send().await?;
    let started: app::job::JobDetail = started.error_for_status()?.json().await?;
    world.wait_until_over(&started).await?;
    let folder = world.data().join("jobs").join(started.summary.id.to_string());
    assert!(folder.join("had_token").is_file(), "the trainer was given the token");

    let mut found = Vec::new();
    holders(&world.data(), &mut found)?;
    assert_eq!(found, ["hub-token"]);
    let mode = std::fs::metadata(world.data().join("hub-token"))?.permissions().mode();
    assert_eq!(mode & 0o077, 0, "only its owner reads it");
    assert!(!world.server.log().contains(TOKEN));
    for path in ["/api/server", "/api/jobs"] {
        assert!(!world.get(path).await?.text().await?.contains(TOKEN), "{path}");
    }

    let forgotten = world.request(Method::DELETE, "/api/hub/token").send().await?;
    assert_eq!(forgotten.status(), StatusCode::NO_CONTENT);
    assert!(!is_known(&world).await?);
    assert_eq!(inspect(&world).await?.status(), StatusCode::UNPROCESSABLE_ENTITY);
    Ok(())
}
