//! What goes over the wire between the page and the server, and how the server names what is wrong.
//!
//! | method, path | body -> answer |
//! | --- | --- |
//! | `GET /api/server` | `ServerInfo` |
//! | `POST /api/models/inspect` | `InspectModel` -> `ModelInfo` |
//! | `POST /api/vaes/inspect` | `InspectVae` -> `VaeInfo` |
//! | `PUT /api/hub/token` | `HubToken` -> 204; kept on the server, and never given out again |
//! | `DELETE /api/hub/token` | 204 |
//! | `HEAD /api/photos/{sha256}` | is this crop here already? 200 or 404 |
//! | `PUT /api/photos/{sha256}` | PNG bytes, header `x-photo-origin` = JSON `PhotoOrigin` -> `StoredPhoto` (201 new, 200 known) |
//! | `GET /api/photos/{sha256}` | PNG bytes |
//! | `POST /api/jobs` | `NewJob` -> 201 `JobDetail` |
//! | `GET /api/jobs` | `Vec<JobSummary>`, newest first |
//! | `GET /api/jobs/{id}` | `JobDetail` |
//! | `POST /api/jobs/{id}/stop` | `JobSummary` |
//! | `DELETE /api/jobs/{id}` | 204; 409 while it runs |
//! | `GET /api/jobs/{id}/events?after=N` | `Vec<Event>` |
//! | `GET /api/jobs/{id}/files/{path}` | samples, class images and photos by the paths in events |
//! | `GET /api/jobs/{id}/export/{name}` | a download: length, ranges, `etag` and `x-sha256` |
//! | `GET /api/ws` | WebSocket: `ToServer` and `ToPage` as JSON text, previews as binary frames |
//! | `GET /api/openapi.json` | this, for programs |

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::job::{JobId, JobSummary};
use crate::recipe::RecipeDraft;

/// Largest accepted upload in bytes: a 1024x1024 RGB PNG with room to spare.
pub const MAX_PHOTO_BYTES: usize = 8 << 20;
/// Most photos in one job.
pub const MAX_PHOTOS: usize = 1000;
/// Header of a photo upload that carries `PhotoOrigin` as ASCII JSON.
pub const ORIGIN_HEADER: &str = "x-photo-origin";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerInfo {
    pub version: String,
    pub device: DeviceInfo,
    /// The starter first.
    pub models: Vec<ModelInfo>,
    /// A token for the Hub was entered, or is in the server's environment.
    #[serde(default)]
    pub has_hub_token: bool,
}

/// What trains, and why that one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `cpu` or `cuda`: which trainer is used.
    pub trainer: String,
    /// Such as `CPU, 8 threads` or `NVIDIA RTX 3060`.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// One sentence.
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectModel {
    pub pretrained_model_name_or_path: String,
    /// Of a Hub id; `None` means `main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectVae {
    pub pretrained_vae_name_or_path: String,
}

/// A token for the Hub, on its way to the server.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubToken {
    pub token: String,
}

/// Never the token.
impl std::fmt::Debug for HubToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HubToken(***)")
    }
}

/// A base model as a person chooses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub pretrained_model_name_or_path: String,
    pub title: String,
    /// Training side in pixels, and that of its samples.
    pub resolution: u32,
    /// Parameters of U-Net and text encoder.
    pub parameters: u64,
    /// Of the latents that its U-Net takes.
    pub latent_channels: u32,
    /// A checkpoint of the standard architecture loads in any Stable Diffusion WebUI; the starter's does not.
    pub loads_in_webuis: bool,
    /// What suits this model for a first run.
    pub defaults: RecipeDraft,
    /// Of a model that the Hub has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubFacts>,
}

/// A VAE in the place of a base model's own, as a person chooses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeInfo {
    pub pretrained_vae_name_or_path: String,
    pub parameters: u64,
    /// Of the latents that it makes.
    pub latent_channels: u32,
    /// As of a model: whether a checkpoint with it can.
    pub loads_in_webuis: bool,
    /// Of a VAE that the Hub has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubFacts>,
}

impl VaeInfo {
    /// Why it cannot take the place of the model's own, in words.
    pub fn misfit(&self, model: &ModelInfo) -> Option<String> {
        let (has, takes) = (self.latent_channels, model.latent_channels);
        let (vae, model) = (&self.pretrained_vae_name_or_path, &model.title);
        (has != takes).then(|| format!("{vae}: its latents have {has} channels, and {model} takes {takes}"))
    }
}

