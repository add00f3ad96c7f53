//! A VAE in the place of the base model's own: told about before it is taken, refused before a job is made.

use app::api::{ApiProblem, ErrorBody, VaeInfo};
use app::job::JobDetail;
use reqwest::{Method, Response, StatusCode};
use serde_json::json;

use super::Tested;
use super::world::{World, png};

async fn inspect(world: &World, vae: &str) -> anyhow::Result<Response> {
    let body = json!({ "pretrained_vae_name_or_path": vae });
    let request = world.request(Method::POST, "/api/vaes/inspect").json(&body);
    Ok(request.send().await?)
}

async fn start_with(world: &World, vae: &str) -> anyhow::Result<Response> {
    let mut job = world.recipe(2, "ms=1");
    job["recipe"]["pretrained_vae_name_or_path"] = vae.into();
    Ok(world.request(Method::POST, "/api/jobs").json(&job).send().await?)
}

async fn refused(answer: Response) -> anyhow::Result<ApiProblem> {
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    Ok(answer.json::<ErrorBody>().await?.error)
}

#[tokio::test]
async fn a_vae_is_described_and_one_that_cannot_be_used_makes_no_job() -> Tested {
    let world = World::new()?;
    world.upload(&png(64, 0)).await?.error_for_status()?;
    let vae: VaeInfo = inspect(&world, "owner/vae").await?.error_for_status()?.json().await?;
    assert_eq!(vae.hub.and_then(|facts| facts.license).as_deref(), Some("mit"));

    let problem = refused(inspect(&world, "no/vae").await?).await?;
    assert_eq!(problem.field.as_deref(), Some("pretrained_vae_name_or_path"));
    assert!(
        problem.message.contains("the VAE cannot be used: no/vae"),
        "{}",
        problem.message
    );

    let field = Some("recipe.pretrained_vae_name_or_path");
    assert_eq!(
        refused(start_with(&world, "no/vae").await?).await?.field.as_deref(),
        field
    );
    let problem = refused(start_with(&world, "wide/vae").await?).await?;
    assert_eq!(problem.field.as_deref(), field);
    assert!(
        problem
            .message
            .contains("its latents have 16 channels, and Starter takes 4"),
        "{}",
        problem.message
    );
    assert_eq!(world.jobs().await?.len(), 0);

    let job: JobDetail = start_with(&world, "owner/vae")
        .await?
        .error_for_status()?
        .json()
        .await?;
    assert_eq!(job.recipe.pretrained_vae_name_or_path.as_deref(), Some("owner/vae"));
    world.wait_until_over(&job).await?;
    Ok(())
}

#[tokio::test]
async fn a_job_remembers_whether_webuis_load_what_it_made() -> Tested {
    let world = World::new()?;
    let job = world.start_job(2, "ms=1").await?;
    assert_eq!(
        job.loads_in_webuis,
        Some(false),
        "as the pretended trainer says of the starter"
    );
    world.wait_until_over(&job).await?;
    let world = world.restart_after_kill().await?;
    assert_eq!(world.job(&job).await?.loads_in_webuis, Some(false));
    Ok(())
}
