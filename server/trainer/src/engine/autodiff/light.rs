//! Results that weights' gradients read and that cost less to compute again than their memory is worth: the backward has what they
//! are computed from at hand anyway.

use super::Reverse;
use crate::engine::ir::{Op, ValueId};
use crate::engine::operands::Access;

impl Reverse<'_> {
    /// Notes which results of the forward are computed again.
    pub(super) fn find_light(&mut self, code: &[Op]) {
        for op in code {
            if let Op::Geglu { y, .. } = *op {
                self.light.insert(self.program.root(y), op.clone());
            }
        }
    }

    /// What a weight's gradient reads in place of `x`: the same values, in a place of their own where they were not kept.
    pub(super) fn again(&mut self, x: ValueId) -> ValueId {
        let root = self.program.root(x);
        let Some(mut op) = self.light.get(&root).cloned() else {
            return x;
        };
        let copy = match self.again.get(&root) {
            Some(&copy) => copy,
            None => {
                let copy = self.like(root);
                op.for_each_value(&mut |access: Access, id: &mut ValueId| {
                    if access == Access::Write {
                        *id = self.as_dims_of(copy, *id);
                    }
                });
                self.code.push(op);
                self.again.insert(root, copy);
                copy
            }
        };
        self.as_dims_of(copy, x)
    }
}
