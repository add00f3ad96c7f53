//! What a run will need of its device's memory: told before anything is put there, refused where there is too little,
//! and where there would be with other settings that change no more than time and rounding, made to fit.

use app::event::{EventKind, MemoryPart};
use app::recipe::{Precision, Recipe};

use super::error::TrainError;
use super::latents::ENCODE_ROWS;
use super::learner::Learning;
use super::run::{LOW_MEMORY, Photos, Resume, Run};
use crate::device::{Device, Memory};
use crate::engine::adapter::Adapter;
use crate::engine::footprint::{Footprint, Kept};
use crate::engine::ir::{ParamTable, Program};
use crate::engine::nets::diffusion::Form;
use crate::engine::nets::error::NetworkError;
use crate::engine::nets::programs::{Map, Plan, Task};
use crate::engine::session::{EngineError, LowMemory, Moments};
use crate::pipeline::LATENT_PX;

/// All that decides what a run needs.
#[derive(Clone, Debug)]
pub struct Demand {
    pub learning: Learning,
    /// As they are before anything is said of how they learn.
    pub networks: Plan,
    /// Photos of a batch, and what a batch has for each: itself, and a class image where there is prior preservation.
    pub batch: usize,
    pub rows_each: usize,
    pub side_px: usize,
    /// Pictures drawn together; 0 where none are.
    pub drawn: usize,
    /// Photos encoded together.
    pub encoded: usize,
    /// They are encoded anew while the run learns.
    pub encodes_late: bool,
    /// Gradients of several batches are added up.
    pub accumulates: bool,
    /// A running average of the weights is kept.
    pub averages: bool,
}

/// A setting that needs less memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    EightBit,
    Checkpointing,
    /// With both of them.
    LowMemory,
    OneByOne,
    FrozenTextEncoder,
    Side(usize),
    Lora,
}

/// What a run turns on by itself where it would not fit otherwise, one after the other: these change how exactly it
/// learns, and the run says so. The others change what is learned, and are left to whoever asks.
const LADDER: [Switch; 3] = [Switch::EightBit, Switch::Checkpointing, Switch::LowMemory];
const LORA_RANK: usize = 8;
/// Sides that are proposed where a model's own is too much.
const SMALLER_SIDES: [usize; 3] = [512, 384, 256];

impl Switch {
    /// Of a switch that is on or off, its name.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::EightBit => Some("use_8bit_adam"),
            Self::Checkpointing => Some("gradient_checkpointing"),
            Self::LowMemory => Some("low_memory"),
            Self::OneByOne | Self::FrozenTextEncoder | Self::Side(_) | Self::Lora => None,
        }
    }

    /// As the command line has it.
    pub fn flag(self) -> String {
        match self {
            Self::EightBit => "--use_8bit_adam".into(),
            Self::Checkpointing => "--gradient_checkpointing".into(),
            Self::LowMemory => "--low_memory".into(),
            Self::OneByOne => "--train_batch_size=1".into(),
            Self::FrozenTextEncoder => "--train_text_encoder=false".into(),
            Self::Side(px) => format!("--resolution={px}"),
            Self::Lora => format!("--lora_rank={LORA_RANK}"),
        }
    }
}

impl Demand {
    pub(super) fn of(
        recipe: &Recipe,
        learning: Learning,
        networks: Plan,
        side_px: u32,
        photos: Photos,
        draws: bool,
    ) -> Self {
        let most = match (&recipe.prior, draws) {
            (Some(prior), true) => prior.num_class_images.max(recipe.samples.n_save_sample),
            (Some(prior), false) => prior.num_class_images,
            (None, true) => recipe.samples.n_save_sample,
            (None, false) => 0,
        };
        // As often as it takes to be beside every class image.
        let class_images = recipe.prior.as_ref().map_or(0, |prior| prior.num_class_images as usize);
        let showings = photos.count.max(class_images * recipe.concepts.len());
        Self {
            learning,
            networks,
            batch: recipe.train_batch_size as usize,
            rows_each: if recipe.prior.is_some() { 2 } else { 1 },
            side_px: side_px as usize,
            drawn: recipe.sample_batch_size.min(most) as usize,
            encoded: match photos.vary && !recipe.not_cache_latents {
                true => showings.div_ceil(photos.count).clamp(1, ENCODE_ROWS),
                false => 1,
            },
            encodes_late: recipe.not_cache_latents,
            accumulates: recipe.gradient_accumulation_steps > 1,
            averages: recipe.use_ema,
        }
    }

