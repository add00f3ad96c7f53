//! One calm line on standard error that says where a run is.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use app::event::{Event, EventKind, Overfit, Phase};
use app::run::MemoryPlan;
use app::words;
use trainer::events::Listener;

pub struct Progress {
    terminal: bool,
    /// Steps between lines where there is no terminal to rewrite one.
    log_interval: u32,
    steps: u32,
    /// First step seen in this process, and when.
    began: Option<(u32, Instant)>,
    /// A line is on the terminal without its end.
    open: bool,
}

impl Progress {
    pub fn new(log_interval: u32) -> Self {
        Self {
            log_interval: log_interval.max(1),
            terminal: std::io::stderr().is_terminal(),
            steps: 0,
            began: None,
            open: false,
        }
    }

    /// A passing line: rewritten on a terminal, left out elsewhere unless `keep`.
    fn pass(&mut self, text: &str, keep: bool) {
        let mut err = std::io::stderr().lock();
        // That nobody watches must not end a run.
        let _shown = if self.terminal {
            self.open = true;
            write!(err, "\r\x1b[K{text}").and_then(|()| err.flush())
        } else if keep {
            writeln!(err, "{text}")
        } else {
            Ok(())
        };
    }

    fn line(&mut self, text: &str) {
        let mut err = std::io::stderr().lock();
        let start = if std::mem::take(&mut self.open) { "\r\x1b[K" } else { "" };
        let _shown = writeln!(err, "{start}{text}");
    }
}

impl Listener for Progress {
    fn heard(&mut self, event: &Event, _json: &str) {
        match &event.kind {
            EventKind::Started { device, rewound_to, .. } => {
                let from = match rewound_to {
                    Some(step) if *step > 0 => format!(", continuing after step {step}"),
                    _ => String::new(),
                };
                self.line(&format!("training on {device}{from}"));
            }
            EventKind::Memory {
                peak_bytes,
                limit_bytes,
                parts,
            } => {
                let (peak, limit) = (*peak_bytes, *limit_bytes);
                let parts: Vec<String> = (parts.iter())
                    .map(|part| format!("{} {}", part.name, words::memory(part.bytes)))
                    .collect();
                let plan = words::memory_plan(&MemoryPlan { peak, limit });
                self.line(&format!("memory at most {plan}: {}", parts.join(", ")));
            }
            EventKind::Plan {
                steps,
                trained_parameters,
                photos,
                class_images,
                micro_batches_per_step,
                held_out,
                ..
            } => {
                self.steps = *steps;
                let millions = *trained_parameters as f64 / 1e6;
                let batches = match micro_batches_per_step {
                    1 => String::new(),
                    many => format!(" of {many} batches each"),
                };
                self.line(&format!(
                    "{photos} photos, {class_images} class images, {steps} steps{batches}, {millions:.1} million parameters"
                ));
                if let Some(photo) = held_out {
                    self.line(&format!("held out, so not trained on: {photo}"));
                }
            }
            EventKind::Phase { phase } => {
                let words = match phase {
                    Phase::Loading => "loading the base model",
                    Phase::ClassImages => "making class images",
                    Phase::CachingLatents => "encoding photos",
                    Phase::Training => return,
                    Phase::Sampling => "drawing samples",
                    Phase::Exporting => "saving the model",
                };
                self.pass(words, true);
            }
            EventKind::Download {
                model,
                done_bytes,
                total_bytes,
                ..
            } => {
                let (done, total) = (words::bytes(*done_bytes), words::bytes(*total_bytes));
                let text = format!("downloading {model}: {done} of {total}");
                self.pass(&text, done_bytes == total_bytes);
            }
            EventKind::ClassImage { done, total, .. } => {
                self.pass(&format!("class image {done} of {total}"), done == total);
            }
            EventKind::Step { step, loss, ms, .. } => {
                let (first, since) = *self.began.get_or_insert((*step, Instant::now()));
                let done = step.saturating_sub(first);
                let left = match done {
                    0 => String::new(),
                    _ => {
                        let each = since.elapsed().as_secs_f64() / f64::from(done);
                        format!(", {:.0} s left", each * f64::from(self.steps.saturating_sub(*step)))
                    }
                };
                let text = format!("step {step}/{}  loss {loss:.4}  {ms:.0} ms{left}", self.steps);
                self.pass(&text, step % self.log_interval == 0 || *step == self.steps);
            }
            EventKind::Sample { step, index, count, .. } => {
                self.pass(&format!("sample {} of {count} after step {step}", index + 1), false);
            }
            EventKind::Meters {
                likeness,
                drift,
                diversity,
                overfit,
                ..
            } => {
                let told =
                    |name: &str, value: &Option<f32>| value.map(|v| format!(", {name} {v:.2}")).unwrap_or_default();
                let of_class = told("drift", drift) + &told("diversity", diversity);
                let by_heart = told("overfit", &overfit.map(Overfit::share));
                self.line(&format!("likeness {likeness:.2}{of_class}{by_heart}"));
            }
            EventKind::Warning { message, .. } => self.line(&format!("warning: {message}")),
            EventKind::Done { step } => self.line(&format!("done after {step} steps")),
            EventKind::Stopped { step } => self.line(&format!("stopped after step {step}; the state is saved")),
            EventKind::Failed { failure } => {
                self.line(&format!("error: {}", failure.message));
                if let Some(hint) = &failure.hint {
                    self.line(hint);
                }
            }
            EventKind::Queued | EventKind::StateSaved { .. } | EventKind::Exported { .. } => {}
        }
    }
}
