//! The words of the starter's pictures, and the combinations of words that training never sees.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// What a drawing shows and how; a row of the data set's `index.json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PictureInfo {
    pub file: String,
    /// Such as `dog face`.
    pub label: String,
    /// Keywords, such as `pet`.
    #[serde(default)]
    pub tags: Vec<String>,
    /// emojibase's group, such as `animals-nature`.
    #[serde(default)]
    pub group: String,
    /// One of [`STYLES`].
    pub style: String,
}

/// Background colours by the names that captions call them.
pub const COLOURS: [(&str, [u8; 3]); 12] = [
    ("white", [250, 250, 248]),
    ("black", [18, 18, 20]),
    ("grey", [128, 130, 134]),
    ("red", [204, 52, 48]),
    ("orange", [240, 140, 40]),
    ("yellow", [246, 214, 72]),
    ("green", [72, 160, 82]),
    ("blue", [58, 110, 210]),
    ("purple", [130, 84, 180]),
    ("pink", [240, 160, 190]),
    ("brown", [120, 82, 54]),
    ("beige", [226, 208, 176]),
];

/// A photograph that shows one thing all over.
pub struct Ground {
    /// Stem of its file's name.
    pub file: &'static str,
    /// How a caption says that something lies on it.
    pub place: &'static str,
    /// Red, green and blue are multiplied by this: the packages carry these photographs in grey.
    pub tint: [f32; 3],
}

pub const GROUNDS: [Ground; 3] = [
    Ground {
        file: "grass",
        place: "on grass",
        tint: [0.75, 1.1, 0.4],
    },
    Ground {
        file: "gravel",
        place: "on gravel",
        tint: [1.04, 1.0, 0.94],
    },
    Ground {
        file: "brick",
        place: "in front of a brick wall",
        tint: [1.2, 0.75, 0.6],
    },
];

/// Ways to say a style; `{}` stands for the article and the thing. Renders are what comes nearest to a photo here, so
/// that a DreamBooth prompt, `photo of ...`, starts from them.
const STYLES: [(&str, &[&str]); 7] = [
    ("3d", &["photo of {}", "photo of {}", "a 3d render of {}", "{}"]),
    ("emoji", &["an emoji of {}", "{}"]),
    ("cartoon", &["a cartoon of {}"]),
    ("flat", &["a flat drawing of {}"]),
    ("retro", &["a retro emoji of {}"]),
    ("icon", &["an icon of {}"]),
    ("sticker", &["a sticker of {}"]),
];

/// Combinations of thing, style and background colour that training never sees, two for each of twenty things. A
/// model that draws them has understood the words one by one.
pub const HELD_OUT: [(&str, &str, &str); 40] = [
    ("dog face", "3d", "red"),
    ("dog face", "flat", "blue"),
    ("cat face", "cartoon", "green"),
    ("cat face", "3d", "purple"),
    ("fox", "flat", "yellow"),
    ("fox", "3d", "blue"),
    ("lion", "cartoon", "purple"),
    ("lion", "3d", "green"),
    ("frog", "3d", "pink"),
    ("frog", "flat", "orange"),
    ("penguin", "3d", "orange"),
    ("penguin", "cartoon", "red"),
    ("elephant", "flat", "green"),
    ("elephant", "3d", "yellow"),
    ("owl", "3d", "beige"),
    ("owl", "cartoon", "blue"),
    ("octopus", "3d", "grey"),
    ("octopus", "flat", "pink"),
    ("red apple", "3d", "blue"),
    ("red apple", "cartoon", "yellow"),
    ("banana", "3d", "black"),
    ("banana", "flat", "purple"),
    ("pizza", "3d", "green"),
    ("pizza", "cartoon", "pink"),
    ("hamburger", "flat", "red"),
    ("hamburger", "3d", "purple"),
    ("automobile", "3d", "yellow"),
    ("automobile", "cartoon", "grey"),
    ("bicycle", "3d", "orange"),
    ("bicycle", "flat", "beige"),
    ("rocket", "3d", "brown"),
    ("rocket", "cartoon", "orange"),
    ("house", "3d", "pink"),
    ("house", "flat", "black"),
    ("guitar", "cartoon", "beige"),
    ("guitar", "3d", "blue"),
    ("key", "3d", "purple"),
    ("key", "flat", "green"),
    ("teapot", "3d", "black"),
    ("teapot", "cartoon", "brown"),
];

