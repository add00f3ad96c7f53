//! A session on an NVIDIA GPU.

mod held;
mod programs;

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::{
        ir::{Kind, ParamId, ParamTable, Program, ValueId},
        session::{
            Algorithms, Data, EngineError, Moments, OptimizerSettings, ProgramId, Result, Session, Update, Updated,
            given_back, no_averages, norm,
        },
    },
    averages::Averages,
    call::{Address, Element},
    convert,
    device::Device,
    gpu::{Memory, Pinned},
    gradient_sums::GradientSums,
    library::failed,
    store::Store,
    update::Optimizer,
};
use programs::Compiled;
pub(super) use programs::places;

/// How a session computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Of activations, gradients and the weights that networks read; masters are exact f32 whatever it is, but for low
    /// memory, which is bf16 throughout.
    pub element: Element,
    pub optimizer: OptimizerSettings,
    /// Starts every kernel by itself in place of replaying a captured graph. Same bits, more time.
    pub eager: bool,
    /// Fills memory with NaN before it is used, for tests.
    pub poison: bool,
}

pub struct CudaSession {
    device: Arc<Device>,
    settings: Settings,
    params: ParamTable,
    store: Store,
    optimizer: Optimizer,
    averages: Option<Averages>,
    sums: GradientSums,
    programs: Vec<Compiled>,
    /// Of all programs.
    arena: Memory,
    workspace: Memory,
    /// For small results on their way to the host.
    landing: Pinned,
    /// Work was put on the stream that nobody waited for.
    busy: bool,
    /// The last update's norm is known, and weights and moments are still as they were: the update runs beside the beginning
    /// of the next step, or before anybody asks for what it changes.
    due: bool,
}

