//! What the server shows to whom: other sites, passwords, the page's guards, wrong starts, and the document that describes it.

use app::job::JobDetail;
use reqwest::{Method, StatusCode};

use super::Tested;
use super::world::{Viewer, World};

#[tokio::test]
async fn other_sites_and_rebound_names_are_refused() -> Tested {
    let world = World::new()?;
    let code = async |method: Method, header: &'static str, value: &str| -> anyhow::Result<u16> {
        let request = world.request(method, "/api/jobs").header(header, value).body("{");
        Ok(request.send().await?.status().as_u16())
    };
    assert_eq!(code(Method::GET, "host", "evil.example:7860").await?, 421);
    assert_eq!(code(Method::GET, "host", "localhost").await?, 200);
    assert_eq!(code(Method::POST, "origin", "http://evil.example").await?, 403);
    assert_eq!(code(Method::POST, "origin", "null").await?, 403);
    assert_eq!(code(Method::POST, "sec-fetch-site", "cross-site").await?, 403);
    assert_eq!(
        code(Method::POST, "origin", &world.server.url).await?,
        400,
        "let through to the JSON"
    );
    assert!(
        Viewer::connect_as(&world.server.url, "http://evil.example")
            .await
            .is_err()
    );
    assert!(Viewer::connect_as(&world.server.url, &world.server.url).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn with_a_password_nothing_is_shown_without_it() -> Tested {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("password");
    std::fs::write(&file, "open sesame\n")?;
    let world = World::with(&["--password-file", &file.to_string_lossy()])?;
    for path in ["/", "/api/server", "/api/jobs", "/api/openapi.json", "/api/photos/00"] {
        assert_eq!(world.get(path).await?.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    let wrong = world
        .request(Method::GET, "/api/jobs")
        .basic_auth("me", Some("open"))
        .send()
        .await?;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    let right = world
        .request(Method::GET, "/api/jobs")
        .basic_auth("me", Some("open sesame"))
        .send()
        .await?;
    assert_eq!(right.status(), StatusCode::OK);
    let cookie = right.headers()["set-cookie"]
        .to_str()?
        .split(';')
        .next()
        .unwrap_or_default()
        .to_owned();
    let session = world
        .request(Method::GET, "/api/jobs")
        .header("cookie", cookie)
        .send()
        .await?;
    assert_eq!(session.status(), StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn the_page_comes_compressed_and_guarded() -> Tested {
    let world = World::new()?;
    let index = world
        .request(Method::GET, "/")
        .header("accept-encoding", "gzip, br")
        .send()
        .await?;
    assert_eq!(index.status(), StatusCode::OK);
    assert_eq!(index.headers()["cache-control"], "no-cache");
    assert!(
        index.headers()["content-security-policy"]
            .to_str()?
            .contains("'wasm-unsafe-eval'")
    );
    assert_eq!(index.headers()["content-encoding"], "br");
    let etag = index.headers()["etag"].clone();
    let same = world
        .request(Method::GET, "/")
        .header("accept-encoding", "br")
        .header("if-none-match", etag);
    assert_eq!(same.send().await?.status(), StatusCode::NOT_MODIFIED);
    let plain = world.get("/").await?;
    assert!(!plain.headers().contains_key("content-encoding"));
    assert!(plain.text().await?.starts_with("<!"));

    let place = world
        .request(Method::GET, "/jobs/dog-x7k2")
        .header("accept", "text/html")
        .send()
        .await?;
    assert_eq!(place.status(), StatusCode::OK);
    for missing in ["/missing.js", "/..%2fCargo.toml"] {
        let answer = world
            .request(Method::GET, missing)
            .header("accept", "text/html")
            .send()
            .await?;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{missing}");
    }
    Ok(())
}

#[tokio::test]
async fn starting_wrongly_says_what_to_do() -> Tested {
    let world = World::new()?;
    let port = world.server.url.rsplit(':').next().unwrap_or_default().to_owned();
    let fail = |args: &[&str], data: &std::path::Path| -> anyhow::Result<String> {
        let mut command = std::process::Command::new(tests::executable("likeness"));
        let output = command.arg("--data").arg(data).args(args).output()?;
        anyhow::ensure!(!output.status.success(), "it started");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let other = tempfile::tempdir()?;
    let said = fail(&["--listen", &format!("127.0.0.1:{port}")], other.path())?;
    assert!(said.contains("in use") && said.contains("--listen"), "{said}");
    let said = fail(&["--listen", "127.0.0.1:0"], &world.data())?;
    assert!(said.contains("another likeness uses"), "{said}");
    let said = fail(&["--listen", "0.0.0.0:0"], other.path())?;
    assert!(said.contains("--password-file"), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_openapi_document_describes_what_the_server_answers() -> Tested {
    let world = World::new()?;
    let document: serde_json::Value = world.get("/api/openapi.json").await?.json().await?;
    let paths = document["paths"]
        .as_object()
        .ok_or_else(|| anyhow::anyhow!("no paths"))?;
    assert!(paths.len() >= 11, "{}", paths.len());
    for (path, operations) in paths {
        let address = path
            .replace("{sha256}", "x")
            .replace("{id}", "nobody")
            .replace("{path}", "x/y")
            .replace("{name}", "x");
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH"] {
            let described = operations.get(method.to_ascii_lowercase()).is_some();
            let answer = world.request(method.parse()?, &address).send().await?;
            let answered = answer.status() != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(described, answered, "{method} {path}: {}", answer.status());
        }
    }
    let job: JobDetail = world.start_job(1, "").await?;
    let schema = &document["components"]["schemas"]["JobDetail"]["properties"];
    for (name, _) in serde_json::to_value(&job)?.as_object().into_iter().flatten() {
        assert!(schema.get(name).is_some(), "JobDetail.{name} is not described");
    }
    Ok(())
}
