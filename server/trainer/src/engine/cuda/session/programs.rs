//! Programs on their way to the GPU: planned, turned into work for the memory that there is, and run, the first time
//! by themselves and then as a recording.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        super::{
            gradients,
            ir::{Kind, ParamId, ParamTable, Program},
            operands::operands,
            plan::{ALIGNMENT, Gradient, Life, Places, plan_lingering},
            session::{OptimizerSettings, ProgramId, Result, Update},
            verify::verify,
        },
        call::{Address, Element},
        gpu::{Lane, Memory, Pinned},
        graph::{self, Recording},
        library::failed,
        lower::{Lowering, Places as Lowered, UPDATE, Updates, lanes},
        scratch::Scratch,
        work::{Ahead, List, workspace_bytes},
    },
    CudaSession, Settings,
};

pub(super) struct Compiled {
    pub program: Program,
    pub places: Places,
    pub kept: Memory,
    /// Inputs on their way to the GPU, by name.
    pub staging: BTreeMap<String, Pinned>,
    /// Whose gradients it leaves.
    pub trains: BTreeSet<ParamId>,
    /// What it asked of the workspace when it was last turned into work.
    pub workspace_bytes: usize,
    /// In low memory, the weights that are updated behind an instruction.
    updates: BTreeMap<usize, Vec<ParamId>>,
    pub state: State,
}

/// What was made of a program for the memory that there is now.
#[derive(Default)]
pub(super) struct State {
    pub list: Option<List>,
    /// The work ran once, so that libraries have loaded what they load on first use.
    warm: bool,
    ahead: Option<Ahead>,
    alone: Option<Recording>,
    pub with_update: Option<Recording>,
}

/// Instructions that the main lane may be ahead of what the side lane reads; each costs a little memory.
const LINGER: usize = 4;

/// Where the values of a program lie and, in low memory, the gradients of its weights, with how long these live.
///
/// # Errors
/// When it adds to gradients that low memory does not keep.
pub(in super::super) fn places(
    program: &Program,
    params: &ParamTable,
    element: Element,
    optimizer: &OptimizerSettings,
) -> Result<(Places, BTreeMap<ParamId, Life>)> {
    let size_of = |kind| match kind {
        Kind::Activation => element.bytes(),
        Kind::F32 | Kind::Ids => 4,
    };
    let lives = match optimizer.low_memory {
        Some(_) => gradients::lives(program, params)?,
        None => BTreeMap::new(),
    };
    let planned: Vec<Gradient> = (lives.iter())
        .map(|(&id, &Life { first, last })| Gradient {
            id,
            bytes: params.get(id).len() * element.bytes(),
            // It is read on the side lane.
            life: Life {
                first,
                last: last + LINGER,
            },
        })
        .collect();
    let lanes = lanes(program);
    let lingers = |index: usize| match lanes[index] {
        Lane::Main => 0,
        Lane::Side => LINGER,
    };
    Ok((plan_lingering(program, size_of, lingers, &planned), lives))
}

impl CudaSession {
    /// Gives the program's values places, and the work that it is to be.
    pub(super) fn plan(&mut self, program: Program) -> Result<ProgramId> {
        verify(&program, &self.params)?;
        let Settings { element, optimizer, .. } = self.settings;
        let (places, lives) = places(&program, &self.params, element, &optimizer)?;
        let trains: BTreeSet<ParamId> = (program.code.iter())
            .flat_map(|op| operands(op).trained_gradients(&self.params).collect::<Vec<_>>())
            .collect();
        self.programs.push(Compiled {
            kept: Memory::new(&self.device.gpu, 0, "")?,
            program,
            places,
            staging: BTreeMap::new(),
            trains,
            workspace_bytes: 0,
            updates: gradients::by_instruction(&lives, |life| life.last),
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

    /// Turns a program into work, and grows the memory that programs share to what it asks for. Programs that were
    /// made for smaller memory are made again when they next run.
    pub(super) fn lower(&mut self, id: ProgramId) -> Result<()> {
        if self.programs[id.0].state.list.is_some() {
            return Ok(());
        }
        self.wait()?;
        self.hold(id)?;
        let (device, compiled) = (self.device.clone(), &self.programs[id.0]);
        let (wanted, trains) = (compiled.places.arena_bytes, !compiled.trains.is_empty());
        if trains {
            self.store.hold_gradients(self.settings.poison)?;
            // Where updates are part of the list, they speak of its memory.
            self.optimizer.prepare(&self.store, &self.params)?;
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
        self.programs[id.0].workspace_bytes = workspace;
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
            program,
            places,
            kept,
            updates,
            ..
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
            updates: Updates {
                optimizer: &self.optimizer,
                behind: updates,
            },
        }
    }

    /// Runs the work: by itself the first time and where that is asked for, else as a recording.
    pub(super) fn execute(&mut self, id: ProgramId, update: bool) -> Result<()> {
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
        let within = self.settings.optimizer.low_memory.is_some();
        if update && !within && ahead.is_none() {
            *ahead = Some(list.ahead(optimizer.pieces(&self.store))?);
        }
        let issue = || {
            if !update {
                return list.issue(None, false);
            }
            if within {
                optimizer.begin()?;
            }
            list.issue(ahead.as_ref(), within)?;
            optimizer.norm(!list.ends_waiting())
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
            self.optimizer.begin()?;
            let update = || {
                self.optimizer.norm(true)?;
                self.optimizer.apply(&self.store)
            };
            of_update = Some((UPDATE, graph::time(gpu, update)?));
        }
        let (within, mut times): (Vec<_>, Vec<_>) =
            list.time_each()?.into_iter().partition(|(name, _)| *name == UPDATE);
        if let Some((name, time)) = of_update {
            times.push((name, time + within.iter().map(|(_, time)| time).sum::<f32>()));
        }
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
}