/// What to know before a model is downloaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HubFacts {
    /// The address of its card, for people.
    pub card: String,
    /// As the model's card names it, such as `creativeml-openrail-m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Of all files that training needs.
    pub bytes: u64,
    /// Of those that are not on the server's disk yet.
    pub missing_bytes: u64,
    /// Which was asked for; `None` means `main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// Why the Hub does not give a model: codes of `ApiProblem`.
pub mod hub_codes {
    pub const NOT_FOUND: &str = "hub_not_found";
    pub const TOKEN: &str = "hub_token";
    pub const GATED: &str = "hub_gated";
    pub const OFFLINE: &str = "hub_offline";
    pub const NO_MODEL: &str = "hub_no_model";
    pub const DOWNLOAD: &str = "hub_download";

    pub const ALL: [&str; 6] = [NOT_FOUND, TOKEN, GATED, OFFLINE, NO_MODEL, DOWNLOAD];

    /// Whether a token may help.
    pub fn asks_for_token(code: &str) -> bool {
        [NOT_FOUND, TOKEN, GATED].contains(&code)
    }
}

/// Where an uploaded crop came from; travels with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhotoOrigin {
    /// Of the original file, lower-case hex.
    pub sha256: String,
    /// The original's file name, percent-encoded where not ASCII.
    pub name: String,
    /// Size of the upright original in pixels.
    pub width: u32,
    pub height: u32,
    /// The crop in upright original pixels.
    pub crop: CropSquare,
}

/// A square in pixels of the upright photo.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CropSquare {
    pub x: f64,
    pub y: f64,
    pub side: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredPhoto {
    /// Of the PNG, lower-case hex: its name.
    pub sha256: String,
    /// Side in pixels.
    pub side: u32,
    pub bytes: u64,
    pub origin: PhotoOrigin,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// `concepts[i].instance_data_dir` and `class_data_dir` are filled in by the server.
    pub recipe: RecipeDraft,
    /// For each concept its photos' sha256, in order.
    pub photos: Vec<Vec<String>>,
}

/// Body of every error answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ApiProblem,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiProblem {
    /// Stable, for programs.
    pub code: String,
    pub message: String,
    /// Which field of the request, such as `recipe.learning_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// All problems when there are several; the first is repeated above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ApiProblem>,
}

/// Text frames from the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToServer {
    /// Send this job's events after `after`, then all that follow. Replaces the job watched before.
    Watch {
        job: JobId,
        after: u64,
    },
    Unwatch,
}

/// Text frames to the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToPage {
    /// The list of jobs, at once on connecting and after every change of a state.
    Jobs { jobs: Vec<JobSummary> },
    /// Events of the watched job, in order, several at a time on replay.
    Events { job: JobId, events: Vec<Event> },
    /// The watched job does not exist (any more).
    Gone { job: JobId },
}

/// Header of a binary frame: a sample's preview.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreviewHeader {
    pub job: JobId,
    /// `seq` of the sample's event, which was sent before.
    pub seq: u64,
    pub step: u32,
    pub index: u32,
    /// Such as `image/jpeg`.
    pub mime: String,
}

/// A binary frame: length of the header (u32, little endian), the header as JSON, the image file.
pub fn encode_preview(header: &PreviewHeader, image: &[u8]) -> Vec<u8> {
    let json = serde_json::to_vec(header).unwrap_or_default();
    let length = u32::try_from(json.len()).unwrap_or(0);
    [&length.to_le_bytes()[..], &json, image].concat()
}

/// Reads what `encode_preview` wrote. `None` when the frame is not one.
pub fn decode_preview(frame: &[u8]) -> Option<(PreviewHeader, &[u8])> {
    let (length, rest) = frame.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (json, image) = rest.split_at_checked(length)?;
    Some((serde_json::from_slice(json).ok()?, image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_frame_reads_back_and_a_torn_one_does_not() {
        let header = PreviewHeader {
            job: JobId::parse("dog-1").expect("good"),
            seq: 7,
            step: 100,
            index: 2,
            mime: "image/jpeg".into(),
        };
        let frame = encode_preview(&header, b"jpeg");
        assert_eq!(decode_preview(&frame), Some((header, &b"jpeg"[..])));
        assert_eq!(decode_preview(&frame[..10]), None);
        assert_eq!(decode_preview(&[]), None);
    }
}
