//! A run as its viewers see it: the fold of its events. The page's store and the server's summaries both use it, so
//! they cannot disagree.

use std::collections::BTreeMap;

use crate::event::{Event, EventKind, ExportFile, Overfit, Phase};
use crate::job::{Failure, JobState};

/// One point of the loss chart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPoint {
    pub step: u32,
    pub loss: f32,
    pub instance_loss: f32,
    pub prior_loss: Option<f32>,
    pub learning_rate: f64,
    pub ms: f32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SampleShot {
    pub index: u32,
    pub prompt: String,
    pub seed: u64,
    pub width: u32,
    pub height: u32,
    /// Path below the job folder.
    pub file: String,
    pub preview: String,
}

/// What a round of samples shows; see `EventKind::Meters`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    pub likeness: f32,
    pub drift: Option<f32>,
    pub overfit: Option<Overfit>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub done: u32,
    pub total: u32,
}

/// What is coming from the Hub, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Download {
    pub model: String,
    pub done: u64,
    pub total: u64,
}

/// The most that a run will use of its device's memory, and what there is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    pub peak: u64,
    pub limit: Option<u64>,
}

/// Fold of a job's events.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub last_seq: u64,
    pub state: JobState,
    pub phase: Option<Phase>,
    pub device: Option<String>,
    /// `cpu` or `cuda`.
    pub trainer: Option<String>,
    /// Steps planned; 0 until the plan is known.
    pub steps: u32,
    pub trained_parameters: u64,
    pub points: Vec<StepPoint>,
    /// The last download; while the base model is read, what is waited for.
    pub download: Option<Download>,
    /// Updates left out because a gradient overflowed.
    pub skipped_updates: u64,
    pub class_images: Progress,
    /// Paths below the job folder.
    pub class_image_files: Vec<String>,
    /// By step; within a step ordered by index.
    pub samples: BTreeMap<u32, Vec<SampleShot>>,
    pub sample_steps: Vec<u32>,
    /// The photo that is not trained on, by its path below the job folder.
    pub held_out: Option<String>,
    /// By step: likeness, drift where there is a class, overfit where a photo is held out.
    pub readings: BTreeMap<u32, Reading>,
    pub saved_step: Option<u32>,
    /// What was planned of the device's memory.
    pub memory: Option<MemoryPlan>,
    pub exported: Vec<ExportFile>,
    pub exported_step: Option<u32>,
    pub warnings: Vec<String>,
    pub started_ms: Option<u64>,
    pub last_ms: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            last_seq: 0,
            state: JobState::Queued,
            phase: None,
            device: None,
            trainer: None,
            steps: 0,
            trained_parameters: 0,
            points: Vec::new(),
            download: None,
            skipped_updates: 0,
            class_images: Progress::default(),
            class_image_files: Vec::new(),
            samples: BTreeMap::new(),
            sample_steps: Vec::new(),
            held_out: None,
            readings: BTreeMap::new(),
            saved_step: None,
            memory: None,
            exported: Vec::new(),
            exported_step: None,
            warnings: Vec::new(),
            started_ms: None,
            last_ms: 0,
        }
    }
}

/// The next event was not the one after the last: ask for a replay from `Run::last_seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub expected: u64,
    pub got: u64,
}

impl Run {
    pub fn from_events<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Self, Gap> {
        let mut run = Self::default();
        for event in events {
            run.apply(event)?;
        }
        Ok(run)
    }

    /// Takes the next event in. An event seen before changes nothing.
    pub fn apply(&mut self, event: &Event) -> Result<(), Gap> {
        if event.seq <= self.last_seq {
            return Ok(());
        }
        if event.seq != self.last_seq + 1 {
            return Err(Gap {
                expected: self.last_seq + 1,
                got: event.seq,
            });
        }
        self.last_seq = event.seq;
        self.last_ms = event.at_ms;
        match &event.kind {
            EventKind::Queued => self.state = JobState::Queued,
            EventKind::Started {
                trainer,
                device,
                rewound_to,
            } => {
                self.state = JobState::Running;
                self.device = Some(device.clone());
                self.trainer = Some(trainer.clone());
                self.started_ms.get_or_insert(event.at_ms);
                if let Some(kept) = rewound_to {
                    self.points.retain(|p| p.step <= *kept);
                    self.samples.retain(|step, _| step <= kept);
                    self.readings.retain(|step, _| step <= kept);
                }
            }
            EventKind::Phase { phase } => self.phase = Some(*phase),
            EventKind::Download {
                model,
                done_bytes,
                total_bytes,
                ..
            } => {
                self.download = Some(Download {
                    model: model.clone(),
                    done: *done_bytes,
                    total: *total_bytes,
                });
            }
            EventKind::ClassImage { done, total, file, .. } => {
                self.class_images = Progress {
                    done: *done,
                    total: *total,
                };
                if !self.class_image_files.contains(file) {
                    self.class_image_files.push(file.clone());
                }
            }
            EventKind::Memory {
                peak_bytes,
                limit_bytes,
                ..
            } => {
                self.memory = Some(MemoryPlan {
                    peak: *peak_bytes,
                    limit: *limit_bytes,
                });
            }
            EventKind::Plan {
                steps,
                trained_parameters,
                sample_steps,
                held_out,
                ..
            } => {
                self.steps = *steps;
                self.trained_parameters = *trained_parameters;
                self.sample_steps.clone_from(sample_steps);
                self.held_out.clone_from(held_out);
            }
            EventKind::Step {
                step,
                loss,
                instance_loss,
                prior_loss,
                learning_rate,
                skipped_updates,
                ms,
                ..
            } => {
                self.skipped_updates = *skipped_updates;
                self.points.push(StepPoint {
                    step: *step,
                    loss: *loss,
                    instance_loss: *instance_loss,
                    prior_loss: *prior_loss,
                    learning_rate: *learning_rate,
                    ms: *ms,
                });
            }
            EventKind::Sample {
                step,
                index,
                prompt,
                seed,
                width,
                height,
                file,
                preview,
                ..
            } => {
                let round = self.samples.entry(*step).or_default();
                round.retain(|shot| shot.index != *index);
                round.push(SampleShot {
                    index: *index,
                    prompt: prompt.clone(),
                    seed: *seed,
                    width: *width,
                    height: *height,
                    file: file.clone(),
                    preview: preview.clone(),
                });
                round.sort_by_key(|shot| shot.index);
            }
            EventKind::Meters {
                step,
                likeness,
                drift,
                overfit,
                ..
            } => {
                let reading = Reading {
                    likeness: *likeness,
                    drift: *drift,
                    overfit: *overfit,
                };
                self.readings.insert(*step, reading);
            }
            EventKind::StateSaved { step } => self.saved_step = Some(*step),
            EventKind::Exported { step, files } => {
                self.exported_step = Some(*step);
                self.exported.clone_from(files);
            }
            EventKind::Warning { message, .. } => self.warnings.push(message.clone()),
            EventKind::Done { .. } => self.state = JobState::Done,
            EventKind::Stopped { .. } => self.state = JobState::Stopped,
            EventKind::Failed { failure } => {
                self.state = JobState::Failed {
                    failure: Failure::clone(failure),
                }
            }
        }
        Ok(())
    }