impl CudaSession {
    /// Weights are zero until they are set.
    ///
    /// # Errors
    /// When there is less memory free than the weights need, or the card does not compute in that type.
    pub fn new(params: ParamTable, settings: Settings, device: &Arc<Device>) -> Result<Self> {
        if settings.element == Element::Bf16 && !device.card().has_bf16() {
            return Err(failed(
                "bf16",
                format!("{} does not compute in it; use fp16", device.card().name),
            ));
        }
        let of_low_memory = settings.element == Element::Bf16 && settings.optimizer.moments == Moments::EightBit;
        if settings.optimizer.low_memory.is_some() && !of_low_memory {
            return Err(failed(
                "low memory",
                "it is bf16 with 8-bit moments on a GPU, and nothing else",
            ));
        }
        let gpu = &device.gpu;
        gpu.enter()?;
        Ok(Self {
            store: Store::new(gpu, &params, settings.element, &settings.optimizer)?,
            optimizer: Optimizer::new(gpu, settings.optimizer),
            averages: None,
            sums: GradientSums::new(gpu)?,
            programs: Vec::new(),
            arena: Memory::new(gpu, 0, "the activations")?,
            workspace: Memory::new(gpu, 0, "the workspace")?,
            landing: Pinned::new(gpu, 0)?,
            busy: false,
            due: false,
            device: device.clone(),
            settings,
            params,
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn poisoned(&self, memory: Memory) -> Result<Memory> {
        if self.settings.poison {
            memory.fill(0xff)?;
        }
        Ok(memory)
    }

    fn wait(&mut self) -> Result<()> {
        if std::mem::take(&mut self.busy) {
            self.device.gpu.wait()?;
        }
        Ok(())
    }

    /// Applies the update that is due.
    fn settle(&mut self) -> Result<()> {
        if std::mem::take(&mut self.due) {
            self.busy = true;
            self.optimizer.apply(&self.store)?;
            self.optimizer.settled()?;
        }
        Ok(())
    }

    /// The averages and the weights, with nothing due that changes these.
    fn averaged(&mut self) -> Result<(&Averages, &Store)> {
        self.device.gpu.enter()?;
        self.settle()?;
        self.busy = true;
        let averages = self.averages.as_ref().ok_or_else(no_averages)?;
        Ok((averages, &self.store))
    }

    fn input(&self, program: ProgramId, name: &str) -> Result<ValueId> {
        let inputs = &self.programs[program.0].program.inputs;
        let missing = || EngineError::NoSuchValue(name.to_owned());
        inputs.get(name).copied().ok_or_else(missing)
    }

    /// Every weight that `update` changes has to have got a gradient.
    fn check_trains(&self, program: ProgramId, update: &Update) -> Result<()> {
        let trains = &self.programs[program.0].trains;
        for (index, param) in self.params.params.iter().enumerate() {
            let updated = param.trained && update.learning_rates.contains_key(&param.group);
            if updated && !trains.contains(&ParamId(index as u32)) {
                return Err(failed(
                    &format!("`{}` cannot be updated", param.name),
                    "the program computes no gradient of it: something between it and the loss does not pass it on",
                ));
            }
        }
        Ok(())
    }

    /// Bytes from the GPU, once everything before is done.
    fn fetch(&mut self, from: Address, bytes: usize) -> Result<&[u8]> {
        self.wait()?;
        if self.landing.bytes < bytes {
            self.landing = Pinned::new(&self.device.gpu, bytes)?;
        }
        self.landing.fetch(from, bytes)?;
        self.device.gpu.wait()?;
        Ok(&self.landing.slice()[..bytes])
    }
}

fn check_length(name: &str, want: usize, got: usize) -> Result<()> {
    if want == got {
        return Ok(());
    }
    Err(EngineError::Length {
        name: name.to_owned(),
        want,
        got,
    })
}

impl Session for CudaSession {
    fn params(&self) -> &ParamTable {
        &self.params
    }

    fn compile(&mut self, program: Program) -> Result<ProgramId> {
        self.device.gpu.enter()?;
        self.plan(program)
    }

    fn program_bytes(&self, program: ProgramId) -> u64 {
        let places = &self.programs[program.0].places;
        (places.kept_bytes + places.arena_bytes + self.workspace.bytes) as u64
    }

    fn held_by_programs(&self) -> u64 {
        (self.kept_bytes() + self.arena.bytes + self.workspace.bytes) as u64
    }

    fn release(&mut self, going_on: &[ProgramId]) -> Result<()> {
        self.give_back(going_on)
    }

    fn write(&mut self, program: ProgramId, input: &str, data: Data) -> Result<()> {
        self.device.gpu.enter()?;
        let id = self.input(program, input)?;
        // The last copy out of the same place may still be under way.
        self.wait()?;
        self.hold(program)?;
        let compiled = &mut self.programs[program.0];
        let (value, place) = (compiled.program.value(id), compiled.places.of(id));
        let to = compiled.kept.address.offset(place.offset);
        let missing = || EngineError::NoSuchValue(input.to_owned());
        let staging = compiled.staging.get_mut(input).ok_or_else(missing)?;
        let bytes = &mut staging.slice()[..place.bytes];
        match (data, value.kind) {
            (Data::F32(values), Kind::Activation | Kind::F32) => {
                check_length(input, value.len(), values.len())?;
                let element = if value.kind == Kind::F32 {
                    Element::F32
                } else {
                    self.settings.element
                };
                convert::to_bytes(values, element, bytes);
            }
            (Data::Ids(ids), Kind::Ids) => {
                check_length(input, value.len(), ids.len())?;
                for (bytes, id) in bytes.chunks_exact_mut(4).zip(ids) {
                    bytes.copy_from_slice(&id.to_le_bytes());
                }
            }
            (_, kind) => {
                return Err(failed(
                    &format!("the input `{input}` cannot be written"),
                    format!("it is of the kind {kind:?}"),
                ));
            }
        }
        staging.send(to, place.bytes)?;
        self.busy = true;
        Ok(())
    }

    fn run(&mut self, program: ProgramId) -> Result<()> {
        self.device.gpu.enter()?;
        self.settle()?;
        self.execute(program, false)
    }

    fn run_and_update(&mut self, program: ProgramId, update: &Update) -> Result<Updated> {
        self.device.gpu.enter()?;
        self.check_trains(program, update)?;
        self.lower(program)?;
        self.wait()?;
        self.optimizer.prepare(&self.store, &self.params)?;
        self.optimizer.set(update)?;
        if self.sums.pending {
            self.settle()?;
            self.execute(program, false)?;
            self.sums.close(&self.store)?;
            self.optimizer.norm(false)?;
        } else {
            self.execute(program, true)?;
        }
        self.due = self.settings.optimizer.low_memory.is_none();
        let updated = self.optimizer.result()?;
        self.busy = false;
        Ok(updated)
    }

    fn sums_apart(&self) -> bool {
        self.settings.element != Element::F32 && self.settings.optimizer.low_memory.is_none()
    }

    fn add_gradients(&mut self, begins: bool) -> Result<()> {
        if !self.sums_apart() {
            return Ok(());
        }
        self.device.gpu.enter()?;
        self.busy = true;
        self.sums.add(&self.store, begins)
    }

    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        self.device.gpu.enter()?;
        let compiled = &self.programs[program.0];
        let missing = || EngineError::NoSuchValue(output.to_owned());
        let id = *compiled.program.outputs.get(output).ok_or_else(missing)?;
        if compiled.kept.bytes == 0 {
            return Err(given_back(output));
        }
        let (kind, place) = (compiled.program.value(id).kind, compiled.places.of(id));
        let from = compiled.kept.address.offset(place.offset);
        let element = if kind == Kind::Activation {
            self.settings.element
        } else {
            Element::F32
        };
        Ok(convert::from_bytes(self.fetch(from, place.bytes)?, element))
    }

    fn weight(&mut self, id: ParamId) -> Result<Vec<f32>> {
        self.device.gpu.enter()?;
        self.settle()?;
        self.wait()?;
        self.store.weight(id)
    }

    fn set_weight(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        self.device.gpu.enter()?;
        let param = self.params.get(id);
        check_length(&param.name, param.len(), values.len())?;
        self.settle()?;
        self.wait()?;
        self.store.set_weight(id, values)
    }

    fn gradient(&mut self, id: ParamId) -> Result<Vec<f32>> {
        self.device.gpu.enter()?;
        let param = self.params.get(id).clone();
        if self.settings.optimizer.low_memory.is_some() {
            return Err(failed(
                &format!("the gradient of `{}`", param.name),
                "is gone: it was used up in low memory",
            ));
        }
        let Some(from) = self.store.gradient_at(id) else {
            let (want, name) = (param.len(), param.name);
            return Err(EngineError::Length { name, want, got: 0 });
        };
        let element = self.settings.element;
        Ok(convert::from_bytes(
            self.fetch(from, param.len() * element.bytes())?,
            element,
        ))
    }

    fn gradient_norm(&mut self, id: ParamId) -> Result<f64> {
        self.device.gpu.enter()?;
        if self.settings.optimizer.low_memory.is_none() {
            return Ok(norm(&self.gradient(id)?));
        }
        self.wait()?;
        self.optimizer.gradient_norm(id)
    }

    fn keep_averages(&mut self) -> Result<()> {
        if self.settings.optimizer.low_memory.is_some() {
            return Err(no_averages());
        }
        self.device.gpu.enter()?;
        self.settle()?;
        self.averages = None;
        self.averages = Some(Averages::new(&self.device.gpu, &self.store)?);
        self.busy = true;
        Ok(())
    }

    fn follow_weights(&mut self, fresh: f32) -> Result<()> {
        let (averages, store) = self.averaged()?;
        averages.follow(store, fresh)
    }

    fn exchange_averages(&mut self) -> Result<()> {
        let (averages, store) = self.averaged()?;
        averages.exchange(store)
    }

    fn average(&mut self, id: ParamId) -> Result<Vec<f32>> {
        let (averages, store) = self.averaged()?;
        averages.get(store, id)
    }

    fn set_average(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        let (averages, store) = self.averaged()?;
        averages.set(store, id, values)
    }

    fn algorithms(&self) -> Option<Algorithms> {
        Some(self.device.libraries().choices.used())
    }

    fn prefer(&mut self, algorithms: &Algorithms) {
        self.device.libraries().prefer(algorithms);
    }

    fn moments(&mut self) -> Result<BTreeMap<String, Vec<u8>>> {
        self.device.gpu.enter()?;
        self.settle()?;
        self.wait()?;
        self.store.hold_gradients(self.settings.poison)?;
        self.optimizer.moments(&self.store, &self.params)
    }

    fn restore_moments(&mut self, moments: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        self.device.gpu.enter()?;
        self.settle()?;
        self.wait()?;
        self.store.hold_gradients(self.settings.poison)?;
        self.optimizer.restore(&self.store, &self.params, moments)
    }
}
