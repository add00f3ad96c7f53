//! A session on an NVIDIA GPU.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    super::{
        ir::{Kind, ParamId, ParamTable, Program, ValueId},
        operands::operands,
        plan::{ALIGNMENT, Places, plan_lingering},
        session::{Data, EngineError, OptimizerSettings, ProgramId, Result, Session, Update, Updated},
        verify::verify,
    },
    blas::Scratch,
    call::{Address, Element},
    convert,
    device::Device,
    gpu::{Lane, Memory, Pinned},
    graph::{self, Recording},
    library::failed,
    lower::{Lowering, Places as Lowered, lane_of},
    store::Store,
    update::Optimizer,
    work::{Ahead, List, workspace_bytes},
};

/// How a session computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Of activations, gradients and the weights that networks read; masters are exact f32 whatever it is.
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

struct Compiled {
    program: Program,
    places: Places,
    kept: Memory,
    /// Inputs on their way to the GPU, by name.
    staging: BTreeMap<String, Pinned>,
    /// Whose gradients it leaves.
    trains: BTreeSet<ParamId>,
    state: State,
}

/// What was made of a program for the memory that there is now.
#[derive(Default)]
struct State {
    list: Option<List>,
    /// The work ran once, so that libraries have loaded what they load on first use.
    warm: bool,
    ahead: Option<Ahead>,
    alone: Option<Recording>,
    with_update: Option<Recording>,
}

