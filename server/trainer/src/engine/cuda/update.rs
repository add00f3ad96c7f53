//! The optimizer on the GPU: moments, the numbers of an update, and the work that applies it.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::{
        ir::{Param, ParamId, ParamTable},
        optim::adamw_8bit::BLOCK,
        session::{EngineError, Moments, OptimizerSettings, Result, Update, Updated},
    },
    call::{Address, Call, Element},
    calls::{
        low_memory,
        optimizer::{self, Arena},
    },
    convert,
    gpu::{Gpu, Lane, Memory, Pinned},
    library::failed,
    store::{Layout, Store},
    work::Piece,
};

pub(super) struct Optimizer {
    gpu: Arc<Gpu>,
    settings: OptimizerSettings,
    /// Made when it is first needed: a session that only draws has none.
    state: Option<State>,
}

struct State {
    /// Moments in f32, of the first weights in the store's order.
    first: Memory,
    second: Memory,
    /// Moments in 8 bits, of the others.
    first_codes: Memory,
    first_largest: Memory,
    second_codes: Memory,
    second_largest: Memory,
    slip: Memory,
    due: Memory,
    /// In low memory, of each weight's gradient, F32: what the last update saw.
    squares: Memory,
    /// Only held.
    _rest: [Memory; 3],
    departing: Pinned,
    arriving: Pinned,
    at: Arena,
    norm: Vec<Call>,
}

/// Of an update that runs beside a step: many enough that the first instructions need not wait long.
const PIECES: usize = 32;

/// Code of zero among first moments.
const NOTHING: u8 = 127;

/// A part of a weight's moments, under the name that torch or bitsandbytes gives it.
struct Part {
    name: &'static str,
    at: Address,
    bytes: usize,
}

/// Bytes of each of [`State`]'s moments.
struct Sizes {
    exact: usize,
    codes: usize,
    largest: usize,
}

impl Sizes {
    fn of(layout: &Layout) -> Self {
        let coded = layout.trained - layout.exact;
        Self {
            exact: 4 * layout.exact,
            codes: coded,
            largest: 4 * (coded / BLOCK),
        }
    }
}

/// Bytes that the optimizer of weights that lie so is going to hold.
pub(super) fn moment_bytes(layout: &Layout) -> usize {
    let Sizes { exact, codes, largest } = Sizes::of(layout);
    2 * (exact + codes + largest)
}

impl Optimizer {
    pub fn new(gpu: &Arc<Gpu>, settings: OptimizerSettings) -> Self {
        Self {
            gpu: gpu.clone(),
            settings,
            state: None,
        }
    }

