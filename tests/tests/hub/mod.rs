//! Models of the Hub, from a stand-in that speaks its HTTP: what is downloaded, taken up again, refused, and kept secret.

mod notebook;
mod training;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tests::hub::{Asked, COMMIT, Hub, Repository};

const TOKEN: &str = "hf_aTokenThatMustNotBeSeenAnywhere";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const PATIENCE: Duration = Duration::from_secs(60);

/// The small reference model, with what published repositories have besides.
fn published() -> Repository {
    let mut repository = Repository::of_folder(&super::golden::dir().join("tiny-sd")).unwrap();
    for extra in [
        "README.md",
        "v1-5-pruned.ckpt",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ] {
        repository.files.insert(extra.into(), vec![0; 20_000]);
    }
    repository.license = Some("creativeml-openrail-m");
    repository
}

/// A home with nothing in it, and a trainer that knows no other Hub than ours.
struct Home {
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Home {
    fn new(hub: &Hub) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            endpoint: hub.url.clone(),
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn cache(&self, id: &str) -> PathBuf {
        self.path(&format!("hf/hub/models--{}", id.replace('/', "--")))
    }

    fn trainer(&self, args: &[&str]) -> Command {
        self.program("likeness-trainer", args)
    }

    fn program(&self, name: &str, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(tests::executable(name));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command
            .env("HF_HOME", self.path("hf"))
            .env("HF_ENDPOINT", &self.endpoint);
        command
    }

    fn convert(&self, id: &str) -> Command {
        self.trainer(&[
            "convert",
            "--half",
            "--model_path",
            id,
            "--checkpoint_path",
            "model.safetensors",
        ])
    }

    fn inspect(&self, id: &str) -> Output {
        self.trainer(&["inspect", "--model", id]).output().unwrap()
    }

    fn assert_converted(&self) {
        let got = candle_core::safetensors::load(self.path("model.safetensors"), &candle_core::Device::Cpu).unwrap();
        let wanted = super::golden::dir().join("convert/tiny-sd.half.safetensors");
        let wanted = candle_core::safetensors::load(wanted, &candle_core::Device::Cpu).unwrap();
        assert_eq!(got.len(), wanted.len());
        for (name, tensor) in wanted {
            let difference = super::golden::support::relmax(&got[&name], &tensor);
            assert!(difference == 0.0, "{name}: {difference}");
        }
        std::fs::remove_file(self.path("model.safetensors")).unwrap();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    said(output)
}

#[track_caller]
fn bad(output: &Output, words: &[&str]) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    for word in words {
        assert!(said(output).contains(word), "`{word}` is not in: {}", said(output));
    }
    assert!(!said(output).contains(TOKEN));
}

/// Files asked for, without redirections.
fn files(hub: &Hub) -> Vec<String> {
    let asked = hub.asked();
    let names = asked.iter().filter(|asked| !asked.of_large_file);
    let mut names: Vec<String> = names
        .filter_map(|asked| Some(asked.path.split_once(&format!("/resolve/{COMMIT}/"))?.1.to_owned()))
        .collect();
    names.sort();
    names
}

/// Whether there is a part of a file of `owner/tiny` with more than so many bytes.
fn has_come(home: &Home, bytes: u64) -> bool {
    let blobs = std::fs::read_dir(home.cache("owner/tiny").join("blobs"));
    let mut paths = blobs.into_iter().flatten().flatten().map(|blob| blob.path());
    paths.any(|path| {
        let is_part = path.extension().is_some_and(|extension| extension == "incomplete");
        is_part && path.metadata().is_ok_and(|found| found.len() > bytes)
    })
}

#[test]
fn hub_a_model_is_downloaded_once_with_only_what_it_needs() {
    let hub = Hub::start([("owner/tiny", published())]).unwrap();
    let home = Home::new(&hub);
    good(&home.convert("owner/tiny").output().unwrap());
    home.assert_converted();
    let wanted: Vec<String> = Repository::of_folder(&super::golden::dir().join("tiny-sd"))
        .unwrap()
        .files
        .into_keys()
        .collect();
    assert_eq!(files(&hub), wanted);

    // The cache is the Hub tools' own: a commit's folder of links to blobs named by their hash.
    let cache = home.cache("owner/tiny");
    assert_eq!(std::fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    let unet = cache.join("snapshots").join(COMMIT).join(UNET);
    let target = std::fs::read_link(&unet).unwrap();
    assert!(target.starts_with("../../../blobs"), "{}", target.display());
    assert_eq!(std::fs::read(&unet).unwrap(), published().files[UNET]);

    // Again, and without the Hub.
    good(&home.convert("owner/tiny").output().unwrap());
    home.assert_converted();
    assert_eq!(files(&hub), [""; 0]);
    hub.go();
    let words = good(&home.convert("owner/tiny").output().unwrap());
    assert!(words.contains("the copy of owner/tiny on this disk is used"), "{words}");
    home.assert_converted();
    let mut offline = home.convert("owner/tiny");
    good(&offline.env("HF_HUB_OFFLINE", "1").output().unwrap());
    std::fs::remove_file(&unet).unwrap();
    bad(
        &home.convert("owner/tiny").output().unwrap(),
        &["owner/tiny", "does not answer"],
    );
}

#[test]
fn hub_a_download_goes_on_where_it_was_killed_or_broke() {
    let hub = Hub::start([("owner/tiny", published())]).unwrap();
    let home = Home::new(&hub);
    hub.slow(true);
    let mut child = home.convert("owner/tiny").stderr(Stdio::null()).spawn().unwrap();
    let since = Instant::now();
    while !has_come(&home, 100_000) {
        assert!(since.elapsed() < PATIENCE, "nothing came");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    hub.slow(false);
    hub.asked();
    // And every connection breaks after a while.
    hub.break_after(150_000);
    good(&home.convert("owner/tiny").output().unwrap());
    home.assert_converted();
    let starts: Vec<u64> = hub
        .asked()
        .iter()
        .filter_map(|asked| {
            asked
                .range
                .as_deref()?
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        })
        .collect();
    assert!(starts.len() > 5, "{starts:?}");
    assert!(starts.iter().all(|start| *start > 0), "{starts:?}");
    assert!(!has_come(&home, 0), "no part is left");
}

#[test]
fn hub_refusals_say_what_to_do() {
    let gated = Repository {
        gated: true,
        ..published()
    };
    let private = Repository {
        token: Some(TOKEN),
        ..published()
    };
    let hub = Hub::start([
        ("owner/tiny", published()),
        ("owner/gated", gated),
        ("owner/private", private),
        ("owner/lora", Repository::default()),
    ])
    .unwrap();
    let home = Home::new(&hub);
    let convert = |id: &str| home.convert(id).output().unwrap();
    bad(
        &convert("owner/none"),
        &["owner/none: the Hub has no model of this name"],
    );
    bad(&convert("owner/lora"), &["owner/lora", "unet/config.json"]);
    bad(
        &convert("owner/gated"),
        &["owner/gated: its owners ask for consent", "/owner/gated"],
    );
    bad(
        &convert("owner/private"),
        &["owner/private: the Hub wants a token", "HF_TOKEN"],
    );
    let with = |token: &str| home.convert("owner/private").env("HF_TOKEN", token).output().unwrap();
    bad(&with("hf_wrong"), &["owner/private: the Hub does not accept the token"]);
    good(&with(TOKEN));
    home.assert_converted();

    // The host that large files are on gets no token.
    let asked = hub.asked();
    assert!(asked.iter().any(|asked| asked.of_large_file));
    assert!(
        asked
            .iter()
            .all(|asked| !asked.of_large_file || asked.authorization.is_none())
    );

    // The token file of the Hub's own tools.
    std::fs::remove_dir_all(home.cache("owner/private")).unwrap();
    std::fs::write(home.path("hf/token"), format!("{TOKEN}\n")).unwrap();
    good(&convert("owner/private"));

    let problem = |id: &str| -> serde_json::Value {
        let output = home.inspect(id);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(problem("owner/none")["code"], "hub_not_found");
    assert_eq!(problem("owner/gated")["code"], "hub_gated");
    assert_eq!(problem("owner/lora")["code"], "hub_no_model");
}

#[test]
fn hub_revisions_and_names_that_are_gone_lead_to_what_took_their_place() {
    let mut moved = published();
    let half = moved.files["vae/diffusion_pytorch_model.safetensors"].clone();
    moved
        .files
        .insert("vae/diffusion_pytorch_model.fp16.safetensors".into(), half);
    moved.revisions = vec!["v2".into()];
    let hub = Hub::start([("stable-diffusion-v1-5/stable-diffusion-v1-5", moved)]).unwrap();
    let home = Home::new(&hub);
    let sample = |revision: &str| {
        let model = "runwayml/stable-diffusion-v1-5";
        let args = [
            "sample",
            "--model",
            model,
            "--prompt",
            "a dog",
            "--steps",
            "1",
            "--num_samples",
            "1",
        ];
        let mut command = home.trainer(&args);
        command.args(["--width", "64", "--height", "64", "--revision", revision]);
        command.output().unwrap()
    };
    let words = good(&sample("fp16"));
    assert!(
        words.contains("stable-diffusion-v1-5/stable-diffusion-v1-5, which took its place"),
        "{words}"
    );
    assert!(words.contains("no revision `fp16` any more"), "{words}");
    let asked = files(&hub);
    assert!(
        asked.contains(&"vae/diffusion_pytorch_model.fp16.safetensors".to_owned()),
        "{asked:?}"
    );
    good(&sample("v2"));
    bad(&sample("v3"), &["no revision `v3`"]);

    let convert = |revision: &str| {
        let mut command = home.convert("stable-diffusion-v1-5/stable-diffusion-v1-5");
        command.args(["--revision", revision]).output().unwrap()
    };
    hub.asked();
    good(&convert("v2"));
    let of_v2 = |asked: &Asked| asked.path.contains("/revision/v2");
    assert!(hub.asked().iter().any(of_v2), "another revision was asked for");
    bad(&convert("v3"), &["no revision `v3`"]);

    // Without an answer the branch that is gone means what it meant last time.
    hub.go();
    let words = good(&sample("fp16"));
    assert!(words.contains("on this disk is used"), "{words}");
    bad(&sample("v3"), &["does not answer"]);
}

#[test]
fn hub_two_that_want_the_same_model_download_it_once() {
    let hub = Hub::start([("owner/tiny", published())]).unwrap();
    let home = Home::new(&hub);
    hub.slow(true);
    let convert = |to: &str| {
        let args = [
            "convert",
            "--half",
            "--model_path",
            "owner/tiny",
            "--checkpoint_path",
            to,
        ];
        home.trainer(&args).stderr(Stdio::piped()).spawn().unwrap()
    };
    let first = convert("a.safetensors");
    let since = Instant::now();
    while !has_come(&home, 100_000) {
        assert!(since.elapsed() < PATIENCE, "nothing came");
        std::thread::sleep(Duration::from_millis(5));
    }
    let others = [convert("b.safetensors"), convert("c.safetensors")];
    for child in std::iter::once(first).chain(others) {
        good(&child.wait_with_output().unwrap());
    }
    let asked = files(&hub);
    assert!(asked.windows(2).all(|pair| pair[0] != pair[1]), "twice: {asked:?}");
    let [a, b, c] = ["a", "b", "c"].map(|name| std::fs::read(home.path(&format!("{name}.safetensors"))).unwrap());
    assert!(a == b && b == c);
    assert!(!has_come(&home, 0), "no part is left");
}

#[test]
fn hub_a_model_is_described_before_its_weights_come() {
    let hub = Hub::start([("owner/tiny", published())]).unwrap();
    let home = Home::new(&hub);
    let output = home.inspect("owner/tiny");
    good(&output);
    let model: app::api::ModelInfo = serde_json::from_slice(&output.stdout).unwrap();
    let facts = model.hub.unwrap();
    assert_eq!(facts.license.as_deref(), Some("creativeml-openrail-m"));
    let needed = Repository::of_folder(&super::golden::dir().join("tiny-sd"))
        .unwrap()
        .files;
    assert_eq!(
        facts.bytes,
        needed.values().map(|content| content.len() as u64).sum::<u64>()
    );
    assert!(files(&hub).iter().all(|name| name.ends_with(".json")));
    // As when all of it is here.
    let local = home.inspect(&super::golden::dir().join("tiny-sd").to_string_lossy());
    let local: app::api::ModelInfo = serde_json::from_slice(&local.stdout).unwrap();
    assert_eq!(
        (model.parameters, model.resolution),
        (local.parameters, local.resolution)
    );
    good(&home.convert("owner/tiny").output().unwrap());
    let model: app::api::ModelInfo = serde_json::from_slice(&home.inspect("owner/tiny").stdout).unwrap();
    assert_eq!(model.hub.map(|facts| facts.missing_bytes), Some(0));
}

#[test]
fn hub_a_file_that_is_not_what_was_announced_is_thrown_away() {
    let mut repository = published();
    // The stand-in announces a wrong hash for this name.
    let weights = repository.files.remove(UNET).unwrap();
    repository.files.remove("unet/diffusion_pytorch_model.bin");
    let shard = "unet/diffusion_pytorch_model-broken-of-00001.safetensors";
    repository.files.insert(shard.into(), weights);
    let index = r#"{"weight_map":{"conv_in.bias":"diffusion_pytorch_model-broken-of-00001.safetensors"}}"#;
    repository.files.insert(format!("{UNET}.index.json"), index.into());
    let hub = Hub::start([("owner/tiny", repository)]).unwrap();
    let home = Home::new(&hub);
    bad(
        &home.convert("owner/tiny").output().unwrap(),
        &["broken-of-00001", "SHA-256"],
    );
    let blobs = std::fs::read_dir(home.cache("owner/tiny").join("blobs")).unwrap();
    let left: Vec<_> = blobs
        .map(|blob| blob.unwrap().path())
        .filter(|path| path.extension().is_some())
        .collect();
    assert!(left.is_empty(), "{left:?} is kept");
}
