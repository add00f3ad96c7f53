//! The service from outside: the real executable, real HTTP and WebSockets, and a trainer that pretends.

mod door;
mod hub;
mod vae;
mod world;

use app::api::{ApiProblem, ErrorBody, ServerInfo, StoredPhoto, ToPage};
use app::job::JobState;
use reqwest::{Method, StatusCode};
use serde_json::json;
use world::{Viewer, World, png};

type Tested = anyhow::Result<()>;

#[tokio::test]
async fn the_server_says_what_trains_and_which_models_there_are() -> Tested {
    let world = World::new()?;
    let info: ServerInfo = world.get("/api/server").await?.json().await?;
    assert_eq!(info.device.name, "CPU, pretended");
    assert_eq!(info.models[0].pretrained_model_name_or_path, "starter");
    Ok(())
}

#[tokio::test]
async fn an_upload_is_stored_once_and_can_be_seen() -> Tested {
    let world = World::new()?;
    let photo = png(64, 1);
    assert_eq!(world.photo_status(&photo).await?, StatusCode::NOT_FOUND);
    let first = world.upload(&photo).await?;
    assert_eq!(first.status(), StatusCode::CREATED);
    let stored: StoredPhoto = first.json().await?;
    assert_eq!((stored.side, stored.bytes), (64, photo.bytes.len() as u64));
    assert_eq!(stored.origin.name, "IMG_1.jpg");
    let again = world.upload(&photo).await?;
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(again.json::<StoredPhoto>().await?, stored);
    assert_eq!(world.photo_status(&photo).await?, StatusCode::OK);
    let seen = world.get(&photo.path()).await?;
    assert_eq!(seen.headers()["content-type"], "image/png");
    assert_eq!(seen.headers()["etag"], format!("\"{}\"", photo.sha256));
    assert_eq!(seen.bytes().await?, photo.bytes);
    Ok(())
}

#[tokio::test]
async fn a_bad_upload_is_refused_by_name_and_leaves_nothing() -> Tested {
    let world = World::new()?;
    let good = png(64, 2);
    let problem = async |photo: &world::Photo| -> anyhow::Result<(StatusCode, String)> {
        let answer = world.upload(photo).await?;
        Ok((answer.status(), answer.json::<ErrorBody>().await?.error.code))
    };
    let unprocessable = |code: &str| (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned());

    let mut wrong = good.clone();
    wrong.sha256 = "0".repeat(64);
    assert_eq!(problem(&wrong).await?, unprocessable("hash_mismatch"));
    assert_eq!(world.photo_status(&wrong).await?, StatusCode::NOT_FOUND);
    assert_eq!(problem(&good.with_chunk(b"eXIf")).await?, unprocessable("metadata"));
    assert_eq!(problem(&png(60, 1)).await?, unprocessable("side"));
    assert_eq!(
        problem(&world::Photo::of(b"GIF89a".to_vec())).await?,
        unprocessable("not_png")
    );
    let huge = world::Photo::of(vec![0; (8 << 20) + 1]);
    assert_eq!(
        problem(&huge).await?,
        (StatusCode::PAYLOAD_TOO_LARGE, "too_large".into())
    );
    wrong.sha256 = "..%2F..%2Fetc%2Fpasswd".into();
    assert_eq!(problem(&wrong).await?.0, StatusCode::BAD_REQUEST);

    let unsigned = world
        .request(Method::PUT, &good.path())
        .body(good.bytes.clone())
        .send()
        .await?;
    assert_eq!(unsigned.status(), StatusCode::BAD_REQUEST);
    let error = unsigned.json::<ErrorBody>().await?.error;
    assert_eq!(error.field.as_deref(), Some("x-photo-origin"));
    let left = std::fs::read_dir(world.data().join("photos"))?.count();
    assert_eq!(left, 0, "a refused upload leaves a file");
    Ok(())
}

