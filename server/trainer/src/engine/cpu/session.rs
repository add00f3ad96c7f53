//! A session on the CPU.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        ir::{Kind, ParamId, ParamTable, Program, ValueId},
        operands::operands,
        plan::{Places, plan},
        session::{Data, EngineError, OptimizerSettings, ProgramId, Result, Session, Update, Updated},
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
    /// Empty until a program computes them.
    gradients: Vec<Vec<f32>>,
    optimizer: Optimizer,
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
            optimizer: Optimizer::new(optimizer),
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

    fn execute(&mut self, program: ProgramId) -> Result<()> {
        let compiled = &mut self.programs[program.0];
        for op in &compiled.program.code {
            let step = Step {
                program: &compiled.program,
                places: &compiled.places,
                lease: Lease::new(&mut compiled.kept, &mut self.arena),
                params: &self.params,
                weights: &self.weights,
                gradients: &mut self.gradients,
            };
            step.execute(op)?;
        }
        self.learnt.extend(&compiled.trains);
        Ok(())
    }

    /// Every weight that `update` changes has to have got a gradient, from `program` or one before it.
    fn check_trains(&self, program: ProgramId, update: &Update) -> Result<()> {
        let trains = &self.programs[program.0].trains;
        let gets = |id| trains.contains(&id) || self.learnt.contains(&id);
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
        let new: Vec<ParamId> = (trains.iter().copied())
            .filter(|id| self.gradients[id.0 as usize].is_empty())
            .collect();
        let bytes = new.iter().map(|&id| self.params.get(id).len() * size_of::<f32>()).sum();
        check_free(bytes, "the gradients")?;
        // NaN in tests, so that `+=` where `=` was due is seen.
        let content = if cfg!(test) { f32::NAN } else { 0. };
        for id in new {
            self.gradients[id.0 as usize] = vec![content; self.params.get(id).len()];
        }
        if self.arena.bytes() < places.arena_bytes {
            self.arena = Memory::default();
            self.arena = Memory::new(places.arena_bytes, "the activations")?;
        }
        self.programs.push(Compiled {
            kept: Memory::new(places.kept_bytes, "inputs and outputs")?,
            program,
            places,
            trains,
        });
        Ok(ProgramId(self.programs.len() - 1))
    }

    fn program_bytes(&self, program: ProgramId) -> u64 {
        let places = &self.programs[program.0].places;
        (places.kept_bytes + places.arena_bytes) as u64
    }

    fn write(&mut self, program: ProgramId, input: &str, data: Data) -> Result<()> {
        let id = self.input(program, input)?;
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
        rayon::scope(|_| self.execute(program))
    }

    fn run_and_update(&mut self, program: ProgramId, update: &Update) -> Result<Updated> {
        self.check_trains(program, update)?;
        rayon::scope(|_| {
            self.execute(program)?;
            self.learnt.clear();
            (self.optimizer).update(&self.params, &mut self.weights, &self.gradients, update)
        })
    }

    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        let compiled = &mut self.programs[program.0];
        let missing = || EngineError::NoSuchValue(output.to_owned());
        let id = *compiled.program.outputs.get(output).ok_or_else(missing)?;
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
        Ok(())
    }

    fn gradient(&mut self, id: ParamId) -> Result<Vec<f32>> {
        let gradient = &self.gradients[id.0 as usize];
        check_length(&self.params.get(id).name, self.params.get(id).len(), gradient.len())?;
        Ok(gradient.clone())
    }

    fn moments(&mut self) -> Result<BTreeMap<String, Vec<u8>>> {
        self.optimizer.moments(&self.params)
    }

    fn restore_moments(&mut self, moments: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        self.optimizer.restore(&self.params, moments)
    }
}
