//! Where every value of a program lies: buffers that are never needed at the same time share memory.
//!
//! Values are placed largest first, each at the lowest offset where it meets nothing that lives while it does (the
//! greedy-by-size strategy of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020,
//! section 4.3).

use std::collections::{BTreeMap, BTreeSet};

use super::ir::{Kind, ParamId, Program, ValueId};
use super::operands::operands;

/// What every offset is a multiple of: a GPU's vector loads and cuBLAS want 16, memory transactions 128, cuDNN 256.
pub const ALIGNMENT: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The program's own memory, for its inputs and outputs: nothing else is ever written there.
    Kept,
    /// Memory that all programs of a session share; it has to be as large as the largest of them asks for.
    Arena,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub area: Area,
    /// From the start of the area.
    pub offset: usize,
    /// Without what rounding to [`ALIGNMENT`] adds. 0 for a value that no instruction touches.
    pub bytes: usize,
}

/// The places of a program's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// By value; a view has the place of what it is a view of.
    places: Vec<Place>,
    /// Of gradients of weights that were planned for, too.
    gradients: BTreeMap<ParamId, Place>,
    pub kept_bytes: usize,
    pub arena_bytes: usize,
}

impl Places {
    pub fn of(&self, id: ValueId) -> Place {
        self.places[id.0 as usize]
    }

    pub fn of_gradient(&self, id: ParamId) -> Option<Place> {
        self.gradients.get(&id).copied()
    }
}

/// A gradient of a weight that has a place among the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gradient {
    pub id: ParamId,
    pub bytes: usize,
    pub life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tenant {
    Value(usize),
    Gradient(ParamId),
}

/// First and last instruction that touches a value, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub first: usize,
    pub last: usize,
}

impl Life {
    pub fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The lives of all values by index; a use of a view is a use of its root. `None` for views, and for what no
/// instruction touches.
pub fn lives(program: &Program) -> Vec<Option<Life>> {
    lingering_lives(program, |_| 0)
}

fn lingering_lives(program: &Program, lingers: impl Fn(usize) -> usize) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = vec![None; program.values.len()];
    for (index, op) in program.code.iter().enumerate() {
        let touched = operands(op);
        let until = index + lingers(index);
        for &id in touched.reads.iter().chain(&touched.writes) {
            let life = &mut lives[program.root(id).0 as usize];
            let (first, last) = life.map_or((index, until), |life| (life.first, life.last.max(until)));
            *life = Some(Life { first, last });
        }
    }
    lives
}

/// `size_of`: bytes of one element.
pub fn plan(program: &Program, size_of: impl Fn(Kind) -> usize) -> Places {
    plan_lingering(program, size_of, |_| 0, &[])
}

