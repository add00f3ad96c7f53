//! A session on the CPU.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::{
    super::{
        gradients,
        ir::{Kind, Param, ParamId, ParamTable, Program, ValueId},
        operands::operands,
        optim::rounding,
        plan::{ALIGNMENT, Places, plan},
        session::{
            Data, EngineError, LowMemory, OptimizerSettings, ProgramId, Result, Session, Update, Updated, given_back,
            no_averages, norm,
        },
        verify::verify,
    },
    execute::Step,
    memory::{Lease, Memory, check_free},
    optimizer::Optimizer,
};

/// Weights, programs and an optimizer in host memory. Runs on rayon's current pool, with the same bits on any number of
/// threads.
pub struct CpuSession {
    params: ParamTable,
    weights: Vec<Vec<f32>>,
    /// Empty until a program computes them, in low memory but while it does.
    gradients: Vec<Vec<f32>>,
    /// Of trained weights; empty until they are kept.
    averages: Vec<Vec<f32>>,
    optimizer: Optimizer,
    low_memory: Option<LowMemory>,
    /// In low memory, of the gradients that the last update saw: their sums of squares.
    squares: BTreeMap<ParamId, f64>,
    programs: Vec<Compiled>,
    arena: Memory,
    /// Weights with gradients that no update has used.
    learnt: BTreeSet<ParamId>,
}

struct Compiled {
    program: Program,
    places: Places,
    kept: Memory,
    /// Whose gradients it leaves.
    trains: BTreeSet<ParamId>,
    /// In low memory, the weights whose gradients begin with an instruction and end behind it.
    begins: BTreeMap<usize, Vec<ParamId>>,
    ends: BTreeMap<usize, Vec<ParamId>>,
}

impl CpuSession {
    /// Weights are zero until they are set.
    ///
    /// # Errors
    /// When there is less memory free than the weights need.
    pub fn new(params: ParamTable, optimizer: OptimizerSettings) -> Result<Self> {
        let bytes = params.params.iter().map(|param| param.len() * size_of::<f32>()).sum();
        check_free(bytes, "the model")?;
        Ok(Self {
            weights: params.params.iter().map(|param| vec![0.; param.len()]).collect(),
            gradients: vec![vec![]; params.params.len()],
            averages: vec![],
            optimizer: Optimizer::new(optimizer),
            low_memory: optimizer.low_memory,
            squares: BTreeMap::new(),
            programs: vec![],
            arena: Memory::default(),
            learnt: BTreeSet::new(),
            params,
        })
    }

    fn input(&self, program: ProgramId, name: &str) -> Result<ValueId> {
        let inputs = &self.programs[program.0].program.inputs;
        let missing = || EngineError::NoSuchValue(name.to_owned());
        inputs.get(name).copied().ok_or_else(missing)
    }

    /// Makes room for a program that has none, or none any more.
    fn hold(&mut self, program: ProgramId) -> Result<()> {
        let Compiled { places, kept, .. } = &mut self.programs[program.0];
        if kept.bytes() < places.kept_bytes {
            *kept = Memory::new(places.kept_bytes, "inputs and outputs")?;
        }
        if self.arena.bytes() < places.arena_bytes {
            self.arena = Memory::default();
            self.arena = Memory::new(places.arena_bytes, "the activations")?;
        }
        Ok(())
    }

    /// In low memory with the update of each weight behind the instruction that its gradient ends with.
    fn execute(&mut self, program: ProgramId, update: Option<&Update>) -> Result<()> {
        self.hold(program)?;
        let compiled = &mut self.programs[program.0];
        for (index, op) in compiled.program.code.iter().enumerate() {
            for id in compiled.begins.get(&index).into_iter().flatten() {
                self.gradients[id.0 as usize] = unwritten(self.params.get(*id).len());
            }
            let step = Step {
                program: &compiled.program,
                places: &compiled.places,
                lease: Lease::new(&mut compiled.kept, &mut self.arena),
                params: &self.params,
                weights: &self.weights,
                gradients: &mut self.gradients,
            };
            step.execute(op)?;
            for &id in compiled.ends.get(&index).into_iter().flatten() {
                let at = id.0 as usize;
                let gradient = std::mem::take(&mut self.gradients[at]);
                if let (Some(low_memory), Some(update)) = (self.low_memory, update) {
                    let of = (&mut self.weights[at][..], &gradient[..]);
                    let squares = (self.optimizer).update_one(&self.params, at, of, update, low_memory)?;
                    self.squares.extend(squares.map(|squares| (id, squares)));
                }
            }
        }
        self.learnt.extend(&compiled.trains);
        Ok(())
    }