/// Things that no evaluation asks for, but that people have photos of.
const FAMILIAR: [&str; 12] = [
    "teddy bear",
    "duck",
    "backpack",
    "amphora",
    "running shoe",
    "rabbit face",
    "bear",
    "horse",
    "teacup without handle",
    "potted plant",
    "bird",
    "wolf",
];

/// Whether this combination is kept for the evaluation. A prompt's `dog` is the whole dog as well as the `dog face`.
pub fn is_held_out(info: &PictureInfo, colour: &str) -> bool {
    let is =
        |held: &(&str, &str, &str)| short(held.0) == short(&info.label) && held.1 == info.style && held.2 == colour;
    HELD_OUT.iter().any(is)
}

/// The twenty nouns that the evaluation asks for.
pub fn nouns() -> Vec<&'static str> {
    let mut nouns = HELD_OUT.map(|(label, ..)| short(label)).to_vec();
    nouns.dedup();
    nouns
}

/// Which of [`nouns`] a caption calls this drawing.
pub fn noun_of(info: &PictureInfo) -> Option<usize> {
    nouns().iter().position(|noun| *noun == short(&info.label))
}

/// The prompt of one of [`HELD_OUT`], said as captions say it.
pub fn prompt((label, style, colour): (&str, &str, &str)) -> String {
    let form = forms(style).first().copied().unwrap_or("{}");
    format!("{} {}", form.replace("{}", &thing(short(label))), on(colour))
}

/// How a caption names a background's colour.
pub fn on(colour: &str) -> String {
    format!("on {} background", thing(colour))
}

/// How often a group's pictures are shown, a picture: people, faces and buildings are many and no one's first prompt;
/// animals, food and objects are what a person photographs. The twenty nouns of the evaluation and what is
/// [`FAMILIAR`] come six times as often as others of their group.
pub fn weight(info: &PictureInfo) -> f32 {
    let often = noun_of(info).is_some() || FAMILIAR.contains(&info.label.as_str());
    let group = match info.group.as_str() {
        "animals-nature" | "food-drink" => 3.0,
        "objects" => 2.5,
        "travel-places" => 2.0,
        "activities" => 1.5,
        "smileys-emotion" => 0.6,
        _ => 0.25,
    };
    if often { 6.0 * group } else { group }
}

/// The caption of a drawing. `place` is a phrase such as `on a red background`.
///
/// A tenth of the captions is empty, so that guidance has an unconditional model to lean on (Ho and Salimans 2022).
pub fn caption(info: &PictureInfo, place: Option<&str>, rng: &mut ChaCha8Rng) -> String {
    if rng.random_bool(0.1) {
        return String::new();
    }
    let forms = forms(&info.style);
    let form = forms[rng.random_range(0..forms.len())];
    let label = if rng.random_bool(0.6) {
        short(&info.label)
    } else {
        &info.label
    };
    let mut words = form.replace("{}", &thing(label));
    if let Some(place) = place.filter(|_| rng.random_bool(0.7)) {
        words = format!("{words} {place}");
    }
    // Keywords tie a thing to its kind: `teapot` to `drink`, `fox` to `animal`.
    if !info.tags.is_empty() && rng.random_bool(0.1) {
        words = format!("{words}, {}", info.tags[rng.random_range(0..info.tags.len())]);
    }
    words
}

fn forms(style: &str) -> &'static [&'static str] {
    let found = STYLES.iter().find(|(name, _)| *name == style);
    found.map_or(&["{}"], |(_, forms)| forms)
}

/// `dog face` is what a person means by `dog`.
fn short(label: &str) -> &str {
    label.strip_suffix(" face").unwrap_or(label)
}

fn thing(label: &str) -> String {
    format!("{} {label}", app::recipe::article(label))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn forty_prompts_over_twenty_things_are_kept_for_the_evaluation() {
        let prompts: BTreeSet<String> = HELD_OUT.iter().map(|held| prompt(*held)).collect();
        let things: BTreeSet<&str> = HELD_OUT.iter().map(|(label, ..)| *label).collect();
        assert_eq!((prompts.len(), things.len()), (40, 20));
        assert!(prompts.contains("photo of a dog on a red background"));
        assert!(prompts.contains("a cartoon of an owl on a blue background"));
        assert!(prompts.contains("photo of a penguin on an orange background"));
        for (_, style, colour) in HELD_OUT {
            assert!(STYLES.iter().any(|(name, _)| *name == style), "{style}");
            assert!(COLOURS.iter().any(|(name, _)| *name == colour), "{colour}");
        }
    }
}