    /// The same with a setting changed; `None` where that changes nothing.
    pub fn with(&self, switch: Switch) -> Option<Self> {
        let mut demand = self.clone();
        let learning = &mut demand.learning;
        let changes = match switch {
            Switch::EightBit => std::mem::replace(&mut learning.optimizer.moments, Moments::EightBit) == Moments::F32,
            Switch::Checkpointing => !std::mem::replace(&mut learning.recompute, true),
            Switch::LowMemory => {
                // What it cannot do, as the check of recipes has it, and the loss scale that fp16 needs.
                if self.accumulates || self.averages || learning.precision == Precision::Fp16 {
                    return None;
                }
                learning.recompute = true;
                learning.optimizer.moments = Moments::EightBit;
                let seed = learning.seed;
                learning.optimizer.low_memory.replace(LowMemory { seed }).is_none()
            }
            Switch::OneByOne => std::mem::replace(&mut demand.batch, 1) > 1,
            Switch::FrozenTextEncoder => std::mem::replace(&mut learning.text_encoder, false),
            Switch::Side(px) => std::mem::replace(&mut demand.side_px, px) > px,
            Switch::Lora => {
                let (rank, alpha) = (LORA_RANK, LORA_RANK as f64);
                learning.adapter.replace(Adapter { rank, alpha }).is_none()
            }
        };
        changes.then_some(demand)
    }

    /// What runs together, phase by phase: each gives back what it held. Only the last learns.
    fn phases(&self) -> Result<Vec<Vec<Task>>, NetworkError> {
        let side = self.side_px / LATENT_PX;
        let map = |rows, side| Map {
            rows,
            height: side,
            width: side,
        };
        let tokens = self.networks.text_encoder()?.max_position_embeddings;
        let (rows, clip_skip, learning) = (1, 1, &self.learning);
        let text = Task::Text {
            rows,
            tokens,
            clip_skip,
        };
        let encode = Task::Encode {
            map: map(self.encoded, self.side_px),
        };
        let mut drawing = vec![text];
        if self.drawn > 0 {
            // Guidance asks twice. A picture that has no room is decoded in tiles, so decoding is not counted.
            let map = map(2 * self.drawn, side);
            drawing.push(Task::Predict { map, tokens });
        }
        if learning.keeps_an_eye {
            let map = map(1, side);
            drawing.push(Task::Middle { map, tokens });
        }
        let mut training = drawing.clone();
        training.push(Task::Train {
            map: map(self.batch * self.rows_each, side),
            tokens,
            // As a run has it; what is drawn changes the size of small inputs alone.
            form: Form {
                drawn: true,
                velocity: false,
                with_offsets: true,
                timesteps: 1000,
            },
            learns_text: learning.text_encoder,
            accumulate: false,
        });
        training.extend(self.encodes_late.then_some(encode));
        Ok(vec![drawing, vec![encode], training])
    }

    /// What the session of such a run is going to hold, in the phase that needs most. `of_session`: of one with these
    /// weights that runs these programs.
    ///
    /// # Errors
    /// When a network cannot be written.
    pub fn footprint_by(
        &self,
        of_session: impl Fn(&ParamTable, &[Program]) -> Result<Footprint, EngineError>,
    ) -> Result<Footprint, NetworkError> {
        let plan = self.learning.plan(self.networks.clone());
        let mut params = plan.params()?;
        let mut largest = Footprint::default();
        for tasks in self.phases()? {
            let tasks = tasks.into_iter();
            let programs: Vec<Program> = tasks
                .map(|task| plan.program(task, &mut params))
                .collect::<Result<_, _>>()?;
            let footprint = of_session(&params, &programs)?;
            if footprint.total() > largest.total() {
                largest = footprint;
            }
        }
        Ok(largest)
    }

    fn kept(&self) -> Kept {
        Kept {
            averages: self.averages,
            sums: self.accumulates,
        }
    }

    fn footprint(&self, device: &Device) -> Result<Footprint, NetworkError> {
        let Learning {
            optimizer, precision, ..
        } = &self.learning;
        let kept = self.kept();
        self.footprint_by(|params, programs| device.footprint(params, optimizer, *precision, kept, programs))
    }
}

/// A device's memory for a run: what is in use before it, and what may be in the end.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub used: u64,
    pub limit: u64,
}

impl Room {
    /// Of `limit` bytes where that is less than there is. `None` where nobody knows what there is.
    pub fn of(device: &Device, limit: Option<u64>) -> Option<Self> {
        match (device.memory(), limit) {
            (Some(Memory { free, used }), limit) => Some(Self {
                used,
                limit: (free + used).min(limit.unwrap_or(u64::MAX)),
            }),
            (None, Some(limit)) => Some(Self { used: 0, limit }),
            (None, None) => None,
        }
    }

    fn peak(&self, footprint: &Footprint) -> u64 {
        self.used + footprint.total()
    }

    fn holds(&self, footprint: &Footprint) -> bool {
        self.peak(footprint) <= self.limit
    }
}

/// How a run fits.
#[derive(Clone, Debug)]
pub struct Fitted {
    pub demand: Demand,
    pub footprint: Footprint,
    /// Turned on so that it fits.
    pub switches: Vec<Switch>,
    /// What was asked for.
    pub asked: Footprint,
}

impl Fitted {
    fn take(&mut self, switch: Switch, device: &Device) -> Result<(), TrainError> {
        if let Some(with) = self.demand.with(switch) {
            self.footprint = with.footprint(device)?;
            self.demand = with;
            self.switches.push(switch);
        }
        Ok(())
    }
}