    /// Trained weights with their averages.
    fn with_averages(&mut self) -> Result<impl Iterator<Item = (&mut Vec<f32>, &mut Vec<f32>)>> {
        if self.averages.is_empty() {
            return Err(no_averages());
        }
        let pairs = self.weights.iter_mut().zip(&mut self.averages);
        let trained = pairs.zip(&self.params.params).filter(|(_, param)| param.trained);
        Ok(trained.map(|(pair, _)| pair))
    }

    fn average_of(&mut self, id: ParamId) -> Result<&mut Vec<f32>> {
        let kept = self
            .params
            .get(id)
            .trained
            .then(|| self.averages.get_mut(id.0 as usize));
        kept.flatten().ok_or_else(no_averages)
    }

    /// Every weight that `update` changes has to have got a gradient, from `program` or one before it.
    fn check_trains(&self, program: ProgramId, update: &Update) -> Result<()> {
        let trains = &self.programs[program.0].trains;
        let before = |id| self.low_memory.is_none() && self.learnt.contains(&id);
        let gets = |id| trains.contains(&id) || before(id);
        for (index, param) in self.params.params.iter().enumerate() {
            let updated = param.trained && update.learning_rates.contains_key(&param.group);
            if updated && !gets(ParamId(index as u32)) {
                return Err(EngineError::Device {
                    what: format!("`{}` cannot be updated", param.name),
                    why:
                        "the program computes no gradient of it: something between it and the loss does not pass it on"
                            .to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// NaN in tests, so that `+=` where `=` was due is seen.
fn unwritten(len: usize) -> Vec<f32> {
    vec![if cfg!(test) { f32::NAN } else { 0. }; len]
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

impl Session for CpuSession {
    fn params(&self) -> &ParamTable {
        &self.params
    }

    fn compile(&mut self, program: Program) -> Result<ProgramId> {
        verify(&program, &self.params)?;
        let places = plan(&program, |_| 4);
        let trains: BTreeSet<ParamId> = (program.code.iter())
            .flat_map(|op| operands(op).trained_gradients(&self.params).collect::<Vec<_>>())
            .collect();
        let lives = match self.low_memory {
            Some(_) => gradients::lives(&program, &self.params)?,
            None => BTreeMap::new(),
        };
        let new: Vec<ParamId> = (trains.iter().copied())
            .filter(|id| self.gradients[id.0 as usize].is_empty() && !lives.contains_key(id))
            .collect();
        let bytes = new.iter().map(|&id| self.params.get(id).len() * size_of::<f32>()).sum();
        check_free(bytes, "the gradients")?;
        for id in new {
            self.gradients[id.0 as usize] = unwritten(self.params.get(id).len());
        }
        self.programs.push(Compiled {
            kept: Memory::default(),
            program,
            places,
            trains,
            begins: gradients::by_instruction(&lives, |life| life.first),
            ends: gradients::by_instruction(&lives, |life| life.last),
        });
        let id = ProgramId(self.programs.len() - 1);
        match self.hold(id) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.programs.pop();
                Err(error)
            }
        }
    }

    fn program_bytes(&self, program: ProgramId) -> u64 {
        let places = &self.programs[program.0].places;
        (places.kept_bytes + places.arena_bytes) as u64
    }

    fn held_by_programs(&self) -> u64 {
        let kept: usize = self.programs.iter().map(|compiled| compiled.kept.bytes()).sum();
        (kept + self.arena.bytes()) as u64
    }

    fn release(&mut self, going_on: &[ProgramId]) -> Result<()> {
        let mut wanted = 0;
        for (index, compiled) in self.programs.iter_mut().enumerate() {
            if going_on.contains(&ProgramId(index)) {
                wanted = wanted.max(compiled.places.arena_bytes);
            } else {
                compiled.kept = Memory::default();
            }
        }
        if self.arena.bytes() > wanted.next_multiple_of(ALIGNMENT) {
            self.arena = Memory::default();
        }
        Ok(())
    }

    fn write(&mut self, program: ProgramId, input: &str, data: Data) -> Result<()> {
        let id = self.input(program, input)?;
        self.hold(program)?;
        let compiled = &mut self.programs[program.0];
        let (value, place) = (compiled.program.value(id), compiled.places.of(id));
        let lease = Lease::new(&mut compiled.kept, &mut self.arena);
        match (data, value.kind) {
            (Data::F32(values), Kind::Activation | Kind::F32) => {
                check_length(input, value.len(), values.len())?;
                lease.write(place).copy_from_slice(values);
            }
            (Data::Ids(ids), Kind::Ids) => {
                check_length(input, value.len(), ids.len())?;
                lease.write_ids(place).copy_from_slice(ids);
            }
            (_, kind) => {
                return Err(EngineError::Device {
                    what: format!("the input `{input}` cannot be written"),
                    why: format!("it is of the kind {kind:?}"),
                });
            }
        }
        Ok(())
    }

    fn run(&mut self, program: ProgramId) -> Result<()> {
        // On a thread of the pool, where starting parallel work costs least.
        rayon::scope(|_| self.execute(program, None))
    }

    fn run_and_update(&mut self, program: ProgramId, update: &Update) -> Result<Updated> {
        self.check_trains(program, update)?;
        rayon::scope(|_| {
            self.squares.clear();
            self.execute(program, Some(update))?;
            self.learnt.clear();
            if self.low_memory.is_some() {
                let grad_norm = self.squares.values().sum::<f64>().sqrt() / update.loss_scale;
                let skipped = !grad_norm.is_finite();
                return Ok(Updated { grad_norm, skipped });
            }
            (self.optimizer).update(&self.params, &mut self.weights, &self.gradients, update)
        })
    }

    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        let compiled = &mut self.programs[program.0];
        let missing = || EngineError::NoSuchValue(output.to_owned());
        let id = *compiled.program.outputs.get(output).ok_or_else(missing)?;
        if compiled.kept.bytes() < compiled.places.kept_bytes {
            return Err(given_back(output));
        }
        let lease = Lease::new(&mut compiled.kept, &mut self.arena);
        Ok(lease.read(compiled.places.of(id)).to_vec())
    }

    fn weight(&mut self, id: ParamId) -> Result<Vec<f32>> {
        Ok(self.weights[id.0 as usize].clone())
    }

    fn set_weight(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        let weight = &mut self.weights[id.0 as usize];
        check_length(&self.params.get(id).name, weight.len(), values.len())?;
        weight.copy_from_slice(values);
        if self.low_memory.is_some() && self.params.get(id).trained {
            weight.iter_mut().for_each(|value| *value = rounding::nearest(*value));
        }
        Ok(())
    }

    fn gradient(&mut self, id: ParamId) -> Result<Vec<f32>> {
        let gradient = &self.gradients[id.0 as usize];
        check_length(&self.params.get(id).name, self.params.get(id).len(), gradient.len())?;
        Ok(gradient.clone())
    }

    fn gradient_norm(&mut self, id: ParamId) -> Result<f64> {
        match self.squares.get(&id) {
            Some(squares) => Ok(squares.sqrt()),
            None => Ok(norm(&self.gradient(id)?)),
        }
    }

    fn keep_averages(&mut self) -> Result<()> {
        if self.low_memory.is_some() {
            return Err(no_averages());
        }
        let trained = |param: &Param| if param.trained { param.len() } else { 0 };
        let lens = self.params.params.iter().map(trained);
        check_free(lens.sum::<usize>() * size_of::<f32>(), "the averages of the weights")?;
        let copies = self.weights.iter().zip(&self.params.params);
        self.averages = copies
            .map(|(weight, param)| if param.trained { weight.clone() } else { vec![] })
            .collect();
        Ok(())
    }

    fn follow_weights(&mut self, fresh: f32) -> Result<()> {
        for (weight, average) in self.with_averages()? {
            average
                .par_iter_mut()
                .zip(weight)
                // A difference of numbers of different size is rounded, which a copy must not be.
                .for_each(|(a, p)| *a = if fresh == 1.0 { *p } else { *a - fresh * (*a - *p) });
        }
        Ok(())
    }

    fn exchange_averages(&mut self) -> Result<()> {
        self.with_averages()?
            .for_each(|(weight, average)| std::mem::swap(weight, average));
        Ok(())
    }

    fn average(&mut self, id: ParamId) -> Result<Vec<f32>> {
        self.average_of(id).cloned()
    }

    fn set_average(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        let average = self.average_of(id)?;
        check_length("an average", average.len(), values.len())?;
        average.copy_from_slice(values);
        Ok(())
    }

    fn moments(&mut self) -> Result<BTreeMap<String, Vec<u8>>> {
        self.optimizer.moments(&self.params)
    }

    fn restore_moments(&mut self, moments: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        self.optimizer.restore(&self.params, moments)
    }
}
