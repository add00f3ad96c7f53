//! Builds the starter model's data set from freely licensed packages: emoji of seven sets as 128 px pictures with alpha
//! and their words, and photographs for the autoencoder.
//!
//! `starter_data PACKAGES OUT`: PACKAGES holds the unpacked packages that `scripts/starter-data.sh` fetches, a folder
//! each; OUT receives `pictures/*.png`, `photos/*.jpg`, `index.json` (see `trainer::pretrain::data`) and `prompts.txt`,
//! the prompts that training keeps for the evaluation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::imageops::{FilterType, resize};
use image::{ImageReader, RgbaImage};
use resvg::{tiny_skia, usvg};
use serde_json::{Value, json};
use trainer::pretrain::captions;

/// Side of a picture in pixels.
const SIDE_PX: u32 = 128;
/// Longest side of a kept photograph in pixels.
const PHOTO_PX: u32 = 1024;
/// Photographs that training never sees, by file stem: for measuring the autoencoder.
const HELD_OUT_PHOTOS: [&str; 2] = ["coffee", "nagasaki-boats"];
/// Groups of emojibase that show things, not flags and symbols. Skin tones are entries of their own within an entry
/// and are left out: each person comes once.
const GROUPS: [&str; 7] = [
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
];
/// Subgroups of those groups that are signs rather than things.
const NOT_THINGS: [&str; 4] = ["time", "emotion", "heart", "sound"];

/// A thing that several sets draw.
struct Thing {
    /// Such as `dog face`.
    label: String,
    tags: Vec<String>,
    group: String,
    subgroup: String,
    /// Lower-case code points joined by `-`.
    code: String,
}

/// Sets of SVG drawings, and the word their style goes by in captions.
const SVG_SETS: [(&str, &str); 6] = [
    ("iconify-json-noto-1", "emoji"),
    ("iconify-json-noto-v1", "retro"),
    ("iconify-json-emojione", "icon"),
    ("iconify-json-streamline-emojis", "sticker"),
    ("iconify-json-twemoji", "cartoon"),
    ("iconify-json-fluent-emoji-flat", "flat"),
];

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [packages, out] = args.as_slice() else {
        bail!("usage: starter_data PACKAGES OUT")
    };
    for folder in ["pictures", "photos"] {
        std::fs::create_dir_all(out.join(folder))?;
    }
    let things = things(&find(packages, "emojibase-data")?)?;
    let mut pictures = Vec::new();
    draw_svg_sets(packages, out, &things, &mut pictures)?;
    copy_renders(packages, out, &things, &mut pictures)?;
    let (held_out, photos): (Vec<String>, Vec<String>) = copy_photos(&packages.join("photos"), out)?
        .into_iter()
        .partition(|file| {
            let stem = Path::new(file).file_stem().unwrap_or_default();
            HELD_OUT_PHOTOS.iter().any(|name| stem == *name)
        });
    let index = json!({ "pictures": pictures, "photos": photos, "held_out_photos": held_out });
    std::fs::write(out.join("index.json"), serde_json::to_vec(&index)?)?;
    let prompts = captions::HELD_OUT.map(captions::prompt).join("\n");
    std::fs::write(out.join("prompts.txt"), prompts + "\n")?;
    println!(
        "{} pictures of {} things, {} photographs and {} held out",
        pictures.len(),
        things.len(),
        photos.len(),
        held_out.len()
    );
    Ok(())
}

/// The unpacked package whose folder's name starts with `name`.
fn find(packages: &Path, name: &str) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(packages)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name)))
        .collect();
    found.sort();
    let folder = found
        .into_iter()
        .next()
        .with_context(|| format!("package {name} is not in {}", packages.display()))?;
    Ok(folder.join("package"))
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

fn things(emojibase: &Path) -> Result<Vec<Thing>> {
    let groups = read_json(&emojibase.join("meta/groups.json"))?;
    let data = read_json(&emojibase.join("en/data.json"))?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut things = Vec::new();
    for entry in data.as_array().context("data.json is not a list")? {
        let (Some(group), Some(subgroup)) = (entry["group"].as_u64(), entry["subgroup"].as_u64()) else {
            continue;
        };
        let group = text(&groups["groups"][group.to_string()]);
        let subgroup = text(&groups["subgroups"][subgroup.to_string()]);
        if !GROUPS.contains(&group.as_str()) || NOT_THINGS.contains(&subgroup.as_str()) {
            continue;
        }
        things.push(Thing {
            label: text(&entry["label"]).replace(':', ""),
            tags: entry["tags"].as_array().into_iter().flatten().map(text).collect(),
            code: text(&entry["hexcode"]).to_lowercase(),
            group,
            subgroup,
        });
    }
    Ok(things)
}