#[tokio::test]
async fn every_error_is_json_that_names_the_field() -> Tested {
    let world = World::new()?;
    let error = async |method: Method, path: &str, body: String| -> anyhow::Result<(u16, ApiProblem)> {
        let answer = world.request(method, path).body(body).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json::<ErrorBody>().await?.error))
    };
    let (status, problem) = error(Method::GET, "/api/nothing", String::new()).await?;
    assert_eq!((status, problem.code.as_str()), (404, "not_found"));
    let (status, problem) = error(Method::DELETE, "/api/server", String::new()).await?;
    assert_eq!((status, problem.code.as_str()), (405, "method_not_allowed"));
    let (status, problem) = error(Method::POST, "/api/jobs", "{".into()).await?;
    assert_eq!((status, problem.code.as_str(), problem.field), (400, "bad_json", None));
    let typo = json!({ "recipe": { "concepts": [{ "instance_promt": "" }] }, "photos": [] });
    let (status, problem) = error(Method::POST, "/api/jobs", typo.to_string()).await?;
    assert_eq!(
        (status, problem.field.as_deref()),
        (400, Some("recipe.concepts[0].instance_promt"))
    );

    let bad = json!({ "recipe": { "learning_rate": 2, "max_train_steps": 0 }, "photos": [] });
    let (status, problem) = error(Method::POST, "/api/jobs", bad.to_string()).await?;
    let fields: Vec<_> = problem.problems.iter().filter_map(|p| p.field.as_deref()).collect();
    assert_eq!(status, 422);
    assert_eq!(
        fields,
        ["recipe.concepts", "recipe.max_train_steps", "recipe.learning_rate"]
    );

    let unknown = world.recipe(3, "").to_string();
    let (status, problem) = error(Method::POST, "/api/jobs", unknown).await?;
    assert_eq!((status, problem.field.as_deref()), (422, Some("photos.0.0")));

    world.upload(&png(64, 0)).await?;
    let mut model = world.recipe(3, "");
    model["recipe"]["pretrained_model_name_or_path"] = "/no/such.safetensors".into();
    let (status, problem) = error(Method::POST, "/api/jobs", model.to_string()).await?;
    assert_eq!(
        (status, problem.field.as_deref()),
        (422, Some("recipe.pretrained_model_name_or_path"))
    );
    assert!(
        problem.message.contains("there is no such model"),
        "{}",
        problem.message
    );

    let long = format!("{{\"recipe\":\"{}\"}}", "x".repeat(2 << 20));
    let (status, problem) = error(Method::POST, "/api/jobs", long).await?;
    assert_eq!((status, problem.code.as_str()), (413, "too_large"));
    let (status, problem) = error(Method::GET, "/api/jobs/dog-0/events?after=x", String::new()).await?;
    assert_eq!((status, problem.field.as_deref()), (400, Some("after")));
    Ok(())
}

#[tokio::test]
async fn a_job_runs_and_its_results_can_be_fetched_in_ranges() -> Tested {
    let world = World::new()?;
    let job = world.start_job(6, "").await?;
    assert!(job.summary.id.as_str().starts_with("dog-"), "{}", job.summary.id);
    let done = world.wait_until_over(&job).await?;
    assert_eq!(done.summary.state, JobState::Done);
    assert_eq!((done.summary.step, done.summary.steps), (6, 6));

    let path = format!("/api/jobs/{}/export/model.safetensors", job.summary.id);
    let whole = world.get(&path).await?;
    let sha256 = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
    assert_eq!(whole.headers()["content-length"], "10");
    assert_eq!(whole.headers()["x-sha256"], sha256);
    let etag = whole.headers()["etag"].clone();
    assert_eq!(etag, format!("\"{sha256}\""));
    let disposition = whole.headers()["content-disposition"].to_str()?.to_owned();
    assert_eq!(disposition, "attachment; filename=\"zwx-dog-6.safetensors\"");
    assert_eq!(whole.bytes().await?, "0123456789");

    let part = world
        .request(Method::GET, &path)
        .header("range", "bytes=3-")
        .header("if-range", etag)
        .send()
        .await?;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["content-range"], "bytes 3-9/10");
    assert_eq!(part.bytes().await?, "3456789");
    let stale = world
        .request(Method::GET, &path)
        .header("range", "bytes=3-")
        .header("if-range", "\"x\"")
        .send()
        .await?;
    assert_eq!((stale.status(), stale.bytes().await?.len()), (StatusCode::OK, 10));
    let outside = world
        .request(Method::GET, &path)
        .header("range", "bytes=10-")
        .send()
        .await?;
    assert_eq!(outside.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(outside.headers()["content-range"], "bytes */10");

    let id = &job.summary.id;
    assert_eq!(
        world
            .get(&format!("/api/jobs/{id}/files/samples/5/0.png"))
            .await?
            .bytes()
            .await?,
        "full 5"
    );
    for outside in [
        "recipe.json",
        "samples/..%2Frecipe.json",
        "samples/%2e%2e/recipe.json",
        "export/model.safetensors",
    ] {
        let answer = world.get(&format!("/api/jobs/{id}/files/{outside}")).await?;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{outside}");
    }
    let other = world.get(&format!("/api/jobs/{id}/export/recipe.json")).await?;
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    Ok(())
}

