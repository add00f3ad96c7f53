//! A model and a VAE of the Hub, chosen on the page: refused without a token, described, downloaded, trained.

use tests::browser::Screen;
use tests::hub::{Hub, Repository};

use super::visit::{PATIENCE, Subject, Visit};

const TOKEN: &str = "hf_aTokenForTheBrowser";

#[tokio::test(flavor = "multi_thread")]
async fn browser_a_model_of_the_hub_is_described_then_downloaded_and_trained() -> anyhow::Result<()> {
    let golden = crate::golden::dir();
    let model = Repository {
        token: Some(TOKEN),
        license: Some("creativeml-openrail-m"),
        revisions: vec!["v2".into()],
        ..Repository::of_folder(&golden.join("tiny-sd"))?
    };
    let vae = Repository {
        license: Some("mit"),
        ..Repository::of_folder(&crate::golden::dir_of("tiny-sd21").join("vae"))?
    };
    let hub = Hub::start([("owner/private", model), ("owner/vae", vae)])?;
    let home = tempfile::tempdir()?;
    let home = home.path().to_string_lossy();
    let visit = Visit::with(Screen::Phone, &[("HF_ENDPOINT", &hub.url), ("HF_HOME", &home)]).await?;
    let subject = Subject::cat()?;
    visit.add(&subject.photos).await?;
    visit.wait_for_uploads(subject.photos.len()).await?;

    visit.go("#subject").await?;
    visit.browser.fill("#model-path", "owner/private").await?;
    let folded = "const token = document.querySelector('.token'); return !!token && !token.open";
    visit
        .browser
        .wait_until("the token is offered, and folded away", folded, PATIENCE)
        .await?;
    visit.browser.fill("#revision", "../v2").await?;
    let wrong = visit.browser.text("#model-about .field-problem").await?;
    assert!(wrong.contains("revision is `../v2`; it must be a branch"), "{wrong}");
    visit.browser.fill("#revision", "v2").await?;
    visit.browser.click("form:has(#model-path) button[type=submit]").await?;
    let problem = visit.browser.text(".notice-error").await?;
    assert!(problem.contains("the Hub wants a token"), "{problem}");
    visit.browser.fill("#hub-token", TOKEN).await?;
    visit.browser.shoot("phone-hub-token").await?;
    visit.browser.click("form:has(#hub-token) button[type=submit]").await?;
    let described = "return document.querySelectorAll('.model').length === 2";
    visit
        .browser
        .wait_until("the model is described", described, PATIENCE)
        .await?;
    let card = visit.browser.text(".models + form ~ .models .model-facts").await?;
    assert!(card.contains("creativeml-openrail-m"), "{card}");
    assert!(card.contains("are downloaded when training starts"), "{card}");
    visit.browser.see("#hub-token").await?;
    let field = "return document.querySelector('#hub-token').value";
    assert_eq!(
        visit.browser.ask(field).await?,
        "",
        "the token does not stay in the page"
    );
    hub.asked();
    visit.browser.fill("#vae", "owner/none").await?;
    visit.browser.click("form:has(#vae) button[type=submit]").await?;
    let wrong = visit.browser.text("#vae-about .field-problem").await?;
    assert!(wrong.contains("the Hub has no model of this name"), "{wrong}");
    visit.browser.shoot("phone-hub-wrong-vae").await?;
    visit.browser.fill("#vae", "owner/vae").await?;
    assert_eq!(visit.browser.count("#vae-about .field-problem").await?, 0);
    visit.browser.click("form:has(#vae) button[type=submit]").await?;
    let card = visit.browser.text(".vae-facts").await?;
    assert!(card.contains("Licence: mit."), "{card}");
    assert!(card.contains("are downloaded when training starts"), "{card}");
    let large = |asked: &tests::hub::Asked| asked.path.ends_with(".safetensors");
    assert!(!hub.asked().iter().any(large), "nothing large is downloaded for that");
    visit.browser.shoot("phone-hub-model").await?;
    let too_wide = "return document.documentElement.scrollWidth - innerWidth";
    assert_eq!(
        visit.browser.ask(too_wide).await?.as_i64(),
        Some(0),
        "wider than a phone"
    );

    visit.go("#photos").await?;
    visit.wait_for_uploads(subject.photos.len()).await?;
    hub.slow(true);
    let settings = [
        ("max_train_steps", "2"),
        ("prior.num_class_images", "1"),
        ("samples.n_save_sample", "1"),
        ("samples.sample_interval", "2"),
        ("samples.save_infer_steps", "2"),
    ];
    let job = visit.start(&settings).await?;
    let coming = "return document.querySelector('.situation').innerText.startsWith('Downloading owner/private: ')";
    visit
        .browser
        .wait_until("the download is shown", coming, PATIENCE)
        .await?;
    visit.browser.shoot("phone-hub-download").await?;
    hub.slow(false);
    let recipe = visit.detail(&job).await?.recipe;
    assert_eq!(recipe.pretrained_model_name_or_path, "owner/private");
    assert_eq!(recipe.revision.as_deref(), Some("v2"));
    assert_eq!(recipe.pretrained_vae_name_or_path.as_deref(), Some("owner/vae"));
    visit.wait_for_results().await?;

    visit.go("#subject").await?;
    visit.browser.click(".token summary").await?;
    visit.browser.click(".token button.button-quiet").await?;
    let gone = "return document.querySelector('.token summary').innerText.includes('only some models ask for one')";
    visit
        .browser
        .wait_until("the token is forgotten", gone, PATIENCE)
        .await?;
    let info = reqwest::get(format!("{}/api/server", visit.server.url)).await?;
    let info: app::api::ServerInfo = serde_json::from_slice(&info.bytes().await?)?;
    assert!(!info.has_hub_token);
    visit.expect_no_errors().await?;
    visit.browser.end().await
}
