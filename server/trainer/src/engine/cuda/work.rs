//! Instructions turned into work for the GPU: launches of our kernels, matrix products, convolutions, copies.
//!
//! Gradients of weights are not read before the update, so they are computed on a lane of their own, beside what goes on
//! backwards: most of either are too small to fill a GPU. The main lane waits for one where it would write over what
//! that still touches, and for all at the end.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::{
    super::session::Result,
    blas,
    call::{Address, Call},
    dnn,
    gpu::{Gpu, Lane},
    graph::{self, Mark},
};

pub(super) enum Work {
    Kernel(Call),
    Product(Arc<blas::Plan>, blas::Operands),
    Convolution(Arc<dnn::Plan>, dnn::Operands),
    Copy { from: Address, to: Address, bytes: usize },
}

impl Work {
    /// What it asks of the workspace.
    fn workspace_bytes(&self) -> usize {
        match self {
            Self::Product(plan, _) => plan.workspace_bytes,
            Self::Convolution(plan, _) => plan.workspace_bytes,
            Self::Kernel(_) | Self::Copy { .. } => 0,
        }
    }
}

/// The work of one instruction, by its name.
pub(super) struct Step {
    pub name: &'static str,
    pub lane: Lane,
    pub work: Vec<Work>,
    /// Addresses of the values that it reads, and of those that it writes.
    pub reads: Vec<Range<u64>>,
    pub writes: Vec<Range<u64>>,
    /// Addresses of the weights that it reads.
    pub weights: Vec<Range<u64>>,
    /// Whether it writes gradients of weights.
    pub gradients: bool,
    /// It changes weights, and is left out where that is not asked for.
    pub updates: bool,
}

/// A part of an update.
pub(super) struct Piece {
    /// Addresses of the weights that it changes.
    pub weights: Range<u64>,
    pub calls: Vec<Call>,
}

/// An update that was put off to run beside the first instructions of a list: each waits for the pieces that it needs.
pub(super) struct Ahead {
    begin: Mark,
    /// In the order in which they are needed, each with where it is done.
    pieces: Vec<(Vec<Call>, Mark)>,
    /// By instruction, how many of the pieces have to be done.
    needs: Vec<usize>,
}

/// Work with everything that the libraries want to know before it runs.
enum Ready {
    Kernel(Call),
    Product(Arc<blas::Plan>, blas::Operands, Address),
    Convolution(Arc<dnn::Plan>, dnn::Bound),
    Copy { from: Address, to: Address, bytes: usize },
}

/// When an instruction of the list may start.
enum Order {
    /// On the main lane; after that one of the side lane, where there is one.
    Main { after: Option<usize> },
    /// On the side lane, as its so-and-so-many-th.
    Side(usize),
}

/// A [`Step`] that is ready to run.
struct Prepared {
    name: &'static str,
    order: Order,
    work: Vec<Ready>,
    weights: Vec<Range<u64>>,
    gradients: bool,
    updates: bool,
}

/// A list of work that can be put on the GPU again and again.
pub(super) struct List {
    gpu: Arc<Gpu>,
    steps: Vec<Prepared>,
    /// Of each instruction of the side lane: where it may begin, and where it is done.
    marks: Vec<[Mark; 2]>,
}

/// Bytes that the libraries need besides, for any of the work at a time.
pub(super) fn workspace_bytes(steps: &[Step]) -> usize {
    let all = steps.iter().flat_map(|step| &step.work);
    all.map(Work::workspace_bytes).max().unwrap_or(0)
}

/// What each step waits for, given the ranges that it touches.
fn orders(steps: &[Step]) -> Vec<Order> {
    let mut aside = 0;
    let mut pending: VecDeque<(usize, &Step)> = VecDeque::new();
    (steps.iter())
        .map(|step| {
            if step.lane == Lane::Side {
                pending.push_back((aside, step));
                aside += 1;
                return Order::Side(aside - 1);
            }
            let meets = |aside: &Step| {
                let touched = || aside.reads.iter().chain(&aside.writes);
                let written = step
                    .writes
                    .iter()
                    .flat_map(|write| touched().map(move |there| (write, there)));
                written
                    .into_iter()
                    .any(|(write, there)| write.start < there.end && there.start < write.end)
            };
            let after = pending
                .iter()
                .rev()
                .find(|(_, aside)| meets(aside))
                .map(|&(index, _)| index);
            // What is before it on the side lane is done, too.
            while pending
                .front()
                .is_some_and(|&(index, _)| after.is_some_and(|after| index <= after))
            {
                pending.pop_front();
            }
            Order::Main { after }
        })
        .collect()
}