#[tokio::test]
async fn jobs_run_one_at_a_time_in_the_order_they_came() -> Tested {
    let world = World::new()?;
    let first = world.start_job(1000, "ms=40").await?;
    let second = world.start_job(2, "").await?;
    let third = world.start_job(2, "").await?;
    let newest_first: Vec<_> = world.jobs().await?.into_iter().map(|j| j.id).collect();
    assert_eq!(newest_first, [&third, &second, &first].map(|j| j.summary.id.clone()));
    // The second leaves the queue, the first stops and keeps what there is.
    assert_eq!(world.stop(&second).await?.state, JobState::Stopped);
    world.wait_for_step(&first, 1).await?;
    let remove = world
        .request(Method::DELETE, &format!("/api/jobs/{}", first.summary.id))
        .send()
        .await?;
    assert_eq!(remove.status(), StatusCode::CONFLICT);
    assert_eq!(world.stop(&first).await?.state, JobState::Stopping);
    let stopped = world.wait_until_over(&first).await?;
    assert_eq!(stopped.summary.state, JobState::Stopped);
    assert_eq!(world.wait_until_over(&third).await?.summary.state, JobState::Done);
    let (one, three) = (world.events(&first, 0).await?, world.events(&third, 0).await?);
    let began = three.iter().find(|e| e.seq == 2).map(|e| e.at_ms);
    assert!(one.last().map(|e| e.at_ms) <= began, "two ran at once");
    assert_eq!(world.events(&second, 0).await?.len(), 2, "queued, stopped");

    let remove = world
        .request(Method::DELETE, &format!("/api/jobs/{}", second.summary.id))
        .send()
        .await?;
    assert_eq!(remove.status(), StatusCode::NO_CONTENT);
    assert_eq!(world.jobs().await?.len(), 2);
    assert!(!world.data().join("jobs").join(second.summary.id.as_str()).exists());
    Ok(())
}

#[tokio::test]
async fn a_viewer_that_comes_back_misses_nothing_and_sees_nothing_twice() -> Tested {
    let world = World::new()?;
    let mut first = Viewer::connect(&world.server.url).await?;
    assert!(matches!(first.next_words().await?, ToPage::Jobs { jobs } if jobs.is_empty()));
    let job = world.start_job(40, "ms=20").await?;
    first.watch(&job.summary.id, 0).await?;
    first.until_seq(12).await?;
    let mut seen = first.seqs.clone();
    drop(first);

    world.wait_for_step(&job, 20).await?;
    let mut second = Viewer::connect(&world.server.url).await?;
    second.watch(&job.summary.id, seen.last().copied().unwrap_or(0)).await?;
    second.until_over().await?;
    seen.extend(&second.seqs);
    let all: Vec<u64> = world.events(&job, 0).await?.iter().map(|e| e.seq).collect();
    assert_eq!(seen, all);
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
    assert_eq!(world.events(&job, 7).await?[0].seq, 8);

    // A third comes when all is over: the whole log, previews of the last two rounds only.
    let mut third = Viewer::connect(&world.server.url).await?;
    third.watch(&job.summary.id, 0).await?;
    third.until_over().await?;
    third.until_previews(2).await?;
    assert_eq!(third.seqs, all);
    let steps: Vec<u32> = third.previews.iter().map(|(header, _)| header.step).collect();
    assert_eq!(steps, [35, 40]);
    assert_eq!(third.previews[1].1, b"small 40");
    assert_eq!(third.previews[1].0.mime, "image/jpeg");
    Ok(())
}

#[tokio::test]
async fn a_live_viewer_gets_every_preview_after_its_event_and_hears_of_deletion() -> Tested {
    let world = World::new()?;
    let job = world.start_job(20, "ms=30").await?;
    let mut viewer = Viewer::connect(&world.server.url).await?;
    viewer.watch(&job.summary.id, 0).await?;
    viewer.until_over().await?;
    viewer.until_previews(5).await?;
    let steps: Vec<u32> = viewer.previews.iter().map(|(header, _)| header.step).collect();
    assert_eq!(steps, [0, 5, 10, 15, 20]);
    assert!(viewer.previews_came_after_their_events);
    world
        .request(Method::DELETE, &format!("/api/jobs/{}", job.summary.id))
        .send()
        .await?
        .error_for_status()?;
    viewer.until_gone().await?;
    viewer.watch(&job.summary.id, 0).await?;
    viewer.until_gone().await?;
    Ok(())
}