/// Instructions that the main lane may be ahead of what the side lane reads; each costs a little memory.
const LINGER: usize = 4;

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
        let gpu = &device.gpu;
        gpu.enter()?;
        Ok(Self {
            store: Store::new(gpu, &params, settings.element, settings.optimizer.moments)?,
            optimizer: Optimizer::new(gpu, settings.optimizer),
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

    /// Turns a program into work, and grows the memory that programs share to what it asks for. Programs that were
    /// made for smaller memory are made again when they next run.
    fn lower(&mut self, id: ProgramId) -> Result<()> {
        if self.programs[id.0].state.list.is_some() {
            return Ok(());
        }
        self.wait()?;
        let (device, compiled) = (self.device.clone(), &self.programs[id.0]);
        let (wanted, trains) = (compiled.places.arena_bytes, !compiled.trains.is_empty());
        if trains {
            self.store.hold_gradients(self.settings.poison)?;
        }
        let mut scratch = Scratch::new(&device.gpu);
        let mut libraries = device.libraries();
        // Once without places, for the algorithms and what they need; then for the memory that there is.
        let dry = self
            .lowering(id, [Address::NONE; 2])
            .all(&mut libraries, &mut scratch)?;
        drop(scratch);
        libraries.choices.save();
        let of_a_lane = (workspace_bytes(&dry.steps).max(dry.workspace_bytes)).next_multiple_of(ALIGNMENT);
        let lanes = if dry.steps.iter().any(|step| step.lane == Lane::Side) {
            2
        } else {
            1
        };
        let workspace = lanes * of_a_lane;
        if self.arena.bytes < wanted || self.workspace.bytes < workspace {
            for compiled in &mut self.programs {
                compiled.state = State::default();
            }
            if self.arena.bytes < wanted {
                self.arena = Memory::new(&device.gpu, 0, "")?;
                self.arena = self.poisoned(Memory::new(&device.gpu, wanted, "the activations")?)?;
            }
            if self.workspace.bytes < workspace {
                self.workspace = Memory::new(&device.gpu, 0, "")?;
                self.workspace = self.poisoned(Memory::new(&device.gpu, workspace, "the workspace")?)?;
            }
        }
        let mut scratch = Scratch::new(&device.gpu);
        let workspaces = [self.workspace.address, self.workspace.address.offset(of_a_lane)];
        let work = self.lowering(id, workspaces).all(&mut libraries, &mut scratch)?;
        let list = List::new(&device.gpu, work.steps, workspaces)?;
        self.programs[id.0].state.list = Some(list);
        Ok(())
    }

    fn lowering(&self, id: ProgramId, workspaces: [Address; 2]) -> Lowering<'_> {
        let Compiled {
            program, places, kept, ..
        } = &self.programs[id.0];
        Lowering {
            program,
            params: &self.params,
            store: &self.store,
            element: self.settings.element,
            places: Lowered {
                places,
                kept: kept.address,
                arena: self.arena.address,
                workspaces,
            },
        }
    }

    fn input(&self, program: ProgramId, name: &str) -> Result<ValueId> {
        let inputs = &self.programs[program.0].program.inputs;
        let missing = || EngineError::NoSuchValue(name.to_owned());
        inputs.get(name).copied().ok_or_else(missing)
    }

    /// Runs the work: by itself the first time and where that is asked for, else as a recording.
    fn execute(&mut self, id: ProgramId, update: bool) -> Result<()> {
        self.lower(id)?;
        self.busy = true;
        let (gpu, state) = (&self.device.gpu, &mut self.programs[id.0].state);
        let State {
            list,
            warm,
            ahead,
            alone,
            with_update,
        } = state;
        let Some(list) = list else {
            return Err(failed("a program", "was not prepared"));
        };
        let optimizer = &self.optimizer;
        if update && ahead.is_none() {
            *ahead = Some(list.ahead(optimizer.pieces(&self.store))?);
        }
        let issue = || {
            if update {
                list.issue(ahead.as_ref())?;
                optimizer.norm(!list.ends_waiting())
            } else {
                list.issue(None)
            }
        };
        if self.settings.eager || !*warm {
            *warm = true;
            return issue();
        }
        let recording = if update { with_update } else { alone };
        match recording {
            Some(recording) => recording.replay(),
            None => recording.insert(Recording::new(gpu, issue)?).replay(),
        }
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

    /// Milliseconds that the GPU takes for each instruction by itself, by the instruction's name, in program order; the
    /// update, where there is one, comes last. Each is replayed a few dozen times, so that starting it costs nothing, on
    /// whatever is in memory: what the session computed before is lost.
    ///
    /// # Errors
    /// What the device answers.
    pub fn profile(&mut self, id: ProgramId, update: Option<&Update>) -> Result<Vec<(&'static str, f32)>> {
        self.device.gpu.enter()?;
        self.settle()?;
        self.lower(id)?;
        self.wait()?;
        let gpu = &self.device.gpu;
        let Some(list) = &self.programs[id.0].state.list else {
            return Err(failed("a program", "was not prepared"));
        };
        // First, because gradients that are not finite would be passed over.
        let mut of_update = None;
        if let Some(update) = update {
            self.optimizer.prepare(&self.store, &self.params)?;
            self.optimizer.set(update)?;
            let update = || {
                self.optimizer.norm(true)?;
                self.optimizer.apply(&self.store)
            };
            of_update = Some(("Update", graph::time(gpu, update)?));
        }
        let mut times = list.time_each()?;
        times.extend(of_update);
        Ok(times)
    }

    /// Kernels and copies that one captured step of `id` is made of, update included; 0 before it was captured.
    pub fn recorded_nodes(&self, id: ProgramId) -> usize {
        self.programs[id.0]
            .state
            .with_update
            .as_ref()
            .map_or(0, |recording| recording.nodes)
    }

    /// What of the GPU's memory is held for what.
    pub fn held_bytes(&self) -> BTreeMap<&'static str, u64> {
        let kept: usize = self.programs.iter().map(|compiled| compiled.kept.bytes).sum();
        let mut held = self.store.held_bytes();
        held.extend([
            ("moments", self.optimizer.held_bytes()),
            ("activations", self.arena.bytes as u64),
            ("workspace", self.workspace.bytes as u64),
            ("inputs and outputs", kept as u64),
        ]);
        held
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
        verify(&program, &self.params)?;
        let element = self.settings.element;
        let size_of = |kind| match kind {
            Kind::Activation => element.bytes(),
            Kind::F32 | Kind::Ids => 4,
        };
        let places = plan_lingering(&program, size_of, |op| match lane_of(op) {
            Lane::Main => 0,
            Lane::Side => LINGER,
        });
        let trains: BTreeSet<ParamId> = (program.code.iter())
            .flat_map(|op| operands(op).trained_gradients(&self.params).collect::<Vec<_>>())
            .collect();
        let mut staging = BTreeMap::new();
        for (name, &id) in &program.inputs {
            let bytes = places.of(id).bytes;
            staging.insert(name.clone(), Pinned::new(&self.device.gpu, bytes)?);
        }
        let kept = Memory::new(&self.device.gpu, places.kept_bytes, "inputs and outputs")?;
        self.programs.push(Compiled {
            kept: self.poisoned(kept)?,
            program,
            places,
            staging,
            trains,
            state: State::default(),
        });
        let id = ProgramId(self.programs.len() - 1);
        match self.lower(id) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.programs.pop();
                Err(error)
            }
        }
    }

    fn program_bytes(&self, program: ProgramId) -> u64 {
        let places = &self.programs[program.0].places;
        (places.kept_bytes + places.arena_bytes + self.workspace.bytes) as u64
    }

    fn write(&mut self, program: ProgramId, input: &str, data: Data) -> Result<()> {
        self.device.gpu.enter()?;
        let id = self.input(program, input)?;
        // The last copy out of the same place may still be under way.
        self.wait()?;
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
        self.execute(program, true)?;
        self.due = true;
        let updated = self.optimizer.result()?;
        self.busy = false;
        Ok(updated)
    }

    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        self.device.gpu.enter()?;
        let compiled = &self.programs[program.0];
        let missing = || EngineError::NoSuchValue(output.to_owned());
        let id = *compiled.program.outputs.get(output).ok_or_else(missing)?;
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
