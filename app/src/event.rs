//! Everything a run reports, in order, one JSON object a line in the job folder's `events.jsonl`.
//!
//! Whoever holds the job's lock file writes the log: the trainer while it lives, the server before and after it. An
//! event is on disk before it is on the wire, and `seq` counts job-wide from 1 without gaps, also across restarts, so
//! a viewer that asks for what came after the last number it saw misses nothing.

use serde::{Deserialize, Serialize};

use crate::job::Failure;

/// One line of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Job-wide, from 1, no gaps.
    pub seq: u64,
    /// Milliseconds since the Unix epoch, by the writer's clock.
    pub at_ms: u64,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What a run is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading the base model.
    Loading,
    /// Drawing pictures of the class with the base model, for prior preservation.
    ClassImages,
    /// Encoding photos and class images with the VAE.
    CachingLatents,
    Training,
    Sampling,
    Exporting,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// The job was accepted; written by the server.
    Queued,
    /// A trainer process took the job, at first or after a crash.
    Started {
        /// Which build runs: `cpu` or `cuda`.
        trainer: String,
        /// The device in words, such as `CPU, 2 threads` or `NVIDIA RTX 3060, 12 GiB`.
        device: String,
        /// Training continues after this step: viewers fold away the steps after it. `None` on a first start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rewound_to: Option<u32>,
    },
    Phase {
        phase: Phase,
    },
    /// The base model or its VAE is coming from the Hub. A few a second at most; the last says that all is here.
    Download {
        /// The id that was asked for.
        model: String,
        /// The file that is coming.
        file: String,
        done_bytes: u64,
        /// Of all files that are needed.
        total_bytes: u64,
    },
    /// One class image is on disk.
    ClassImage {
        concept: usize,
        done: u32,
        total: u32,
        /// Path below the job folder.
        file: String,
    },
    /// Before anything is put on the device: the most that will be in use of its memory.
    Memory {
        peak_bytes: u64,
        /// What there is; absent where the system does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit_bytes: Option<u64>,
        /// What the peak is made of.
        parts: Vec<MemoryPart>,
    },
    /// Once, before the first step: what will be trained.
    Plan {
        steps: u32,
        trained_parameters: u64,
        trained_tensors: u32,
        photos: u32,
        class_images: u32,
        /// Batches whose gradients each step adds up.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        micro_batches_per_step: u32,
        /// Samples come after these steps (0 = the base model, before training).
        sample_steps: Vec<u32>,
        /// The photo that is not trained on, for `Overfit`: its path below the job folder.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_out: Option<String>,
    },
    /// One step is done: an optimizer update, or of a strict run a micro-batch. `step` counts from 1.
    Step {
        step: u32,
        /// `instance_loss + weight * prior_loss`, in f32, mean over the step's micro-batches; of a strict run the mean
        /// since the run began, as the tutorial's script logs it. A loss that overflowed is `null`, read as NaN.
        #[serde(deserialize_with = "number_or_nan")]
        loss: f32,
        #[serde(deserialize_with = "number_or_nan")]
        instance_loss: f32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prior_loss: Option<f32>,
        learning_rate: f64,
        /// L2 norm over all trained tensors before clipping; absent without an update.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grad_norm: Option<f32>,
        /// What the loss is multiplied by in fp16, so that small gradients do not vanish.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        loss_scale: Option<f64>,
        /// Updates since the run began that were left out because a gradient overflowed.
        #[serde(default, skip_serializing_if = "is_zero")]
        skipped_updates: u64,
        /// Wall time of this step.
        ms: f32,
    },
    /// One sample image is on disk; its preview is beside it.
    Sample {
        step: u32,
        index: u32,
        /// Images in this round.
        count: u32,
        prompt: String,
        seed: u64,
        width: u32,
        height: u32,
        /// Path below the job folder, full size, PNG.
        file: String,
        /// Path below the job folder, at most 256 px, JPEG. Sent as a binary frame after this event.
        preview: String,
    },
    /// What the samples of `step` show, by the base model's own features.
    Meters {
        step: u32,
        /// How like the photos the samples are: 0 as any other of its kind, 1 as alike as the photos themselves.
        likeness: f32,
        /// How far pictures of the class have moved towards the subject: 0 not at all, 1 all the way. Absent without
        /// a class prompt.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drift: Option<f32>,
        /// How far pictures of the class lie from each other: 1 as far as before training, 0 all are alike. Absent
        /// without a class prompt.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        diversity: Option<f32>,
        /// Absent where no photo is held out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        overfit: Option<Overfit>,
    },
    /// The training state is on disk: a crash from here on loses nothing before this step.
    StateSaved {
        step: u32,
    },
    Exported {
        step: u32,
        files: Vec<ExportFile>,
    },
    /// It went on, but not as asked.
    Warning {
        code: String,
        message: String,
    },
    Done {
        step: u32,
    },
    /// Stopped by the user; what there is was saved and exported.
    Stopped {
        step: u32,
    },
    Failed {
        #[serde(flatten)]
        failure: Failure,
    },
}

fn number_or_nan<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f32::NAN))
}

fn one() -> u32 {
    1
}

fn is_one(count: &u32) -> bool {
    *count == 1
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl EventKind {
    /// Nothing follows this event.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Stopped { .. } | Self::Failed { .. })
    }
}

/// What some of a device's memory is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    pub name: String,
    pub bytes: u64,
}

