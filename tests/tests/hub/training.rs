//! A training whose base model, VAE and tokenizer come from the Hub, as the server starts it.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use app::event::{Event, EventKind};
use app::recipe::{Concept, RecipeDraft};
use tests::hub::{Hub, Repository};
use trainer::formats;

use super::{Home, PATIENCE, TOKEN, published, said};

const MODEL: &str = "owner/private";
const REVISION: &str = "v2";
const VAE: &str = "owner/vae";
const TOKENIZER: &str = "owner/tokenizer";

/// A model that wants a token, and a VAE of another width with its configuration at the root.
fn hub() -> Hub {
    let model = Repository {
        token: Some(TOKEN),
        revisions: vec![REVISION.into()],
        ..published()
    };
    let vae = Repository::of_folder(&crate::golden::dir_of("tiny-sd21").join("vae")).unwrap();
    let tokenizer = Repository::of_folder(&crate::golden::dir_of("tiny-sd").join("tokenizer")).unwrap();
    Hub::start([(MODEL, model), (VAE, vae), (TOKENIZER, tokenizer)]).unwrap()
}

/// A job folder in the home, with two photos and one step to do.
fn make_job(home: &Home) {
    let photos = home.path("job/photos/0");
    std::fs::create_dir_all(&photos).unwrap();
    for shade in [40, 200] {
        let photo = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([shade, (3 * x) as u8, (2 * y) as u8]));
        photo.save(photos.join(format!("{shade}.png"))).unwrap();
    }
    let recipe = RecipeDraft {
        pretrained_model_name_or_path: MODEL.into(),
        revision: Some(REVISION.into()),
        pretrained_vae_name_or_path: Some(VAE.into()),
        tokenizer_name: Some(TOKENIZER.into()),
        concepts: vec![Concept {
            instance_prompt: "photo of zwx dog".into(),
            instance_data_dir: "photos/0".into(),
            class_prompt: None,
            class_data_dir: None,
        }],
        resolution: Some(64),
        max_train_steps: 1,
        prior: None,
        ..RecipeDraft::default()
    };
    std::fs::write(home.path("job/recipe.json"), serde_json::to_vec(&recipe).unwrap()).unwrap();
}

fn start(home: &Home) -> Child {
    let job = home.path("job");
    let mut command = home.trainer(&["job", "--device", "cpu", "--dir", &job.to_string_lossy()]);
    command
        .env("HF_TOKEN", TOKEN)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn events(home: &Home) -> Vec<Event> {
    let text = std::fs::read_to_string(home.path("job/events.jsonl")).unwrap_or_default();
    // The last line may be on its way.
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// `(done, total)` of a model's downloads, in their order.
fn downloads(events: &[Event], of: &str) -> Vec<(u64, u64)> {
    let of_model = |event: &Event| match &event.kind {
        EventKind::Download {
            model,
            done_bytes,
            total_bytes,
            ..
        } if model == of => Some((*done_bytes, *total_bytes)),
        _ => None,
    };
    events.iter().filter_map(of_model).collect()
}

fn assert_nowhere(folder: &Path, secret: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_nowhere(&path, secret);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let is_in = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!is_in, "{} holds the token", path.display());
    }
}

#[test]
fn hub_a_training_tells_of_its_downloads_keeps_the_token_secret_and_exports_the_other_vae() {
    let hub = hub();
    let home = Home::new(&hub);
    make_job(&home);

    // Stopped in the middle of the download: what has come stays.
    hub.slow(true);
    let child = start(&home);
    let since = Instant::now();
    while downloads(&events(&home), MODEL)
        .last()
        .is_none_or(|(done, _)| *done < 100_000)
    {
        assert!(since.elapsed() < PATIENCE, "no download");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::write(home.path("job/stop"), "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(matches!(
        events(&home).last().map(|event| &event.kind),
        Some(EventKind::Stopped { step: 0 })
    ));
    let came = downloads(&events(&home), MODEL).last().map_or(0, |(done, _)| *done);

    hub.slow(false);
    std::fs::remove_dir_all(home.path("job")).unwrap();
    make_job(&home);
    let output = start(&home).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let of_revision = format!("/api/models/{MODEL}/revision/{REVISION}");
    assert!(
        hub.asked().iter().any(|asked| asked.path.starts_with(&of_revision)),
        "another revision was asked for"
    );
    let events = events(&home);
    for model in [MODEL, VAE, TOKENIZER] {
        let told = downloads(&events, model);
        assert!(told.is_sorted(), "{told:?}");
        assert!(told.last().is_some_and(|(done, total)| done == total), "{told:?}");
    }
    assert!(
        downloads(&events, MODEL)[0].0 >= came.min(100_000),
        "it goes on where it stopped"
    );
    assert!(events.iter().any(|event| matches!(event.kind, EventKind::Done { .. })));

    let export = std::fs::read_dir(home.path("job/export"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let export = export
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .unwrap();
    let exported = formats::load(&export.to_string_lossy()).unwrap();
    let vae = formats::load_vae(&crate::golden::dir_of("tiny-sd21").join("vae").to_string_lossy()).unwrap();
    assert_eq!(exported.vae_config, vae.config);
    for (name, tensor) in &vae.tensors {
        assert!(
            crate::golden::support::relmax(&exported.vae[name], tensor) == 0.0,
            "{name}"
        );
    }

    assert!(!said(&output).contains(TOKEN));
    assert_nowhere(home.folder.path(), TOKEN);
}