/// [`plan`], where what an instruction touches is left alone for some instructions more: for a device that runs it
/// beside those. `gradients` get places, too.
pub fn plan_lingering(
    program: &Program,
    size_of: impl Fn(Kind) -> usize,
    lingers: impl Fn(usize) -> usize,
    gradients: &[Gradient],
) -> Places {
    let nowhere = Place {
        area: Area::Arena,
        offset: 0,
        bytes: 0,
    };
    let mut places = vec![nowhere; program.values.len()];
    let bytes = |index: usize| program.values[index].len() * size_of(program.values[index].kind);

    let kept: BTreeSet<usize> = (program.inputs.values().chain(program.outputs.values()))
        .map(|&id| program.root(id).0 as usize)
        .collect();
    let mut kept_bytes = 0;
    for &index in &kept {
        places[index] = Place {
            area: Area::Kept,
            offset: kept_bytes,
            bytes: bytes(index),
        };
        kept_bytes += padded(bytes(index));
    }

    let lives = lingering_lives(program, lingers);
    let mut shared: Vec<(Tenant, usize, Life)> = (lives.iter().enumerate())
        .filter(|(index, _)| !kept.contains(index))
        .filter_map(|(index, life)| Some((Tenant::Value(index), bytes(index), (*life)?)))
        .chain(
            gradients
                .iter()
                .map(|gradient| (Tenant::Gradient(gradient.id), gradient.bytes, gradient.life)),
        )
        .collect();
    // Ties in program order, so that the plan is the same on every start.
    shared.sort_by_key(|&(tenant, bytes, _)| (std::cmp::Reverse(bytes), tenant));
    let mut of_gradients = BTreeMap::new();
    let mut arena_bytes = 0;
    // By offset, so that one walk finds the lowest gap.
    let mut placed: Vec<(usize, usize, Life)> = Vec::with_capacity(shared.len());
    for (tenant, bytes, life) in shared {
        let wanted = padded(bytes);
        let mut offset = 0;
        for (start, end, _) in placed.iter().filter(|(_, _, other)| life.meets(other)) {
            if offset + wanted <= *start {
                break;
            }
            offset = offset.max(*end);
        }
        let place = Place {
            area: Area::Arena,
            offset,
            bytes,
        };
        match tenant {
            Tenant::Value(index) => places[index] = place,
            Tenant::Gradient(id) => {
                of_gradients.insert(id, place);
            }
        }
        arena_bytes = arena_bytes.max(offset + wanted);
        let at = placed.partition_point(|(start, _, _)| *start <= offset);
        placed.insert(at, (offset, offset + wanted, life));
    }

    for (index, value) in program.values.iter().enumerate() {
        if let Some(root) = value.view_of {
            places[index] = places[root.0 as usize];
        }
    }
    Places {
        places,
        gradients: of_gradients,
        kept_bytes,
        arena_bytes,
    }
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ir::Op;
    use crate::engine::ir::Value;
    use proptest::prelude::*;

    fn size_of(kind: Kind) -> usize {
        match kind {
            Kind::Activation => 2,
            Kind::F32 | Kind::Ids => 4,
        }
    }

    /// Reads come from what was written before; some results are views, some additions work in place.
    fn programs() -> impl Strategy<Value = Program> {
        let step = (
            1_usize..3000,
            any::<bool>(),
            any::<bool>(),
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
        );
        prop::collection::vec(step, 1..60).prop_map(|steps| {
            let mut program = Program::default();
            program.values.push(value(70, None));
            program.inputs.insert("x".into(), ValueId(0));
            for (len, in_place, view, left, right) in steps {
                let written = program.values.len();
                let (a, b) = (
                    ValueId(left.index(written) as u32),
                    ValueId(right.index(written) as u32),
                );
                let y = if in_place {
                    a
                } else {
                    program.values.push(value(len, None));
                    ValueId(written as u32)
                };
                program.code.push(Op::Add { a, b, y });
                if view {
                    let root = program.root(y);
                    program.values.push(value(program.value(y).len(), Some(root)));
                }
            }
            let last = ValueId(program.values.len() as u32 - 1);
            program.outputs.insert("y".into(), last);
            program
        })
    }

    fn value(len: usize, view_of: Option<ValueId>) -> Value {
        Value {
            dims: vec![len],
            kind: Kind::Activation,
            view_of,
        }
    }

    proptest! {
        #[test]
        fn values_alive_at_once_never_overlap(program in programs()) {
            let places = plan(&program, size_of);
            let lives = lives(&program);
            let kept = |index: usize| places.of(ValueId(index as u32)).area == Area::Kept;
            for (index, life) in lives.iter().enumerate() {
                let place = places.of(ValueId(index as u32));
                prop_assert_eq!(place, places.of(program.root(ValueId(index as u32))));
                prop_assert_eq!(place.offset % ALIGNMENT, 0);
                let total = if kept(index) { places.kept_bytes } else { places.arena_bytes };
                prop_assert!(place.offset + place.bytes <= total);
                let Some(life) = life else { continue };
                prop_assert_eq!(place.bytes, program.values[index].len() * 2);
                for (other, other_life) in lives.iter().enumerate().skip(index + 1) {
                    let other_place = places.of(ValueId(other as u32));
                    let alive = kept(index) || other_life.is_some_and(|other| life.meets(&other));
                    if other_life.is_some() && alive && place.area == other_place.area {
                        let apart = place.offset + place.bytes <= other_place.offset
                            || other_place.offset + other_place.bytes <= place.offset;
                        prop_assert!(apart, "{index} {place:?} and {other} {other_place:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_chain_of_equal_buffers_takes_two() {
        let mut program = Program {
            values: (0..10).map(|_| value(512, None)).collect(),
            ..Program::default()
        };
        program.inputs.insert("x".into(), ValueId(0));
        program.outputs.insert("y".into(), ValueId(9));
        program.code = (0..9)
            .map(|i| Op::Add {
                a: ValueId(i),
                b: ValueId(i),
                y: ValueId(i + 1),
            })
            .collect();
        let places = plan(&program, size_of);
        assert_eq!((places.kept_bytes, places.arena_bytes), (2048, 2048));
    }

    #[test]
    fn a_gradient_has_a_place_while_it_lives() {
        let mut program = Program {
            values: (0..5).map(|_| value(512, None)).collect(),
            ..Program::default()
        };
        program.inputs.insert("x".into(), ValueId(0));
        program.outputs.insert("y".into(), ValueId(4));
        program.code = (0..4)
            .map(|i| Op::Add {
                a: ValueId(i),
                b: ValueId(i),
                y: ValueId(i + 1),
            })
            .collect();
        let gradient = |id, first, last| Gradient {
            id: ParamId(id),
            bytes: 1024,
            life: Life { first, last },
        };
        let places = plan_lingering(&program, size_of, |_| 0, &[gradient(0, 0, 1), gradient(1, 2, 3)]);
        // A value, or two, and one gradient at a time.
        assert_eq!(places.arena_bytes, 3072);
        let [first, second] = [0, 1].map(|id| places.of_gradient(ParamId(id)).unwrap());
        assert_eq!((first.bytes, second.bytes), (1024, 1024));
        assert_ne!(first.offset, places.of(ValueId(1)).offset);
        assert_ne!(first.offset, places.of(ValueId(2)).offset);
        assert_eq!(places.of_gradient(ParamId(2)), None);
    }

    #[test]
    fn an_input_nobody_reads_still_has_room() {
        let mut program = Program {
            values: vec![value(10, None)],
            ..Program::default()
        };
        program.inputs.insert("x".into(), ValueId(0));
        let places = plan(&program, size_of);
        assert_eq!(places.of(ValueId(0)).bytes, 20);
        assert_eq!(places.kept_bytes, ALIGNMENT);
    }
}
