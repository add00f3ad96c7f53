//! Packs the built page into the executable: every file as it is, and compressed where that pays.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

#[path = "src/page/rules.rs"]
mod rules;

/// Compressed copies are kept when they are at most this part of the original.
const WORTH: f64 = 0.9;

const NO_PAGE: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>Likeness</title>
<h1>The page is not built in</h1><p>This server was built without its page. Run <code>make build</code>, then start it again.</p>";

fn main() {
    println!("cargo::rerun-if-env-changed=LIKENESS_PAGE_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/page/rules.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let dir = page_dir();
    println!("cargo::rerun-if-changed={}", dir.display());
    let mut files = Vec::new();
    collect(&dir, &dir, &mut files);
    if !files.iter().any(|(name, _)| name == "index.html") {
        files = vec![("index.html".into(), NO_PAGE.as_bytes().to_vec())];
    }
    files.sort();
    let mut table = String::from("pub static FILES: &[PageFile] = &[\n");
    for (number, (name, bytes)) in files.iter().enumerate() {
        let put = |kind: &str, bytes: &[u8]| {
            let path = out.join(format!("{number}.{kind}"));
            fs::write(&path, bytes).expect("OUT_DIR is writable");
            format!("include_bytes!({:?})", path.display().to_string())
        };
        let optional = |kind: &str, packed: Vec<u8>| {
            let pays = (packed.len() as f64) < bytes.len() as f64 * WORTH;
            if pays {
                format!("Some({})", put(kind, &packed))
            } else {
                "None".into()
            }
        };
        let plain = put("plain", bytes);
        let (br, gzip) = (optional("br", brotli(bytes)), optional("gz", gzip(bytes)));
        let hashes = if name.ends_with(".html") {
            rules::inline_script_hashes(bytes)
        } else {
            Vec::new()
        };
        table += &format!(
            "    PageFile {{ name: {name:?}, sha256: {:?}, plain: {plain}, br: {br}, gzip: {gzip}, script_hashes: &{hashes:?} }},\n",
            rules::sha256_hex(bytes),
        );
    }
    table += "];\n";
    fs::write(out.join("page_files.rs"), table).expect("OUT_DIR is writable");
}

/// `$LIKENESS_PAGE_DIR`, or where the page's build leaves it.
fn page_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("LIKENESS_PAGE_DIR") {
        return PathBuf::from(dir);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = root.join("target/page");
    // Cargo would take a folder that is missing for one that changes all the time.
    if let Err(e) = fs::create_dir_all(&dir) {
        println!("cargo::warning={}: {e}", dir.display());
    }
    dir
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.strip_prefix(root).map(|p| p.to_string_lossy().into_owned());
        let Ok(name) = name else { continue };
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            files.push((name, bytes));
        }
    }
}

fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let params = brotli::enc::BrotliEncoderParams {
        quality: 11,
        lgwin: 24,
        size_hint: bytes.len(),
        ..Default::default()
    };
    brotli::BrotliCompress(&mut &bytes[..], &mut packed, &params).expect("memory to memory");
    packed
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory to memory");
    encoder.finish().expect("memory to memory")
}
