//! What the transparent parts of a photo are laid on.

use serde::{Deserialize, Serialize};

/// Written `white`, `black`, `gray`, `#rgb`, `#rrggbb`, or `drop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AlphaBackground {
    /// Red, green, blue.
    Color([u8; 3]),
    /// Transparency is ignored and what lies below it shows, as in the tutorial's script.
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no background; give white, black, gray, a colour such as #ffe0c0, or drop")]
pub struct NotABackground(String);

const WHITE: [u8; 3] = [255; 3];
const BLACK: [u8; 3] = [0; 3];
/// CSS's.
const GRAY: [u8; 3] = [128; 3];

impl Default for AlphaBackground {
    /// As on the page.
    fn default() -> Self {
        Self::Color(WHITE)
    }
}

impl AlphaBackground {
    /// A colour with some opacity, on this background.
    pub fn under(self, color: [u8; 3], opacity: u8) -> [u8; 3] {
        let Self::Color(background) = self else { return color };
        let alpha = u32::from(opacity);
        let mixed = |over: u8, under: u8| (u32::from(over) * alpha + u32::from(under) * (255 - alpha) + 127) / 255;
        [0, 1, 2].map(|i| mixed(color[i], background[i]) as u8)
    }
}

impl std::str::FromStr for AlphaBackground {
    type Err = NotABackground;
    fn from_str(text: &str) -> Result<Self, NotABackground> {
        let bad = || NotABackground(text.to_owned());
        let word = text.trim().to_ascii_lowercase();
        let color = match word.as_str() {
            "drop" => return Ok(Self::Drop),
            "white" => WHITE,
            "black" => BLACK,
            "gray" | "grey" => GRAY,
            other => {
                let digits: Option<Vec<u8>> = other
                    .strip_prefix('#')
                    .ok_or_else(bad)?
                    .chars()
                    .map(|c| c.to_digit(16).map(|d| d as u8))
                    .collect();
                match digits.ok_or_else(bad)?.as_slice() {
                    [r, g, b] => [r * 17, g * 17, b * 17],
                    [r, r2, g, g2, b, b2] => [r * 16 + r2, g * 16 + g2, b * 16 + b2],
                    _ => return Err(bad()),
                }
            }
        };
        Ok(Self::Color(color))
    }
}

impl std::fmt::Display for AlphaBackground {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Color(WHITE) => f.write_str("white"),
            Self::Color(BLACK) => f.write_str("black"),
            Self::Color([r, g, b]) => write!(f, "#{r:02x}{g:02x}{b:02x}"),
        }
    }
}

impl TryFrom<String> for AlphaBackground {
    type Error = NotABackground;
    fn try_from(text: String) -> Result<Self, NotABackground> {
        text.parse()
    }
}

impl From<AlphaBackground> for String {
    fn from(background: AlphaBackground) -> Self {
        background.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_colours_are_read_and_written_back() {
        for (text, color) in [
            ("white", [255, 255, 255]),
            ("black", [0, 0, 0]),
            ("#ffe0c0", [255, 224, 192]),
            ("#808080", [128, 128, 128]),
        ] {
            let background: AlphaBackground = text.parse().expect(text);
            assert_eq!(background, AlphaBackground::Color(color));
            assert_eq!(background.to_string(), text);
        }
        assert_eq!("#F0a".parse(), Ok(AlphaBackground::Color([255, 0, 170])));
        assert_eq!("grey".parse::<AlphaBackground>(), "gray".parse());
        assert_eq!("drop".parse(), Ok(AlphaBackground::Drop));
        for bad in ["", "pink-ish", "#12", "#gggggg", "ffffff"] {
            assert!(bad.parse::<AlphaBackground>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_half_there_is_half_the_background() {
        let white = AlphaBackground::default();
        assert_eq!(white.under([255, 0, 100], 0), [255; 3]);
        assert_eq!(white.under([255, 0, 100], 255), [255, 0, 100]);
        assert_eq!(white.under([255, 0, 100], 51), [255, 204, 224]);
        assert_eq!(AlphaBackground::Drop.under([255, 0, 100], 0), [255, 0, 100]);
    }
}
