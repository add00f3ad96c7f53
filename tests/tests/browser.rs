//! The whole job as a person does it, in a real Chromium: photos in, crop, train, reload, download.

mod checkpoint;
mod hub;
mod lora;
mod visit;

use std::time::Duration;

use checkpoint::{check_against_sd, draw_with, sha256_of};
use tests::browser::Screen;
use tests::server::Server;
use thirtyfour::prelude::*;
use visit::{PATIENCE, Subject, Visit};

/// The crop of the first photo, moved by hand, by wheel and by key.
async fn crop_by_hand(visit: &Visit) -> anyhow::Result<()> {
    let browser = &visit.browser;
    browser.click(".print-open").await?;
    let numbers = browser.text("dialog.editor[open] .editor-numbers").await?;
    let photo = browser.see("svg.editor-photo").await?;
    browser
        .page
        .action_chain()
        .move_to_element_center(&photo)
        .perform()
        .await?;
    // Closer first, so that there is room to drag.
    browser
        .ask(
            "const p = document.querySelector('svg.editor-photo'), r = p.getBoundingClientRect();
             for (let i = 0; i < 3; i++) p.dispatchEvent(new WheelEvent('wheel', { deltaY: -240, bubbles: true, cancelable: true,
                 clientX: r.x + r.width / 2, clientY: r.y + r.height / 2 }))",
        )
        .await?;
    let closer = browser.text(".editor-numbers").await?;
    anyhow::ensure!(closer != numbers, "the wheel does nothing: {numbers}");
    let drag = browser
        .page
        .action_chain()
        .move_to_element_center(&photo)
        .click_and_hold();
    drag.move_by_offset(-30, 10).release().perform().await?;
    let dragged = browser.text(".editor-numbers").await?;
    anyhow::ensure!(dragged != closer, "dragging does nothing: {closer}");
    let keys = browser.page.action_chain();
    keys.send_keys(Key::Right + "").send_keys("+").perform().await?;
    anyhow::ensure!(
        browser.text(".editor-numbers").await? != dragged,
        "keys do nothing: {dragged}"
    );
    browser.shoot("crop-editor").await?;
    browser
        .page
        .action_chain()
        .send_keys(Key::Escape + "")
        .perform()
        .await?;
    let closed = "return !document.querySelector('dialog.editor[open]')";
    browser.wait_until("the editor closes", closed, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_first_run_with_the_starter() -> anyhow::Result<()> {
    let subject = Subject::cat()?;
    let mut visit = Visit::new(Screen::Desktop).await?;
    visit.browser.shoot("photos-empty").await?;
    visit.add(&subject.photos).await?;
    visit.wait_for_uploads(subject.photos.len()).await?;
    visit.browser.shoot("photos").await?;
    let first = "return JSON.parse(localStorage['likeness.photos'])[0].sha256";
    let suggested = visit.browser.ask(first).await?;
    crop_by_hand(&visit).await?;
    visit.wait_for_uploads(subject.photos.len()).await?;
    assert_ne!(
        visit.browser.ask(first).await?,
        suggested,
        "the crop made by hand is sent"
    );

    visit.go("#subject").await?;
    visit.browser.fill("#class_noun", subject.noun).await?;
    visit.browser.shoot("subject").await?;
    let steps = 40;
    let settings = [
        ("max_train_steps", "40"),
        ("prior.num_class_images", "4"),
        ("samples.n_save_sample", "2"),
        ("samples.sample_interval", "20"),
        ("samples.save_infer_steps", "8"),
        ("samples.save_sample_prompt", "photo of zwx cat"),
    ];
    let job = visit.start(&settings).await?;

    let detail = visit.detail(&job).await?;
    assert_eq!(detail.recipe.concepts[0].instance_prompt, "photo of zwx cat");
    visit.wait_for_step(5).await?;
    visit.expect_no_errors().await?;
    visit.browser.shoot("watch-early").await?;

    // The page is closed and opened again, then the server dies and comes back while it is open.
    visit.browser.page.refresh().await?;
    visit.wait_for_step(6).await?;
    let rounds = "return document.querySelectorAll('.strip-round').length";
    assert!(
        visit.browser.ask(rounds).await?.as_u64() >= Some(1),
        "the round before training is back"
    );
    let address = visit.server.url.trim_start_matches("http://").to_owned();
    let data = visit.folder.path().join("data");
    visit.server.crash()?;
    let lost = "return !!document.querySelector('.connection .notice')";
    visit
        .browser
        .wait_until("the page says that the server is away", lost, PATIENCE)
        .await?;
    visit.browser.shoot("watch-lost").await?;
    visit.server = Server::start_at(&address, &data, None, &[])?;
    let back = "return !document.querySelector('.connection .notice')";
    visit
        .browser
        .wait_until("the page is connected again", back, PATIENCE)
        .await?;

    visit
        .browser
        .wait_until(
            "training is done",
            "return !!document.querySelector('.watch-head a.button-strong[href^=\"#results\"]')",
            PATIENCE,
        )
        .await?;
    visit.browser.shoot("watch-done").await?;
    // Nothing is missing: every step's loss is in the curve, every round in the strip.
    let points = visit
        .browser
        .ask("return +document.querySelector('.chart').dataset.points")
        .await?;
    assert_eq!(points.as_u64(), Some(steps), "points in the curve");
    assert_eq!(visit.browser.count(".strip-round").await?, 3, "rounds: 0, 20, 40");
    visit.wait_for_results().await?;
    visit.browser.shoot("results").await?;
    let about = visit.browser.text(".results").await?;
    assert!(about.contains("Only Likeness draws from it"), "{about}");
    for ending in [".safetensors", ".ckpt"] {
        let file = visit.download(ending).await?;
        let sum = visit
            .browser
            .text(&format!(".download:has(a[download$='{ending}']) code"))
            .await?;
        assert_eq!(sha256_of(&file)?, sum, "{ending}");
        draw_with(&file, &visit.folder.path().join(format!("drawn{ending}")))?;
    }
    visit.expect_no_errors().await?;
    visit.browser.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_trains_a_model_of_stable_diffusions_structure() -> anyhow::Result<()> {
    let subject = Subject::dog()?;
    let base = tests::repository().join("tests/golden/tiny-sd");
    let visit = Visit::new(Screen::Phone).await?;
    visit.add(&subject.photos).await?;
    visit.wait_for_uploads(subject.photos.len()).await?;
    visit.go("#subject").await?;
    visit.browser.fill("#class_noun", subject.noun).await?;

    // A path that is none is named, and loses nothing.
    visit.browser.fill("#model-path", "/nowhere/model.safetensors").await?;
    visit.browser.click("form.field button[type=submit]").await?;
    let problem = visit.browser.text(".notice-error").await?;
    assert!(problem.contains("/nowhere/model.safetensors"), "{problem}");
    visit.browser.shoot("phone-subject-problem").await?;
    visit.browser.fill("#model-path", &base.to_string_lossy()).await?;
    visit.browser.click("form.field button[type=submit]").await?;
    visit
        .browser
        .wait_until(
            "the model is known",
            "return document.querySelectorAll('.model').length === 2",
            PATIENCE,
        )
        .await?;
    visit
        .browser
        .ask("document.querySelectorAll('.model input')[1].click()")
        .await?;
    visit.go("#photos").await?;
    visit.wait_for_uploads(subject.photos.len()).await?;
    visit.browser.shoot("phone-photos").await?;
    for place in ["#photos", "#subject", "#train", "#run", "#results"] {
        visit.go(place).await?;
        visit.browser.see("main h1, main h2").await?;
        let too_wide = "return document.documentElement.scrollWidth - innerWidth";
        assert_eq!(
            visit.browser.ask(too_wide).await?.as_i64(),
            Some(0),
            "{place} is wider than a phone"
        );
        visit.browser.shoot(&format!("phone-{}", &place[1..])).await?;
    }
    let settings = [
        ("max_train_steps", "6"),
        ("prior.num_class_images", "3"),
        ("samples.n_save_sample", "1"),
        ("samples.sample_interval", "3"),
        ("samples.save_infer_steps", "4"),
    ];
    visit.start(&settings).await?;
    visit.browser.see(".class-images img, .round img").await?;
    visit.browser.shoot("phone-watch").await?;
    visit.wait_for_results().await?;
    visit.browser.shoot("phone-results-done").await?;
    let file = visit.download(".safetensors").await?;
    check_against_sd(&file, &base)?;
    draw_with(&file, &visit.folder.path().join("drawn"))?;
    visit.browser.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_example_photos_are_one_click_away_and_drops_are_judged() -> anyhow::Result<()> {
    let mut visit = Visit::new(Screen::Desktop).await?;
    visit.browser.click(".demo button").await?;
    visit.wait_for_uploads(8).await?;
    visit.go("#subject").await?;
    let prompt = "return document.querySelector('#instance_prompt').value";
    assert_eq!(visit.browser.ask(prompt).await?, "photo of zwx cat");
    visit.go("#photos").await?;

    // The same photo again, and a file that is none.
    let drop = "const drop = files => { const data = new DataTransfer(); files.forEach(f => data.items.add(f));
        window.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })) };";
    let again = "fetch('/demo/02.jpg').then(a => a.blob()).then(b => drop([new File([b], 'again.jpg')]))";
    visit.browser.ask(&format!("{drop} {again}")).await?;
    let told =
        "return document.querySelector('.photos-news').innerText.includes('again.jpg is here already, as photo 3')";
    visit.browser.wait_until("the twin is named", told, PATIENCE).await?;
    visit
        .browser
        .ask(&format!("{drop} drop([new File(['no photo'], 'notes.jpg')])"))
        .await?;
    visit.browser.see(".print-failed .print-error").await?;
    let title = "return document.querySelector('.print-failed .print-name').innerText";
    assert_eq!(visit.browser.ask(title).await?, "notes.jpg");
    visit.expect_no_errors().await?;
    visit.browser.shoot("photos-unreadable").await?;
    visit.browser.click(".print-failed .print-remove").await?;

    // A photo that the server does not get is sent again when it is back.
    let address = visit.server.url.trim_start_matches("http://").to_owned();
    visit
        .browser
        .ask("window.late = fetch('/demo/05.jpg').then(a => a.blob())")
        .await?;
    visit.browser.click(".print:nth-child(6) .print-remove").await?;
    visit.browser.ask("window.late.then(() => window.ready = true)").await?;
    visit
        .browser
        .wait_until("the photo is at hand", "return window.ready === true", PATIENCE)
        .await?;
    visit.server.crash()?;
    let late = "window.late.then(b => drop([new File([b, ' '], 'late.jpg')]))";
    visit.browser.ask(&format!("{drop} {late}")).await?;
    visit.browser.see(".upload-failed").await?;
    visit.browser.shoot("photos-not-sent").await?;
    visit.server = Server::start_at(&address, &visit.folder.path().join("data"), None, &[])?;
    visit.wait_for_uploads(8).await?;

    // After a reload only crops are left: they don't fit another resolution, and fit again when it is taken back.
    visit.browser.page.refresh().await?;
    visit.wait_for_uploads(8).await?;
    visit.go("#train").await?;
    visit.browser.click(".all-settings .disclosure").await?;
    visit.set("resolution", "64").await?;
    visit.go("#photos").await?;
    visit.browser.see(".upload-failed").await?;
    visit.browser.page.refresh().await?;
    visit.browser.see(".upload-failed").await?;
    visit.go("#train").await?;
    visit.set("resolution", "128").await?;
    visit.go("#photos").await?;
    visit.wait_for_uploads(8).await?;
    visit.browser.end().await
}

