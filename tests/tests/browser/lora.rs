//! A LoRA in place of a whole model: asked for on the page, downloaded, drawn with by the command that the page gives.

use std::process::Command;

use anyhow::Context;
use safetensors::SafeTensors;
use tests::browser::Screen;

use super::visit::{Subject, Visit};

#[tokio::test(flavor = "multi_thread")]
async fn browser_a_lora_is_trained_downloaded_and_drawn_with_as_the_page_says() -> anyhow::Result<()> {
    let subject = Subject::cat()?;
    let visit = Visit::new(Screen::Desktop).await?;
    visit.add(&subject.photos).await?;
    visit.wait_for_uploads(subject.photos.len()).await?;
    visit.go("#subject").await?;
    visit.browser.fill("#class_noun", subject.noun).await?;
    let settings = [
        ("lora_rank", "4"),
        ("max_train_steps", "2"),
        ("prior.num_class_images", "1"),
        ("samples.n_save_sample", "1"),
        ("samples.sample_interval", "2"),
        ("samples.save_infer_steps", "2"),
    ];
    let job = visit.start(&settings).await?;
    assert_eq!(visit.detail(&job).await?.recipe.lora_rank, Some(4));
    visit.wait_for_results().await?;
    visit.browser.shoot("results-lora").await?;

    let button = visit
        .browser
        .text(".download:has(a[download$='-lora.safetensors'])")
        .await?;
    assert!(button.contains("Download LoRA"), "{button}");
    let lora = visit.download("-lora.safetensors").await?;
    let bytes = std::fs::read(&lora)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let down = tensors
        .names()
        .into_iter()
        .filter(|name| name.ends_with("lora_down.weight"));
    assert!(down.count() > 0, "{:?}", tensors.names());

    // In the folder of the download, as it stands there; only quicker.
    let command = visit
        .browser
        .ask("return [...document.querySelectorAll('.command code')].map(c => c.innerText).find(c => c.includes('--lora'))")
        .await?;
    let command = command.as_str().unwrap_or_default();
    let program = tests::executable("likeness");
    let path = program.parent().context("a folder")?;
    let drawn = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("{command} --steps 2 --num_samples 1 --out drawn"))
        .current_dir(lora.parent().context("a folder")?)
        .env("PATH", path)
        .output()?;
    assert!(
        drawn.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&drawn.stderr)
    );
    visit.expect_no_errors().await?;
    visit.browser.end().await
}
