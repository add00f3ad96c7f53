//! What the server accepts as a training photo: a square PNG of a side that models train at, and nothing else in it.
//! The page makes such files; the server trusts none of them.

use std::io::Cursor;

/// Smallest and largest side in pixels.
pub const MIN_SIDE_PX: u32 = 64;
pub const MAX_SIDE_PX: u32 = 1024;
/// Sides are multiples of this: the VAE halves a picture three times.
pub const SIDE_MULTIPLE_PX: u32 = 8;

const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
/// Chunks that say how to show the pixels. Everything else can carry a place, a name or a camera's number.
const PLAIN_CHUNKS: [&[u8; 4]; 10] = [
    b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"sBIT",
];

/// Why a file is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UploadProblem {
    #[error("this is not a PNG file; upload the crop as PNG")]
    NotPng,
    #[error("the PNG is damaged: {0}")]
    Damaged(String),
    #[error("the photo is {width} x {height} pixels; crop it to a square")]
    NotSquare { width: u32, height: u32 },
    #[error("the photo's side is {side_px} pixels; it must be a multiple of 8 from 64 to 1024")]
    Side { side_px: u32 },
    #[error("the PNG carries metadata (chunk `{chunk}`); save it without")]
    Metadata { chunk: String },
    #[error("{bytes} bytes follow the end of the PNG; save it again")]
    TrailingBytes { bytes: usize },
}

impl UploadProblem {
    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotPng => "not_png",
            Self::Damaged(_) => "damaged_png",
            Self::NotSquare { .. } => "not_square",
            Self::Side { .. } => "side",
            Self::Metadata { .. } => "metadata",
            Self::TrailingBytes { .. } => "trailing_bytes",
        }
    }
}

/// A file that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedPhoto {
    pub side_px: u32,
}

/// Judges an uploaded file: container first, then size, then every pixel is decoded once.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check(file: &[u8]) -> Result<AcceptedPhoto, UploadProblem> {
    check_chunks(file)?;
    let damaged = |e: image::ImageError| UploadProblem::Damaged(e.to_string());
    let mut reader = image::ImageReader::with_format(Cursor::new(file), image::ImageFormat::Png);
    reader.no_limits();
    let (width, height) = reader.into_dimensions().map_err(damaged)?;
    if width != height {
        return Err(UploadProblem::NotSquare { width, height });
    }
    let side_px = width;
    if !(MIN_SIDE_PX..=MAX_SIDE_PX).contains(&side_px) || side_px % SIDE_MULTIPLE_PX != 0 {
        return Err(UploadProblem::Side { side_px });
    }
    // The side is bounded, so is what decoding allocates.
    image::load_from_memory_with_format(file, image::ImageFormat::Png).map_err(damaged)?;
    Ok(AcceptedPhoto { side_px })
}

/// Walks the chunks: only plain ones, a proper end, nothing after it.
fn check_chunks(file: &[u8]) -> Result<(), UploadProblem> {
    let cut = || UploadProblem::Damaged("it ends too early".into());
    let mut rest = file.strip_prefix(SIGNATURE).ok_or(UploadProblem::NotPng)?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (kind, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        if !PLAIN_CHUNKS.contains(&kind) {
            let chunk = String::from_utf8_lossy(kind).escape_default().to_string();
            return Err(UploadProblem::Metadata { chunk });
        }
        let length = u32::from_be_bytes(*length) as usize;
        // The checksum is 4 bytes; the decoder verifies it.
        let (_, after) = after.split_at_checked(length.saturating_add(4)).ok_or_else(cut)?;
        rest = after;
        if kind == b"IEND" {
            return match rest.len() {
                0 => Ok(()),
                bytes => Err(UploadProblem::TrailingBytes { bytes }),
            };
        }
    }
}

/// The name of a stored file: 64 lower-case hex digits.
pub fn is_sha256_name(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
        image.write_to(&mut file, image::ImageFormat::Png).expect("encodes");
        file.into_inner()
    }

    /// Puts a chunk between the header (33 bytes) and the rest.
    fn with_chunk(file: &[u8], kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u32).to_be_bytes();
        [&file[..33], &length, kind, data, &[0; 4], &file[33..]].concat()
    }

    #[test]
    fn a_square_png_is_accepted() {
        assert_eq!(check(&png(64, 64)), Ok(AcceptedPhoto { side_px: 64 }));
        assert_eq!(check(&png(1024, 1024)), Ok(AcceptedPhoto { side_px: 1024 }));
    }

    #[test]
    fn wrong_sizes_are_named() {
        assert_eq!(
            check(&png(64, 72)),
            Err(UploadProblem::NotSquare { width: 64, height: 72 })
        );
        for side_px in [8, 56, 100, 1032] {
            assert_eq!(check(&png(side_px, side_px)), Err(UploadProblem::Side { side_px }));
        }
    }

    #[test]
    fn metadata_is_refused_by_name() {
        for kind in [b"eXIf", b"tEXt", b"iTXt", b"zTXt", b"iCCP", b"tIME", b"ruSt"] {
            let chunk = String::from_utf8_lossy(kind).into_owned();
            let file = with_chunk(&png(64, 64), kind, b"GPS");
            assert_eq!(check(&file), Err(UploadProblem::Metadata { chunk }));
        }
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let file = png(64, 64);
        assert_eq!(check(b"GIF89a"), Err(UploadProblem::NotPng));
        assert_eq!(check(&[]), Err(UploadProblem::NotPng));
        for length in 8..file.len() {
            assert!(check(&file[..length]).is_err(), "cut to {length}");
        }
        let mut flipped = file.clone();
        flipped[60] ^= 1;
        assert!(matches!(check(&flipped), Err(UploadProblem::Damaged(_))));
        let longer = [&file[..], b"PK"].concat();
        assert_eq!(check(&longer), Err(UploadProblem::TrailingBytes { bytes: 2 }));
        // A length that would wrap around.
        let mut huge = file;
        huge[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(check(&huge).is_err());
    }

    #[test]
    fn names_are_lower_case_hex() {
        assert!(is_sha256_name(&"0a".repeat(32)));
        for bad in ["", "0A", &"0A".repeat(32), &"0".repeat(63), &"../".repeat(21)] {
            assert!(!is_sha256_name(bad), "{bad}");
        }
    }
}