    /// Makes room for the moments, all zero, unless it is there.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn prepare(&mut self, store: &Store, params: &ParamTable) -> Result<()> {
        let low_memory = self.settings.low_memory.is_some();
        if self.state.is_some() || (store.gradients.is_none() && !low_memory) {
            return Ok(());
        }
        let (exact, trained) = (store.layout.exact, store.layout.trained);
        let sizes = Sizes::of(&store.layout);
        let room = |bytes| -> Result<Memory> {
            let memory = Memory::new(&self.gpu, bytes, "the optimizer")?;
            memory.fill(0)?;
            Ok(memory)
        };
        let (first, second) = (room(sizes.exact)?, room(sizes.exact)?);
        let (first_codes, second_codes) = (room(sizes.codes)?, room(sizes.codes)?);
        let (first_largest, second_largest) = (room(sizes.largest)?, room(sizes.largest)?);
        let mut owners = vec![0u8; trained / BLOCK];
        for (index, param) in params.params.iter().enumerate() {
            let slot = store.layout.slot(ParamId(index as u32));
            if slot.trained {
                let (end, padded) = (slot.start + slot.len, (slot.start + slot.len).next_multiple_of(BLOCK));
                owners[slot.start / BLOCK..padded / BLOCK].fill(optimizer::group_index(param.group));
                if slot.start >= exact {
                    // What no weight owns has to stay zero, also where a block's largest value is restored later.
                    first_codes.fill_part(end - exact, padded - end, NOTHING)?;
                }
            }
        }
        let (groups, tables) = (self.keep(&owners)?, self.keep(&optimizer::tables())?);
        let workspace = room(optimizer::WORKSPACE_BYTES)?;
        // All zero, which says that nothing is due.
        let (slip, due) = (room(optimizer::SLIP_BYTES)?, room(optimizer::SLIP_BYTES)?);
        let squares = room(if low_memory { 4 * params.params.len() } else { 0 })?;
        let at = Arena {
            weights: store.weights.address,
            rests: store.rests.address,
            gradients: (store.gradients.as_ref()).map_or(Address::NONE, |gradients| gradients.address),
            first: first.address,
            second: second.address,
            first_codes: first_codes.address,
            first_largest: first_largest.address,
            second_codes: second_codes.address,
            second_largest: second_largest.address,
            groups: groups.address,
            tables: tables.address,
            slip: slip.address,
            due: due.address,
            workspace: workspace.address,
        };
        self.gpu.wait()?;
        self.state = Some(State {
            first,
            second,
            first_codes,
            first_largest,
            second_codes,
            second_largest,
            slip,
            due,
            _rest: [groups, tables, workspace],
            departing: Pinned::new(&self.gpu, 4 * optimizer::NUMBERS)?,
            arriving: Pinned::new(&self.gpu, optimizer::RESULT_BYTES)?,
            norm: match low_memory {
                true => vec![optimizer::clip(&at, squares.address, params.params.len())],
                false => optimizer::norm(store.element, &at, trained),
            },
            squares,
            at,
        });
        Ok(())
    }

    /// Memory with these bytes in it.
    fn keep(&self, bytes: &[u8]) -> Result<Memory> {
        let memory = Memory::new(&self.gpu, bytes.len(), "the optimizer")?;
        self.send(memory.address, bytes)?;
        Ok(memory)
    }

    fn send(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut staging = Pinned::new(&self.gpu, bytes.len())?;
        staging.slice()[..bytes.len()].copy_from_slice(bytes);
        staging.send(to, bytes.len())?;
        self.gpu.wait()
    }

    fn state(&mut self) -> Result<&mut State> {
        (self.state.as_mut()).ok_or_else(|| failed("an update", "was asked for before any program computes gradients"))
    }

    /// Writes the numbers of the next update.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn set(&mut self, update: &Update) -> Result<()> {
        let numbers = optimizer::numbers(&self.settings, update);
        let state = self.state()?;
        convert::to_bytes(
            &numbers,
            Element::F32,
            &mut state.departing.slice()[..4 * numbers.len()],
        );
        state.departing.send(state.slip.address, 4 * numbers.len())
    }

    /// In low memory: comes before the list that updates within.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn begin(&self) -> Result<()> {
        self.state.as_ref().map_or(Ok(()), |state| state.squares.fill(0))
    }

    /// In low memory: the update of one weight, given where its gradient is.
    pub fn update_of(&self, store: &Store, id: ParamId, param: &Param, gradient: Address) -> Vec<Call> {
        let Some(state) = &self.state else { return Vec::new() };
        let parts: Vec<Address> = self.parts(store, id).iter().map(|part| part.at).collect();
        let moments = match parts[..] {
            [first, second] => low_memory::Moments::Exact([first, second]),
            [first, first_largest, second, second_largest] => {
                low_memory::Moments::Coded([first, first_largest, second, second_largest])
            }
            _ => return Vec::new(),
        };
        let index = id.0 as usize;
        let tensor = low_memory::Tensor {
            index,
            group: param.group,
            len: param.len(),
            weight: store.weight_at(id),
            gradient,
            moments,
            squares: state.squares.address.offset(4 * index),
        };
        low_memory::update(&state.at, &tensor)
    }

    /// In low memory: the norm of a weight's gradient as the last update saw it.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn gradient_norm(&mut self, id: ParamId) -> Result<f64> {
        let gpu = self.gpu.clone();
        let state = self.state()?;
        state
            .arriving
            .fetch(state.squares.address.offset(4 * id.0 as usize), 4)?;
        gpu.wait()?;
        let squares = convert::from_bytes(&state.arriving.slice()[..4], Element::F32);
        Ok(f64::from(squares[0]).sqrt())
    }

    /// Puts the norm on the main lane; after it an update is due, unless a gradient is not finite or, in low memory, the
    /// weights are updated already. `early`: as [`Gpu::launch_on`] says.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn norm(&self, early: bool) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        for (index, call) in state.norm.iter().enumerate() {
            self.gpu.launch_on(call, Lane::Main, early || index > 0)?;
        }
        if self.settings.low_memory.is_some() {
            return Ok(());
        }
        (self.gpu).copy(state.slip.address, state.due.address, optimizer::SLIP_BYTES, Lane::Main)
    }

    /// The update that is due, in pieces to run beside other work.
    pub fn pieces(&self, store: &Store) -> Vec<Piece> {
        self.cut(store, store.layout.trained / PIECES, true)
    }

    /// Of weights together that lie together, `len` elements at least.
    fn cut(&self, store: &Store, len: usize, beside: bool) -> Vec<Piece> {
        let Some(State { at, .. }) = self.state.as_ref().filter(|_| self.settings.low_memory.is_none()) else {
            return Vec::new();
        };
        let exact = store.layout.exact;
        let small = optimizer::apply_exact(store.element, self.settings.moments, at, exact).map(|call| Piece {
            weights: store.range(0, exact),
            calls: vec![call],
        });
        let coded = store.layout.runs(len).into_iter().map(|run| Piece {
            weights: store.range(run.start, run.len()),
            calls: vec![optimizer::apply_coded(store.element, at, exact, run, beside)],
        });
        small.into_iter().chain(coded).collect()
    }

    /// Puts the update that is due on the main lane.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn apply(&self, store: &Store) -> Result<()> {
        let all = self.cut(store, store.layout.all, false);
        (all.iter().flat_map(|piece| &piece.calls)).try_for_each(|call| self.gpu.launch(call))
    }

    /// Nothing is due any more.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn settled(&self) -> Result<()> {
        self.state.as_ref().map_or(Ok(()), |state| state.due.fill(0))
    }

    /// What the last update reports, once it is done.
    ///
    /// # Errors
    /// What the driver answers; errors of anything before come to light here, too.
    pub fn result(&mut self) -> Result<Updated> {
        let gpu = self.gpu.clone();
        let state = self.state()?;
        let result = state.slip.address.offset(4 * optimizer::NUMBERS);
        state.arriving.fetch(result, optimizer::RESULT_BYTES)?;
        gpu.wait()?;
        let numbers = convert::from_bytes(&state.arriving.slice()[..optimizer::RESULT_BYTES], Element::F32);
        Ok(Updated {
            grad_norm: f64::from(numbers[0]),
            skipped: numbers[2] == 0.,
        })
    }

    pub fn held_bytes(&self) -> u64 {
        let Some(state) = &self.state else { return 0 };
        let State {
            first,
            second,
            first_codes,
            first_largest,
            second_codes,
            second_largest,
            ..
        } = state;
        let all = [first, second, first_codes, first_largest, second_codes, second_largest];
        all.iter().map(|memory| memory.bytes as u64).sum()
    }

    /// The parts of a trained weight's moments.
    fn parts(&self, store: &Store, id: ParamId) -> Vec<Part> {
        let (slot, exact) = (store.layout.slot(id), store.layout.exact);
        let Some(state) = self.state.as_ref().filter(|_| slot.trained) else {
            return Vec::new();
        };
        let part = |name, memory: &Memory, start: usize, bytes| Part {
            name,
            at: memory.address.offset(start),
            bytes,
        };
        if self.settings.moments == Moments::F32 || slot.start < exact {
            let (start, bytes) = (4 * slot.start, 4 * slot.len);
            return vec![
                part("exp_avg", &state.first, start, bytes),
                part("exp_avg_sq", &state.second, start, bytes),
            ];
        }
        let start = slot.start - exact;
        let (scales, scale_bytes) = (start / BLOCK * 4, slot.len.div_ceil(BLOCK) * 4);
        vec![
            part("state1", &state.first_codes, start, slot.len),
            part("absmax1", &state.first_largest, scales, scale_bytes),
            part("state2", &state.second_codes, start, slot.len),
            part("absmax2", &state.second_largest, scales, scale_bytes),
        ]
    }

    /// The moments by `tensor.part`, little-endian, as the CPU session gives them.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn moments(&mut self, store: &Store, params: &ParamTable) -> Result<BTreeMap<String, Vec<u8>>> {
        self.prepare(store, params)?;
        let mut moments = BTreeMap::new();
        for (index, param) in params.params.iter().enumerate() {
            for part in self.parts(store, ParamId(index as u32)) {
                let mut staging = Pinned::new(&self.gpu, part.bytes)?;
                staging.fetch(part.at, part.bytes)?;
                self.gpu.wait()?;
                let bytes = staging.slice()[..part.bytes].to_vec();
                moments.insert(format!("{}.{}", param.name, part.name), bytes);
            }
        }
        Ok(moments)
    }

    /// # Errors
    /// When a moment is missing, is not one of these, or has another length. The moments may then be partly restored.
    pub fn restore(&mut self, store: &Store, params: &ParamTable, moments: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        self.prepare(store, params)?;
        let mut unknown: BTreeMap<&str, &[u8]> = moments.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        for (index, param) in params.params.iter().enumerate() {
            for part in self.parts(store, ParamId(index as u32)) {
                let name = format!("{}.{}", param.name, part.name);
                let bytes = unknown
                    .remove(name.as_str())
                    .ok_or_else(|| refused(&name, "is missing"))?;
                if bytes.len() != part.bytes {
                    let (want, got) = (part.bytes, bytes.len());
                    return Err(EngineError::Length { name, want, got });
                }
                self.send(part.at, bytes)?;
            }
        }
        match unknown.keys().next() {
            Some(name) => Err(refused(name, "is none of this optimizer's")),
            None => Ok(()),
        }
    }
}

fn refused(name: &str, why: &str) -> EngineError {
    failed(&format!("the moments cannot be restored: `{name}`"), why)
}
