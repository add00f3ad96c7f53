//! The memory that programs hold: when it is made and when it is given back.

use std::collections::BTreeMap;

use super::{
    super::{
        super::session::{ProgramId, Result},
        averages::Averages,
        gpu::{Memory, Pinned},
    },
    CudaSession,
    programs::State,
};

impl CudaSession {
    /// Makes room for a program's inputs and outputs where there is none, or none any more.
    pub(super) fn hold(&mut self, id: ProgramId) -> Result<()> {
        let gpu = self.device.gpu.clone();
        let (program, places) = (&self.programs[id.0].program, &self.programs[id.0].places);
        if self.programs[id.0].kept.bytes == places.kept_bytes {
            return Ok(());
        }
        let kept = self.poisoned(Memory::new(&gpu, places.kept_bytes, "inputs and outputs")?)?;
        let staging = (program.inputs.iter())
            .map(|(name, &input)| Ok((name.clone(), Pinned::new(&gpu, places.of(input).bytes)?)))
            .collect::<Result<_>>()?;
        let compiled = &mut self.programs[id.0];
        (compiled.kept, compiled.staging) = (kept, staging);
        Ok(())
    }

    /// As [`Session::release`](super::super::super::session::Session::release) says. What goes on is made anew only where
    /// the memory that programs share changes, so that a short visitor costs a run nothing.
    pub(super) fn give_back(&mut self, going_on: &[ProgramId]) -> Result<()> {
        let gpu = self.device.gpu.clone();
        gpu.enter()?;
        // An update that is due is part of recordings that may go.
        self.settle()?;
        self.wait()?;
        let (mut arena, mut workspace) = (0, 0);
        for (index, compiled) in self.programs.iter_mut().enumerate() {
            if going_on.contains(&ProgramId(index)) {
                arena = arena.max(compiled.places.arena_bytes);
                workspace = workspace.max(compiled.workspace_bytes);
            } else {
                compiled.state = State::default();
                compiled.kept = Memory::new(&gpu, 0, "")?;
                compiled.staging.clear();
            }
        }
        if self.arena.bytes > arena || self.workspace.bytes > workspace {
            for compiled in &mut self.programs {
                compiled.state = State::default();
            }
            self.arena = Memory::new(&gpu, 0, "")?;
            self.workspace = Memory::new(&gpu, 0, "")?;
        }
        Ok(())
    }

    pub(super) fn kept_bytes(&self) -> usize {
        self.programs.iter().map(|compiled| compiled.kept.bytes).sum()
    }

    /// What of the GPU's memory is held for what.
    pub fn held_bytes(&self) -> BTreeMap<&'static str, u64> {
        let mut held = self.store.held_bytes();
        held.extend([
            ("moments", self.optimizer.held_bytes()),
            ("averages", self.averages.as_ref().map_or(0, Averages::bytes)),
            ("sums of gradients", self.sums.bytes()),
            ("activations", self.arena.bytes as u64),
            ("workspace", self.workspace.bytes as u64),
            ("inputs and outputs", self.kept_bytes() as u64),
        ]);
        held
    }
}