    /// What is being downloaded now.
    pub fn downloading(&self) -> Option<&Download> {
        let coming = self.download.as_ref().filter(|download| download.done < download.total);
        coming.filter(|_| self.phase == Some(Phase::Loading))
    }

    /// Steps done.
    pub fn step(&self) -> u32 {
        self.points.last().map_or(0, |p| p.step)
    }

    /// Median wall time of the last 50 steps. `None` before the first.
    pub fn ms_per_step(&self) -> Option<f32> {
        let recent = &self.points[self.points.len().saturating_sub(50)..];
        let mut ms: Vec<f32> = recent.iter().map(|p| p.ms).collect();
        ms.sort_by(f32::total_cmp);
        ms.get(ms.len() / 2).copied()
    }

    /// Time the remaining steps take at the present speed, without samples and export.
    pub fn remaining_ms(&self) -> Option<f32> {
        let left = self.steps.checked_sub(self.step())?;
        Some(self.ms_per_step()? * left as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(seq: u64, step: u32) -> Event {
        let kind = EventKind::Step {
            step,
            loss: 1.0,
            instance_loss: 0.5,
            prior_loss: Some(0.5),
            learning_rate: 1e-4,
            grad_norm: Some(1.0),
            loss_scale: None,
            skipped_updates: 0,
            ms: 10.0 * step as f32,
        };
        Event { seq, at_ms: seq, kind }
    }

    fn started(seq: u64, rewound_to: Option<u32>) -> Event {
        let kind = EventKind::Started {
            trainer: "cpu".into(),
            device: "CPU".into(),
            rewound_to,
        };
        Event { seq, at_ms: seq, kind }
    }

    #[test]
    fn a_resumed_run_folds_the_steps_after_its_state_away() {
        let events = [
            started(1, None),
            step(2, 1),
            step(3, 2),
            step(4, 3),
            started(5, Some(1)),
            step(6, 2),
        ];
        let run = Run::from_events(&events).expect("no gap");
        assert_eq!(run.points.iter().map(|p| p.step).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(run.step(), 2);
    }

    #[test]
    fn a_download_is_shown_until_all_is_here() {
        let mut run = Run::default();
        let mut then = |seq, kind| {
            run.apply(&Event { seq, at_ms: seq, kind }).expect("in order");
            run.downloading().cloned()
        };
        let download = |done_bytes| EventKind::Download {
            model: "a/b".into(),
            file: "unet/config.json".into(),
            done_bytes,
            total_bytes: 10,
        };
        then(1, EventKind::Phase { phase: Phase::Loading });
        let coming = then(2, download(4)).expect("coming");
        assert_eq!((coming.done, coming.total), (4, 10));
        assert_eq!(then(3, download(10)), None);
        then(4, download(4));
        assert_eq!(then(5, EventKind::Phase { phase: Phase::Training }), None);
    }

    #[test]
    fn a_gap_is_refused_and_a_repeat_is_ignored() {
        let mut run = Run::default();
        run.apply(&started(1, None)).expect("first");
        run.apply(&started(1, None)).expect("repeat");
        assert_eq!(run.apply(&step(3, 1)), Err(Gap { expected: 2, got: 3 }));
        assert_eq!(run.last_seq, 1);
    }

    #[test]
    fn time_left_uses_the_median_step() {
        let mut run = Run::from_events(&[step(1, 1), step(2, 2), step(3, 3)]).expect("no gap");
        run.steps = 5;
        assert_eq!(run.ms_per_step(), Some(20.0));
        assert_eq!(run.remaining_ms(), Some(40.0));
    }
}