#[tokio::test]
async fn a_killed_trainer_is_started_again_and_one_that_gives_up_fails_with_its_words() -> Tested {
    let world = World::new()?;
    let killed = world.start_job(10, "die_at=6").await?;
    let gives_up = world.start_job(10, "exit_at=3").await?;
    let hopeless = world.start_job(10, "always_die_at=2").await?;
    let done = world.wait_until_over(&killed).await?;
    assert_eq!(done.summary.state, JobState::Done);
    let log = serde_json::to_string(&world.events(&killed, 0).await?)?;
    assert!(log.contains("\"rewound_to\":4"), "{log}");

    let failed = world.wait_until_over(&gives_up).await?;
    let JobState::Failed { failure } = failed.summary.state else {
        anyhow::bail!("not failed")
    };
    assert_eq!(failure.code, "trainer_died");
    let hint = failure.hint.unwrap_or_default();
    assert!(hint.contains("unet.conv_in.weight has no gradient"), "{hint}");

    let failed = world.wait_until_over(&hopeless).await?;
    assert!(matches!(failed.summary.state, JobState::Failed { .. }));
    let starts = world.events(&hopeless, 0).await?;
    let starts = starts
        .iter()
        .filter(|e| matches!(e.kind, app::event::EventKind::Started { .. }))
        .count();
    assert_eq!(starts, 4, "the first and three more");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_killed_leaves_the_training_running_and_the_next_one_follows_it() -> Tested {
    let world = World::new()?;
    let done = world.start_job(2, "").await?;
    world.wait_until_over(&done).await?;
    let running = world.start_job(60, "ms=50").await?;
    let waiting = world.start_job(2, "").await?;
    world.wait_for_step(&running, 3).await?;
    let world = world.restart_after_kill().await?;
    let again = world.job(&running).await?;
    assert_eq!(again.summary.state, JobState::Running);
    assert_eq!(world.wait_until_over(&running).await?.summary.state, JobState::Done);
    let events = world.events(&running, 0).await?;
    let starts = events
        .iter()
        .filter(|e| matches!(e.kind, app::event::EventKind::Started { .. }))
        .count();
    assert_eq!(starts, 1, "adopted, not started again");
    assert_eq!(world.wait_until_over(&waiting).await?.summary.state, JobState::Done);
    assert_eq!(world.job(&done).await?.summary.state, JobState::Done);
    let photo = world.photo_status(&png(64, 0)).await?;
    assert_eq!(photo, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn when_server_and_trainer_both_die_the_next_server_resumes_the_training() -> Tested {
    let world = World::new()?;
    let job = world.start_job(40, "ms=50").await?;
    world.wait_for_step(&job, 5).await?;
    let folder = world.data().join("jobs").join(job.summary.id.as_str());
    let trainer: i32 = std::fs::read_to_string(folder.join("lock"))?.trim().parse()?;
    let world = world
        .restart_after(|server| {
            server.kill()?;
            let pid = rustix::process::Pid::from_raw(trainer).ok_or_else(|| anyhow::anyhow!("no process"))?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            Ok(())
        })
        .await?;
    assert_eq!(world.wait_until_over(&job).await?.summary.state, JobState::Done);
    let log = serde_json::to_string(&world.events(&job, 0).await?)?;
    assert!(log.contains("rewound_to"), "{log}");
    Ok(())
}

#[tokio::test]
async fn ctrl_c_ends_the_server_and_not_the_training() -> Tested {
    let world = World::new()?;
    let job = world.start_job(40, "ms=40").await?;
    world.wait_for_step(&job, 2).await?;
    let mut viewer = Viewer::connect(&world.server.url).await?;
    viewer.watch(&job.summary.id, 0).await?;
    let world = world
        .restart_after(|server| {
            anyhow::ensure!(server.end()?.success(), "it did not end well");
            Ok(())
        })
        .await?;
    assert_eq!(world.wait_until_over(&job).await?.summary.state, JobState::Done);
    Ok(())
}
