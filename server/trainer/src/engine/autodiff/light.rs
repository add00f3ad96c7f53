//! Results that weights' gradients read and that cost less to compute again than their memory is worth: the backward has what they
//! are computed from at hand anyway.

use super::Reverse;
use crate::engine::ir::{Op, ValueId};
use crate::engine::operands::Access;

/// Elements from which on a layer norm is worth a launch: those of SD 1.5's maps of 4096 and 1024 tokens, which are four
/// fifths of their memory in two fifths of their launches.
pub const LARGE_NORM: usize = 1 << 20;

impl Reverse<'_> {
    /// Notes which results of the forward are computed again: gates, and layer norms of `large` elements or more.
    pub(super) fn find_light(&mut self, code: &[Op], large: usize) {
        for op in code {
            let y = match *op {
                Op::Geglu { y, .. } => y,
                Op::LayerNorm { y, .. } if self.program.value(y).len() >= large => y,
                _ => continue,
            };
            self.light.insert(self.program.root(y), op.clone());
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
                        // Statistics are those that were kept, once more.
                        let place = match self.program.root(*id) == root {
                            true => copy,
                            false => self.like(*id),
                        };
                        *id = self.as_dims_of(place, *id);
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
