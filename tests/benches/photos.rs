//! How long 24 photos of 12 megapixels take from drop to checked, cropped and uploaded, and for how long the page
//! blocks meanwhile: `make bench-photos`. The bar on 2 cores: under 20 s, and never blocked for 100 ms.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use tests::browser::{Browser, Screen};
use tests::server::Server;

const COUNT: u32 = 24;
const LONGEST: Duration = Duration::from_secs(300);

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let photos = make_photos(folder.path())?;
    tokio::runtime::Runtime::new()?.block_on(measure(folder.path(), &photos))
}

/// 4000 x 3000 pixels each, with the grain that cameras leave, so that they weigh what such photos do.
fn make_photos(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let fixtures = tests::repository().join("tests/fixtures/cat").canonicalize()?;
    (0..COUNT)
        .map(|number| {
            let source = image::open(fixtures.join(format!("0{}.jpg", number % 8)))?;
            let mut photo = source.resize_exact(4000, 3000, FilterType::Triangle).to_rgb8();
            let mut state = number + 1;
            for value in photo.as_flat_samples_mut().as_mut_slice() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *value = value.saturating_add((state >> 28) as u8);
            }
            let path = folder.join(format!("{number:02}.jpg"));
            JpegEncoder::new_with_quality(BufWriter::new(File::create(&path)?), 90).encode_image(&photo)?;
            Ok(path)
        })
        .collect()
}

async fn measure(folder: &Path, photos: &[PathBuf]) -> anyhow::Result<()> {
    let server = Server::start(&folder.join("data"), None, &[])?;
    let browser = Browser::start(Screen::Desktop, folder).await?;
    browser.page.goto(server.url.as_str()).await?;
    let pick = browser.see("input.pick").await?;
    browser
        .ask(
            "window.blocked = []; new PerformanceObserver(list => list.getEntries().forEach(e => blocked.push(e.duration)))
                 .observe({ entryTypes: ['longtask'] })",
        )
        .await?;
    let paths: Vec<_> = photos.iter().map(|path| path.to_string_lossy()).collect();
    let since = Instant::now();
    pick.send_keys(paths.join("\n")).await?;
    let all = format!("return document.querySelectorAll('.upload-done').length === {COUNT}");
    browser.wait_until("all photos are uploaded", &all, LONGEST).await?;
    let seconds = since.elapsed().as_secs_f64();
    let blocked = browser.ask("return blocked.length ? Math.max(...blocked) : 0").await?;
    let bytes: u64 = photos.iter().map(|p| p.metadata().map_or(0, |m| m.len())).sum();
    println!(
        "{COUNT} photos of 12 megapixels ({:.1} MB each): {seconds:.1} s from drop to uploaded (bar 20 s); \
         the page blocked for at most {blocked} ms (bar 100 ms)",
        bytes as f64 / f64::from(COUNT) / 1e6
    );
    browser.end().await
}
