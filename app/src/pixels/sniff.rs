//! What a file is, by its first bytes: names and browsers' types are often wrong.

use serde::{Deserialize, Serialize};

/// Kinds of file people drop. Only the first three can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    Jpeg,
    Png,
    Webp,
    Heic,
    Avif,
    Gif,
    TiffOrRaw,
    Bmp,
    Svg,
    Pdf,
    JpegXl,
    Photoshop,
    Video,
    Zip,
    Unknown,
}

impl FileKind {
    /// By the first bytes; a kilobyte is enough.
    pub fn sniff(bytes: &[u8]) -> Self {
        let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        let starts: [(&[u8], Self); 13] = [
            (b"\xff\xd8\xff", Self::Jpeg),
            (b"\x89PNG\r\n\x1a\n", Self::Png),
            (b"GIF8", Self::Gif),
            (b"II*\0", Self::TiffOrRaw),
            (b"MM\0*", Self::TiffOrRaw),
            (b"FUJIFILMCCD-RAW", Self::TiffOrRaw),
            (b"%PDF", Self::Pdf),
            (b"8BPS", Self::Photoshop),
            (b"\xff\x0a", Self::JpegXl),
            (b"\0\0\0\x0cJXL ", Self::JpegXl),
            (b"\x1aE\xdf\xa3", Self::Video),
            (b"PK\x03\x04", Self::Zip),
            (b"BM", Self::Bmp),
        ];
        if let Some((_, kind)) = starts.iter().find(|(magic, _)| at(0, magic)) {
            return *kind;
        }
        if at(0, b"RIFF") {
            return if at(8, b"WEBP") { Self::Webp } else { Self::Video };
        }
        if at(4, b"ftyp") {
            // ISO base media file: the brand tells pictures from videos.
            return match bytes.get(8..12).unwrap_or_default() {
                b"avif" | b"avis" => Self::Avif,
                b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1" => Self::Heic,
                b"crx " => Self::TiffOrRaw,
                _ => Self::Video,
            };
        }
        let head = &bytes[..bytes.len().min(1024)];
        if head.windows(4).any(|w| w == b"<svg") {
            return Self::Svg;
        }
        Self::Unknown
    }

    /// In a person's words, with the article where one is needed.
    pub fn words(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Webp => "WebP",
            Self::Heic => "HEIC, as iPhones store photos",
            Self::Avif => "AVIF",
            Self::Gif => "GIF",
            Self::TiffOrRaw => "TIFF or a camera's raw format",
            Self::Bmp => "BMP",
            Self::Svg => "SVG, a drawing",
            Self::Pdf => "PDF, a document",
            Self::JpegXl => "JPEG XL",
            Self::Photoshop => "a Photoshop file",
            Self::Video => "a video",
            Self::Zip => "a zip archive",
            Self::Unknown => "unknown format",
        }
    }

    /// What to do with a file of this kind so that it can be used.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::Jpeg | Self::Png | Self::Webp => "Drop it again.",
            Self::Video => "Save a few frames of it as JPEG and drop those.",
            Self::Zip => "Unpack it and drop the photos inside.",
            Self::Unknown => "Drop a JPEG, PNG or WebP.",
            _ => "Export it as JPEG and drop it again.",
        }
    }
}

/// Does a JPEG go on to its end? Decoders fill what is missing with grey and say nothing, which would be trained on.
///
/// Walks the markers to the end of the first picture: a thumbnail inside EXIF has an end of its own, and phones append
/// a second picture or a video.
pub(super) fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // A marker: any number of 0xff, then its code.
        while bytes.get(at) == Some(&0xff) && bytes.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        let (Some(0xff), Some(&code)) = (bytes.get(at), bytes.get(at + 1)) else {
            return false;
        };
        match code {
            0xd9 => return true,
            0x01 | 0xd0..=0xd7 => at += 2,
            _ => {
                let Some(length) = bytes.get(at + 2..at + 4) else {
                    return false;
                };
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                if code == 0xda {
                    // Entropy-coded data: runs to the next marker that is neither stuffing nor a restart.
                    loop {
                        let Some(rest) = bytes.get(at..) else { return false };
                        let Some(next) = rest.iter().position(|&b| b == 0xff) else {
                            return false;
                        };
                        at += next;
                        match bytes.get(at + 1) {
                            Some(0x00 | 0xd0..=0xd7) => at += 2,
                            Some(0xff) => at += 1,
                            Some(_) => break,
                            None => return false,
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let cases: [(&[u8], FileKind); 12] = [
            (b"\xff\xd8\xff\xe0\0\x10JFIF", FileKind::Jpeg),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", FileKind::Png),
            (b"RIFF\x10\0\0\0WEBPVP8 ", FileKind::Webp),
            (b"RIFF\x10\0\0\0AVI LIST", FileKind::Video),
            (b"\0\0\0\x18ftypheic\0\0\0\0", FileKind::Heic),
            (b"\0\0\0\x18ftypavif\0\0\0\0", FileKind::Avif),
            (b"\0\0\0\x14ftypqt  \0\0\0\0", FileKind::Video),
            (b"GIF89a", FileKind::Gif),
            (b"II*\0\x08\0\0\0", FileKind::TiffOrRaw),
            (b"<?xml version=\"1.0\"?>\n<svg xmlns=", FileKind::Svg),
            (b"%PDF-1.7", FileKind::Pdf),
            (b"hello", FileKind::Unknown),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(FileKind::sniff(bytes), wanted);
        }
        assert_eq!(FileKind::sniff(b""), FileKind::Unknown);
    }
}