/// What fp16's loss scaler does on a GPU, said by a trainer that pretends.
#[tokio::test(flavor = "multi_thread")]
async fn browser_updates_that_overflowed_are_counted_and_explained() -> anyhow::Result<()> {
    let subject = Subject::cat()?;
    let visit = Visit::pretended(Screen::Phone).await?;
    visit.add(&subject.photos).await?;
    visit.wait_for_uploads(subject.photos.len()).await?;
    visit.go("#subject").await?;
    visit.browser.fill("#class_noun", subject.noun).await?;
    let settings = [
        ("max_train_steps", "7"),
        ("samples.save_sample_negative_prompt", "ms=400 skip_at=4"),
    ];
    visit.start(&settings).await?;
    visit.wait_for_step(1).await?;
    let left_out = "return [...document.querySelectorAll('.meters dt')].find(dt => dt.innerText === 'Updates left out')\
                    ?.nextElementSibling.innerText ?? null";
    assert!(
        visit.browser.ask(left_out).await?.is_null(),
        "there is nothing to count yet"
    );
    visit.wait_for_step(5).await?;
    assert_eq!(visit.browser.ask(left_out).await?, "1 that overflowed");
    let told = visit.browser.text(".watch").await?;
    assert!(told.contains("left out because a gradient overflowed fp16"), "{told}");
    visit.browser.shoot("phone-watch-overflowed").await?;
    visit.expect_no_errors().await?;
    visit.browser.end().await
}

/// A first run with nothing changed, for the pictures in the README: `make pictures`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes, for its pictures only"]
async fn browser_pictures_of_a_first_run() -> anyhow::Result<()> {
    let visit = Visit::new(Screen::Desktop).await?;
    visit.browser.shoot("empty").await?;
    visit.browser.click(".demo button").await?;
    visit.wait_for_uploads(8).await?;
    visit.browser.shoot("photos").await?;
    visit.go("#train").await?;
    visit.browser.see(".start .button:not([disabled])").await?;
    visit.browser.shoot("train").await?;
    visit.browser.click(".start .button").await?;
    visit.wait_for_step(300).await?;
    visit.browser.shoot("watch").await?;
    visit.wait_for_results().await?;
    // Samples develop as they come.
    tokio::time::sleep(Duration::from_secs(2)).await;
    visit.browser.shoot("results").await?;
    visit.browser.end().await
}