/// Makes a run fit: with the switches that it has `taken` already, and as many of `ladder` as it needs.
///
/// # Errors
/// `DoesNotFit`, with what would.
pub fn fit(
    asked: Demand,
    device: &Device,
    room: Option<Room>,
    taken: impl IntoIterator<Item = Switch>,
    ladder: &[Switch],
) -> Result<Fitted, TrainError> {
    let footprint = asked.footprint(device)?;
    let mut fitted = Fitted {
        demand: asked.clone(),
        footprint,
        switches: Vec::new(),
        asked: footprint,
    };
    for switch in taken {
        fitted.take(switch, device)?;
    }
    let Some(room) = room else { return Ok(fitted) };
    for &switch in ladder {
        if room.holds(&fitted.footprint) {
            break;
        }
        fitted.take(switch, device)?;
    }
    if room.holds(&fitted.footprint) {
        return Ok(fitted);
    }
    let proposals = proposals(&asked, device)?;
    Err(TrainError::DoesNotFit {
        needed: room.peak(&footprint),
        there: room.limit,
        proposals: (proposals.into_iter())
            .map(|(flags, footprint)| (flags, room.peak(&footprint)))
            .collect(),
    })
}

/// Settings that need less than `asked`: each by itself, then one on top of the other.
fn proposals(asked: &Demand, device: &Device) -> Result<Vec<(String, Footprint)>, TrainError> {
    let smaller = SMALLER_SIDES
        .into_iter()
        .find(|&px| px < asked.side_px)
        .map(Switch::Side);
    let switches = [
        Some(Switch::EightBit),
        Some(Switch::Checkpointing),
        Some(Switch::LowMemory),
        Some(Switch::OneByOne),
        Some(Switch::FrozenTextEncoder),
        smaller,
    ];
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    let (mut sum, mut flags) = (asked.clone(), Vec::new());
    for switch in switches.into_iter().flatten() {
        let Some(changed) = asked.with(switch) else { continue };
        alone.push((switch.flag(), changed.footprint(device)?));
        flags.push(switch.flag());
        sum = sum.with(switch).unwrap_or(sum);
        if flags.len() > 1 {
            together.push((flags.join(" "), sum.footprint(device)?));
        }
    }
    if let Some(lora) = asked.with(Switch::Lora) {
        alone.push((Switch::Lora.flag(), lora.footprint(device)?));
    }
    Ok(alone.into_iter().chain(together).collect())
}

impl Run {
    /// Tells what the run will need and what was turned on for it, before anything is put on the device.
    pub(super) fn fit(&self, asked: Demand, resume: Option<&Resume>) -> Result<Fitted, TrainError> {
        let mut ladder = match (self.fits_itself && !self.recipe.strict_tutorial, resume) {
            (false, _) => Vec::new(),
            (true, None) => LADDER.to_vec(),
            // What is computed again changes nothing; moments go on as they were saved.
            (true, Some(_)) => vec![Switch::Checkpointing],
        };
        if self.recipe.precision() == Some(Precision::No) {
            // Low memory means bf16, and f32 was asked for.
            ladder.retain(|switch| *switch != Switch::LowMemory);
        }
        // Its moments have the form that these gave them, whatever recipe goes on from it.
        let taken = resume.map_or(&[][..], |resume| &resume.turned_on);
        let taken = LADDER
            .into_iter()
            .filter(|switch| taken.iter().any(|name| switch.name() == Some(name)));
        let room = Room::of(&self.device, self.memory_limit);
        let fitted = fit(asked, &self.device, room, taken, &ladder)?;
        let peak = |footprint: &Footprint| room.map_or(0, |room| room.used) + footprint.total();
        let mut parts = vec![MemoryPart {
            name: "in use before".into(),
            bytes: room.map_or(0, |room| room.used),
        }];
        parts.extend(fitted.footprint.parts().map(|(name, bytes)| MemoryPart {
            name: name.into(),
            bytes,
        }));
        parts.retain(|part| part.bytes > 0);
        self.emit(EventKind::Memory {
            peak_bytes: peak(&fitted.footprint),
            limit_bytes: room.map(|room| room.limit),
            parts,
        })?;
        if fitted.switches.contains(&Switch::LowMemory) {
            self.warn("low_memory", LOW_MEMORY.into())?;
        }
        if !fitted.switches.is_empty() {
            let flags: Vec<String> = fitted.switches.iter().map(|switch| switch.flag()).collect();
            let [asked, now] = [&fitted.asked, &fitted.footprint].map(|footprint| gib(peak(footprint)));
            let there = room.map_or(0., |room| gib(room.limit));
            let why = match resume {
                Some(_) => "taken, as by the run that saved the state or so that this one fits",
                None => "taken, so that the run fits",
            };
            self.warn(
                "fitted",
                format!(
                    "{} {why}: it needs {now:.2} GiB in place of {asked:.2}, and there are {there:.2}",
                    flags.join(" "),
                ),
            )?;
        }
        Ok(fitted)
    }
}

pub(super) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

#[cfg(test)]
mod tests;