/// The order of pieces, and by instruction how many of them have to be done before it.
struct Needs {
    order: Vec<usize>,
    counts: Vec<usize>,
}

fn needs(steps: &[Prepared], pieces: &[Piece]) -> Needs {
    let meets = |step: &Prepared, piece: &Piece| {
        (step.weights.iter()).any(|weight| weight.start < piece.weights.end && piece.weights.start < weight.end)
    };
    let first_use = |piece: &Piece| steps.iter().position(|step| meets(step, piece));
    let mut order: Vec<(usize, usize)> = (pieces.iter().enumerate())
        .map(|(index, piece)| (first_use(piece).unwrap_or(steps.len()), index))
        .collect();
    order.sort_unstable();
    let counts = (steps.iter().enumerate())
        .map(|(index, step)| match step.gradients {
            // They would write over what the update reads.
            true => pieces.len(),
            false => order.iter().filter(|(first, _)| *first <= index).count(),
        })
        .collect();
    Needs {
        order: order.into_iter().map(|(_, index)| index).collect(),
        counts,
    }
}

impl List {
    /// `workspaces`: of the main lane and of the side lane.
    ///
    /// # Errors
    /// What the libraries answer.
    pub fn new(gpu: &Arc<Gpu>, steps: Vec<Step>, workspaces: [Address; 2]) -> Result<Self> {
        let orders = orders(&steps);
        let aside = steps.iter().filter(|step| step.lane == Lane::Side).count();
        let marks = (0..aside)
            .map(|_| Ok([Mark::untimed(gpu)?, Mark::untimed(gpu)?]))
            .collect::<Result<_>>()?;
        let steps = (steps.into_iter().zip(orders))
            .map(|(step, order)| {
                let workspace = workspaces[usize::from(step.lane == Lane::Side)];
                let ready = |work| {
                    Ok(match work {
                        Work::Kernel(call) => Ready::Kernel(call),
                        Work::Product(plan, operands) => Ready::Product(plan, operands, workspace),
                        Work::Convolution(plan, operands) => {
                            let bound = plan.bind(operands, workspace)?;
                            Ready::Convolution(plan, bound)
                        }
                        Work::Copy { from, to, bytes } => Ready::Copy { from, to, bytes },
                    })
                };
                let work = step.work.into_iter().map(ready).collect::<Result<_>>()?;
                Ok(Prepared {
                    name: step.name,
                    order,
                    work,
                    weights: step.weights,
                    gradients: step.gradients,
                    updates: step.updates,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            gpu: gpu.clone(),
            steps,
            marks,
        })
    }

    /// An update to run beside this list.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn ahead(&self, pieces: Vec<Piece>) -> Result<Ahead> {
        let needs = needs(&self.steps, &pieces);
        let marked = |index: &usize| Ok((pieces[*index].calls.clone(), Mark::untimed(&self.gpu)?));
        Ok(Ahead {
            begin: Mark::untimed(&self.gpu)?,
            pieces: needs.order.iter().map(marked).collect::<Result<_>>()?,
            needs: needs.counts,
        })
    }

    /// Puts everything on the GPU, in order; when it returns, the main lane waits for all of it. `updates`: with the steps
    /// that change weights.
    ///
    /// # Errors
    /// What the driver and the libraries answer.
    pub fn issue(&self, ahead: Option<&Ahead>, updates: bool) -> Result<()> {
        if let Some(Ahead { begin, pieces, .. }) = ahead {
            begin.set(Lane::Main)?;
            begin.hold(Lane::Side)?;
            for (calls, done) in pieces {
                // Not early: what waits for its turn would take the place of the main lane's work.
                (calls.iter()).try_for_each(|call| self.gpu.launch_on(call, Lane::Side, false))?;
                done.set(Lane::Side)?;
            }
        }
        let mut updated = 0;
        for (index, step) in self.steps.iter().enumerate() {
            let work = if step.updates && !updates { &[][..] } else { &step.work };
            match step.order {
                Order::Main { after } => {
                    let mut waits = after.is_some();
                    if let Some(after) = after {
                        self.marks[after][1].hold(Lane::Main)?;
                    }
                    if let Some(Ahead { pieces, needs, .. }) = ahead
                        && needs[index] > updated
                    {
                        updated = needs[index];
                        pieces[updated - 1].1.hold(Lane::Main)?;
                        waits = true;
                    }
                    for (index, work) in work.iter().enumerate() {
                        self.start(work, Lane::Main, index > 0 || !waits)?;
                    }
                }
                Order::Side(index) => {
                    let [begin, done] = &self.marks[index];
                    begin.set(Lane::Main)?;
                    begin.hold(Lane::Side)?;
                    work.iter().try_for_each(|work| self.start(work, Lane::Side, false))?;
                    done.set(Lane::Side)?;
                }
            }
        }
        if let Some((_, done)) = ahead.and_then(|ahead| ahead.pieces.last()) {
            done.hold(Lane::Main)?;
        }
        self.marks.last().map_or(Ok(()), |[_, done]| done.hold(Lane::Main))
    }

    /// Whether the last thing on the main lane was to wait, so that what follows must not start early.
    pub fn ends_waiting(&self) -> bool {
        !self.marks.is_empty()
    }

    /// Milliseconds of each instruction by itself, with its name.
    ///
    /// # Errors
    /// What the driver and the libraries answer.
    pub fn time_each(&self) -> Result<Vec<(&'static str, f32)>> {
        let time = |work: &Vec<Ready>| {
            graph::time(&self.gpu, || {
                work.iter().try_for_each(|work| self.start(work, Lane::Main, true))
            })
        };
        (self.steps.iter())
            .map(|step| Ok((step.name, time(&step.work)?)))
            .collect()
    }

    fn start(&self, work: &Ready, lane: Lane, early: bool) -> Result<()> {
        match work {
            Ready::Kernel(call) => self.gpu.launch_on(call, lane, early),
            Ready::Product(plan, operands, workspace) => plan.run(operands, *workspace, lane),
            Ready::Convolution(plan, bound) => plan.run(bound, lane),
            Ready::Copy { from, to, bytes } => self.gpu.copy(*from, *to, *bytes, lane),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(lane: Lane, reads: &[(u64, u64)], writes: &[(u64, u64)]) -> Step {
        let ranges = |of: &[(u64, u64)]| of.iter().map(|&(start, end)| start..end).collect();
        Step {
            name: "",
            lane,
            work: Vec::new(),
            reads: ranges(reads),
            writes: ranges(writes),
            weights: Vec::new(),
            gradients: false,
            updates: false,
        }
    }

    #[test]
    fn the_main_lane_waits_where_it_would_write_over_what_is_still_touched() {
        let steps = [
            step(Lane::Side, &[(0, 10), (20, 30)], &[]),
            step(Lane::Side, &[(40, 50)], &[]),
            step(Lane::Main, &[(0, 10)], &[(10, 20)]),
            step(Lane::Main, &[], &[(29, 31)]),
            step(Lane::Main, &[], &[(0, 5)]),
            step(Lane::Side, &[(0, 5)], &[]),
            step(Lane::Main, &[], &[(45, 46), (0, 1)]),
            step(Lane::Main, &[], &[(0, 50)]),
            step(Lane::Side, &[], &[(60, 70)]),
            step(Lane::Main, &[], &[(65, 66)]),
        ];
        let orders = orders(&steps);
        let after: Vec<Option<Option<usize>>> = (orders.iter())
            .map(|order| match *order {
                Order::Main { after } => Some(after),
                Order::Side(_) => None,
            })
            .collect();
        let (free, wait) = (Some(None), |index| Some(Some(index)));
        assert_eq!(
            after,
            [None, None, free, wait(0), free, None, wait(2), free, None, wait(3)]
        );
    }

    #[test]
    fn an_instruction_waits_for_the_pieces_of_an_update_that_it_or_any_before_it_reads() {
        let prepared = |weights: &[(u64, u64)], gradients| Prepared {
            name: "",
            order: Order::Main { after: None },
            work: Vec::new(),
            weights: weights.iter().map(|&(start, end)| start..end).collect(),
            gradients,
            updates: false,
        };
        let piece = |weights| Piece {
            weights,
            calls: Vec::new(),
        };
        let steps = [
            prepared(&[], false),
            prepared(&[(25, 30), (0, 5)], false),
            prepared(&[(5, 10)], false),
            prepared(&[(10, 11)], false),
            prepared(&[], true),
        ];
        let needs = needs(&steps, &[piece(30..40), piece(10..20), piece(20..30), piece(0..10)]);
        // The first piece is read by nobody, but the last instruction writes over the gradients.
        assert_eq!(needs.order, [2, 3, 1, 0]);
        assert_eq!(needs.counts, [0, 2, 2, 3, 4]);
    }
}
