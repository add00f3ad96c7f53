//! Gradient checkpointing: the backward of a segment of the forward that computes the segment's inner values again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{AutodiffError, Reverse};
use crate::engine::ir::{Op, Program, ValueId};
use crate::engine::operands::{Access, operands};

impl Reverse<'_> {
    /// The backward of a segment that does not keep its inner values: those that it reads are computed again first.
    pub(super) fn segment(
        &mut self,
        code: &[Op],
        segment: &Range<usize>,
        seeds: &[(ValueId, ValueId)],
    ) -> Result<(), AutodiffError> {
        let inner = self.inner_values(code, segment, seeds);
        let start = self.code.len();
        self.all(&code[segment.clone()])?;
        let mut backward = self.code.split_off(start);

        let root = |program: &Program, id: ValueId| program.root(id);
        let mut wanted: BTreeSet<ValueId> = (backward.iter().flat_map(|op| operands(op).reads))
            .map(|id| root(&self.program, id))
            .filter(|id| inner.contains(id))
            .collect();
        let mut again: Vec<Op> = Vec::new();
        for op in code[segment.clone()].iter().rev() {
            let touched = operands(op);
            if touched
                .writes
                .iter()
                .any(|&id| wanted.contains(&root(&self.program, id)))
            {
                let reads = touched.reads.iter().map(|&id| root(&self.program, id));
                wanted.extend(reads.filter(|id| inner.contains(id)));
                again.push(op.clone());
            }
        }
        again.reverse();

        let mut renamed = BTreeMap::new();
        for op in again.iter_mut().chain(&mut backward) {
            op.for_each_value(&mut |_: Access, id: &mut ValueId| {
                let root = self.program.root(*id);
                if inner.contains(&root) {
                    let copy = *renamed.entry(root).or_insert_with(|| self.like(root));
                    *id = self.as_dims_of(copy, *id);
                }
            });
        }
        self.code.extend(again);
        self.code.extend(backward);
        Ok(())
    }

    /// Roots that only the segment's own instructions touch. An instruction keeps all its results or none.
    fn inner_values(&self, code: &[Op], segment: &Range<usize>, seeds: &[(ValueId, ValueId)]) -> BTreeSet<ValueId> {
        let root = |id: &ValueId| self.program.root(*id);
        let mut outer: BTreeSet<ValueId> = self.program.outputs.values().map(root).collect();
        outer.extend(seeds.iter().map(|(_, gradient)| root(gradient)));
        for (index, op) in code.iter().enumerate() {
            if !segment.contains(&index) {
                outer.extend(operands(op).reads.iter().map(root));
            }
        }
        let mut inner = BTreeSet::new();
        for op in &code[segment.clone()] {
            let writes: Vec<ValueId> = operands(op).writes.iter().map(root).collect();
            if writes.iter().all(|id| !outer.contains(id)) {
                inner.extend(writes);
            }
        }
        inner
    }
}
