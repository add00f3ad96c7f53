//! What the page and the photo worker say to each other. Compiled into both.
//!
//! A message is an array: JSON text first, then what travels beside it without being copied. To the worker: `Ask`, the
//! file. Back: `Answer`, the preview's bytes or null, the PNG's bytes or null.

use app::api::CropSquare;
use app::photo::PhotoFacts;
use serde::{Deserialize, Serialize};

/// Where Trunk puts the worker's start, beside the page.
#[allow(dead_code, reason = "only the page starts the worker")]
pub const WORKER_URL: &str = "./photo_worker_loader.js";
/// Longer side of a preview: sharp in the editor on most screens, 100 to 200 kB as JPEG.
#[allow(dead_code, reason = "only the worker makes previews")]
pub const PREVIEW_PX: u32 = 1280;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The same photo asked about again is not decoded again while the worker still holds it.
    pub photo: u64,
    /// `None` asks for the suggested crop.
    pub crop: Option<CropSquare>,
    /// Side of the PNG.
    pub side_px: u32,
    pub with_preview: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// Sent once, when the worker can take its first message.
    Ready,
    Made(Made),
    /// In the person's words.
    Failed {
        message: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    pub facts: PhotoFacts,
    pub suggested: CropSquare,
    /// Of the file, lower-case hex.
    pub original_sha256: String,
    /// Of the PNG, lower-case hex: its name on the server.
    pub png_sha256: String,
    /// Time spent in here, for the curious.
    pub ms: f64,
}