fn caption_words(thing: &Thing, style: &str, file: &str) -> Value {
    json!({ "file": file, "label": thing.label, "tags": thing.tags, "group": thing.group,
            "subgroup": thing.subgroup, "style": style })
}

fn draw_svg_sets(packages: &Path, out: &Path, things: &[Thing], pictures: &mut Vec<Value>) -> Result<()> {
    for (package, style) in SVG_SETS {
        let set = read_json(&find(packages, package)?.join("icons.json"))?;
        let default_px = set["width"].as_f64().unwrap_or(32.0);
        for thing in things {
            let name = slug(&thing.label);
            let Some(icon) = icon(&set, &name) else { continue };
            let width = icon["width"].as_f64().unwrap_or(default_px);
            let height = icon["height"]
                .as_f64()
                .unwrap_or(set["height"].as_f64().unwrap_or(width));
            let body = icon["body"].as_str().unwrap_or_default();
            let svg = format!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">{body}</svg>"#
            );
            let Ok(tree) = usvg::Tree::from_str(&svg, &usvg::Options::default()) else {
                continue;
            };
            let file = format!("pictures/{style}-{name}.png");
            draw(&tree)?.save(out.join(&file))?;
            pictures.push(caption_words(thing, style, &file));
        }
    }
    Ok(())
}

/// An icon by name or through one alias.
fn icon<'a>(set: &'a Value, name: &str) -> Option<&'a Value> {
    let icons = &set["icons"];
    let parent = set["aliases"][name]["parent"].as_str().unwrap_or(name);
    icons.get(parent)
}

fn draw(tree: &usvg::Tree) -> Result<RgbaImage> {
    let mut pixmap = tiny_skia::Pixmap::new(SIDE_PX, SIDE_PX).context("no pixmap")?;
    let scale = SIDE_PX as f32 / tree.size().width().max(tree.size().height());
    resvg::render(
        tree,
        tiny_skia::Transform::from_scale(scale, scale),
        &mut pixmap.as_mut(),
    );
    let straight = pixmap.pixels().iter().flat_map(|p| {
        let c = p.demultiply();
        [c.red(), c.green(), c.blue(), c.alpha()]
    });
    RgbaImage::from_raw(SIDE_PX, SIDE_PX, straight.collect()).context("picture has a wrong size")
}

/// The 3D renders are WebP files named by code point, with or without the emoji presentation selector.
fn copy_renders(packages: &Path, out: &Path, things: &[Thing], pictures: &mut Vec<Value>) -> Result<()> {
    let assets = find(packages, "lobehub-fluent-emoji-3d")?.join("assets");
    for thing in things {
        let plain = thing.code.replace("-fe0f", "");
        let candidates = [thing.code.clone(), plain.clone(), format!("{plain}-fe0f")];
        let Some(path) = candidates
            .iter()
            .map(|c| assets.join(format!("{c}.webp")))
            .find(|p| p.is_file())
        else {
            continue;
        };
        let render = ImageReader::open(&path)?
            .decode()
            .with_context(|| path.display().to_string())?
            .to_rgba8();
        let file = format!("pictures/3d-{}.png", slug(&thing.label));
        resize(&render, SIDE_PX, SIDE_PX, FilterType::Lanczos3).save(out.join(&file))?;
        pictures.push(caption_words(thing, "3d", &file));
    }
    Ok(())
}

fn copy_photos(folder: &Path, out: &Path) -> Result<Vec<String>> {
    let paths: BTreeSet<PathBuf> = std::fs::read_dir(folder)?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    let mut seen = BTreeMap::new();
    for path in paths {
        let Ok(photo) = ImageReader::open(&path)?.with_guessed_format()?.decode() else {
            continue;
        };
        let stem = path
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default();
        let file = format!("photos/{stem}.jpg");
        let smaller = if photo.width().max(photo.height()) > PHOTO_PX {
            photo.resize(PHOTO_PX, PHOTO_PX, FilterType::Lanczos3)
        } else {
            photo
        };
        let mut bytes = std::io::BufWriter::new(std::fs::File::create(out.join(&file))?);
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 92);
        smaller.to_rgb8().write_with_encoder(encoder)?;
        seen.insert(file, ());
    }
    Ok(seen.into_keys().collect())
}

/// `Dog face` -> `dog-face`, as the icon sets name their icons.
fn slug(label: &str) -> String {
    let mut out = String::new();
    for c in label.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            _ if out.ends_with('-') || out.is_empty() => {}
            _ => out.push('-'),
        }
    }
    out.trim_end_matches('-').to_owned()
}