/// Losses on photos at the same noise and timesteps in every round, as parts of what they were before training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overfit {
    /// On the photo that is not trained on.
    pub held_out_loss: f32,
    /// On photos that are, in the mean.
    pub training_loss: f32,
}

impl Overfit {
    /// How much of what the model knows of its photos it knows of them alone: 0 where the one that it never saw gains as
    /// much, 1 where they are learned by heart.
    pub fn share(self) -> f32 {
        match self.held_out_loss > 0.0 {
            true => 1.0 - self.training_loss / self.held_out_loss,
            false => 0.0,
        }
    }
}

/// One downloadable file of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportFile {
    /// File name below the job's `export/`.
    pub name: String,
    pub format: ExportFormat,
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// Original Stable Diffusion single file, `.safetensors`.
    Safetensors,
    /// Original Stable Diffusion single file, a PyTorch pickle in a zip.
    Ckpt,
    /// What was learned alone, a `.safetensors` as kohya's trainer writes it.
    Lora,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Old logs must load: the JSON of each kind is a promise.
    #[test]
    fn events_keep_their_json() {
        let cases = [
            (EventKind::Queued, r#"{"seq":1,"at_ms":5,"type":"queued"}"#),
            (
                EventKind::Step {
                    step: 3,
                    loss: 0.5,
                    instance_loss: 0.25,
                    prior_loss: Some(0.25),
                    learning_rate: 1e-6,
                    grad_norm: None,
                    loss_scale: None,
                    skipped_updates: 0,
                    ms: 12.5,
                },
                r#"{"seq":1,"at_ms":5,"type":"step","step":3,"loss":0.5,"instance_loss":0.25,"prior_loss":0.25,"learning_rate":1e-6,"ms":12.5}"#,
            ),
            (
                EventKind::Step {
                    step: 3,
                    loss: 0.5,
                    instance_loss: 0.5,
                    prior_loss: None,
                    learning_rate: 1e-6,
                    grad_norm: Some(1.5),
                    loss_scale: Some(32768.0),
                    skipped_updates: 1,
                    ms: 12.5,
                },
                r#"{"seq":1,"at_ms":5,"type":"step","step":3,"loss":0.5,"instance_loss":0.5,"learning_rate":1e-6,"grad_norm":1.5,"loss_scale":32768.0,"skipped_updates":1,"ms":12.5}"#,
            ),
            (
                EventKind::Failed {
                    failure: Failure {
                        code: "out_of_memory".into(),
                        message: "no memory left".into(),
                        hint: None,
                    },
                },
                r#"{"seq":1,"at_ms":5,"type":"failed","code":"out_of_memory","message":"no memory left"}"#,
            ),
            (
                EventKind::Memory {
                    peak_bytes: 10,
                    limit_bytes: None,
                    parts: vec![MemoryPart {
                        name: "weights".into(),
                        bytes: 10,
                    }],
                },
                r#"{"seq":1,"at_ms":5,"type":"memory","peak_bytes":10,"parts":[{"name":"weights","bytes":10}]}"#,
            ),
            (
                EventKind::Phase {
                    phase: Phase::ClassImages,
                },
                r#"{"seq":1,"at_ms":5,"type":"phase","phase":"class_images"}"#,
            ),
        ];
        for (kind, json) in cases {
            let event = Event { seq: 1, at_ms: 5, kind };
            assert_eq!(serde_json::to_string(&event).expect("serialises"), json);
            assert_eq!(serde_json::from_str::<Event>(json).expect("parses"), event);
        }
    }

    #[test]
    fn meters_of_before_a_photo_was_held_out_still_load() {
        let old = r#"{"seq":1,"at_ms":5,"type":"meters","step":100,"likeness":0.5}"#;
        let event: Event = serde_json::from_str(old).expect("parses");
        assert!(matches!(event.kind, EventKind::Meters { overfit: None, .. }));
        assert_eq!(serde_json::to_string(&event).expect("serialises"), old);
        let new = old.replace("0.5}", r#"0.5,"overfit":{"held_out_loss":0.75,"training_loss":0.5}}"#);
        let event: Event = serde_json::from_str(&new).expect("parses");
        assert_eq!(serde_json::to_string(&event).expect("serialises"), new);
    }

    #[test]
    fn what_holds_for_the_photos_alone_is_learned_by_heart() {
        let share = |held_out_loss, training_loss| {
            let overfit = Overfit {
                held_out_loss,
                training_loss,
            };
            overfit.share()
        };
        assert_eq!(share(1.0, 1.0), 0.0, "before training");
        assert_eq!(share(0.8, 0.8), 0.0, "the one that it never saw gains as much");
        assert_eq!(share(1.0, 0.75), 0.25);
        assert!(share(1.2, 0.6) > share(1.0, 0.6), "it knows less of it than before");
        assert_eq!(share(0.0, 0.0), 0.0);
    }

    #[test]
    fn a_loss_that_overflowed_does_not_break_the_log() {
        let json = r#"{"seq":1,"at_ms":5,"type":"step","step":3,"loss":null,"instance_loss":null,"learning_rate":1e-6,"ms":12.5}"#;
        let event: Event = serde_json::from_str(json).expect("parses");
        assert!(matches!(event.kind, EventKind::Step { loss, .. } if loss.is_nan()));
        assert_eq!(serde_json::to_string(&event).expect("serialises"), json);
    }
}
