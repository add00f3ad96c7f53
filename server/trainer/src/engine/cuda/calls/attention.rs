//! Launches of attention and its gradient (`attention_forward.cu`, `attention_backward.cu`, `attention_plain.cu`); a single wide
//! head, such as the autoencoder's, is two matrix products around `attention_weights.cu` instead.

use super::super::call::{Address, Argument, Call, Element};
use super::addresses;

/// Widths that the tensor-core kernels are built for; a head is padded to the next.
const WIDTHS: [usize; 5] = [32, 40, 64, 80, 160];
/// Channels a lane of the plain kernels can hold; times 32, the widest head.
const PLAIN_CHANNELS: [usize; 3] = [2, 5, 16];
const THREADS: u32 = 128;
/// Blocks that keep a large GPU busy while a split's partial sums still fit its cache. A fixed number and not the card's, so
/// that sums are made alike on every card.
const ENOUGH_BLOCKS: usize = 264;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub head_size: usize,
    pub causal: bool,
}

/// The head is wider than any kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attention heads of {0} channels are wider than 512")]
pub struct TooWide(pub usize);

/// Operands of the forward; `stats` is F32 `[rows, heads, queries]`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub y: Address,
    pub stats: Address,
}

#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub dy: Address,
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub y: Address,
    pub stats: Address,
    pub dq: Address,
    pub dk: Address,
    pub dv: Address,
    /// Of [`backward_workspace`] bytes.
    pub workspace: Address,
}

/// Scores of a single wide head, some queries at a time, between the two products.
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    /// F32 `[queries, keys]`, without the scale.
    pub scores: Address,
    /// `[queries, keys]`.
    pub weights: Address,
    /// F32 `[queries]`.
    pub stats: Address,
}

/// Bytes that the scores and the weights of [`Shape::queries_at_once`] may take.
const SCORES_BYTES: usize = 24 << 20;
const QUERIES_AT_ONCE: usize = 1024;

/// How a head is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernels {
    /// Padded to a width of [`WIDTHS`].
    TensorCores { width: usize },
    /// So many channels a lane.
    Plain { each: usize },
}

impl Shape {
    /// One head, wider than the tensor-core kernels take: its scores are worth a place in memory.
    pub fn is_wide(&self) -> bool {
        self.heads == 1 && !self.causal && WIDTHS.iter().all(|width| *width < self.head_size)
    }

    /// Of a wide head.
    pub fn queries_at_once(&self, element: Element) -> usize {
        let fit = SCORES_BYTES / (self.keys * (4 + element.bytes()));
        fit.clamp(64, QUERIES_AT_ONCE).min(self.queries)
    }

    fn kernels(&self, element: Element) -> Result<Kernels, TooWide> {
        // Pairs of elements are read at once, so a head must not begin on an odd one.
        if element != Element::F32
            && self.head_size.is_multiple_of(2)
            && let Some(width) = WIDTHS.into_iter().find(|width| *width >= self.head_size)
        {
            return Ok(Kernels::TensorCores { width });
        }
        let each = PLAIN_CHANNELS.into_iter().find(|each| each * 32 >= self.head_size);
        each.map(|each| Kernels::Plain { each }).ok_or(TooWide(self.head_size))
    }

    fn grid(&self, blocks: usize) -> [u32; 3] {
        [blocks as u32, self.heads as u32, self.rows as u32]
    }

    fn sizes(&self) -> [Argument; 4] {
        [self.head_size, self.queries, self.keys, usize::from(self.causal)].map(|size| Argument::I32(size as i32))
    }

    /// Bytes of `delta`, `[rows, heads, queries]`, rounded up so that what follows is aligned.
    fn delta_bytes(&self) -> usize {
        (4 * self.rows * self.heads * self.queries).next_multiple_of(256)
    }

    fn key_elements(&self) -> usize {
        self.rows * self.keys * self.heads * self.head_size
    }

    /// Into how many parts the sums over queries are cut.
    fn parts(&self, width: usize) -> usize {
        let blocks = self.keys.div_ceil(backward_rows(width)) * self.heads * self.rows;
        let steps = self.queries.div_ceil(backward_step(width));
        // Only as many as leave each some work.
        ENOUGH_BLOCKS.div_ceil(blocks).min(steps.div_ceil(2)).max(1)
    }
}

/// Queries of a block of the forward.
fn forward_rows(width: usize) -> usize {
    if width <= 64 { 128 } else { 64 }
}

/// Keys that it walks at a time.
fn forward_step(width: usize) -> usize {
    if width == 40 { 128 } else { 64 }
}

/// Queries, or keys, that a block of the backward holds.
fn backward_rows(width: usize) -> usize {
    if width == 32 { 128 } else { 64 }
}

/// Keys, or queries, that it walks at a time.
fn backward_step(width: usize) -> usize {
    match width {
        40 => 128,
        160 => 32,
        _ => 64,
    }
}

/// Bytes from a row of a tile to the next: an odd number of 16-byte units, so that eight rows lie in different banks.
fn pitch_bytes(width: usize, element: Element) -> usize {
    let columns = if (width / 8).is_multiple_of(2) {
        width + 8
    } else {
        width
    };
    columns * element.bytes()
}

/// Whether keys and values of a block stay in shared memory.
fn kept(width: usize) -> bool {
    width > 80
}

fn call(name: String, grid: [u32; 3], shared_bytes: usize, arguments: Vec<Argument>) -> Call {
    Call {
        name,
        grid,
        block: [THREADS, 1, 1],
        shared_bytes: shared_bytes as u32,
        arguments,
    }
}

/// # Errors
/// When the head is wider than 512.
pub fn forward(element: Element, shape: &Shape, at: &Forward) -> Result<Vec<Call>, TooWide> {
    let suffix = element.suffix();
    let (name, rows, shared) = match shape.kernels(element)? {
        Kernels::TensorCores { width } => (
            format!("attention_forward_{width}_{suffix}"),
            forward_rows(width),
            // A tile of keys and one of values.
            2 * forward_step(width) * pitch_bytes(width, element),
        ),
        Kernels::Plain { each } => (format!("attention_plain_forward_{each}_{suffix}"), 16, 0),
    };
    let mut arguments = addresses(&[at.q, at.k, at.v, at.y, at.stats]);
    arguments.extend(shape.sizes());
    Ok(vec![call(
        name,
        shape.grid(shape.queries.div_ceil(rows)),
        shared,
        arguments,
    )])
}

/// The weights of `queries` queries of a wide head from their scores.
pub fn weights(element: Element, shape: &Shape, queries: usize, at: &Scores) -> Call {
    let name = format!("attention_weights_{}", element.suffix());
    let mut launch = super::Launch::new(name, [queries, 1, 1], super::THREADS).at([at.scores, at.weights, at.stats]);
    launch
        .0
        .arguments
        .extend([shape.head_size, shape.keys].map(|size| Argument::I32(size as i32)));
    launch.0
}

/// Bytes that [`backward`] needs besides its operands.
///
/// # Errors
/// When the head is wider than 512.
pub fn backward_workspace(element: Element, shape: &Shape) -> Result<usize, TooWide> {
    let parts = match shape.kernels(element)? {
        Kernels::TensorCores { width } => shape.parts(width),
        Kernels::Plain { .. } => 1,
    };
    let sums = if parts == 1 {
        0
    } else {
        2 * 4 * parts * shape.key_elements()
    };
    Ok(shape.delta_bytes() + sums)
}

/// # Errors
/// When the head is wider than 512.
pub fn backward(element: Element, shape: &Shape, at: &Backward) -> Result<Vec<Call>, TooWide> {
    let suffix = element.suffix();
    let delta = at.workspace;
    let mut q_arguments = addresses(&[at.dy, at.q, at.k, at.v, at.y, at.stats, delta, at.dq]);
    q_arguments.extend(shape.sizes());
    let mut kv_arguments = addresses(&[at.dy, at.q, at.k, at.v, at.stats, delta, at.dk, at.dv]);
    match shape.kernels(element)? {
        Kernels::Plain { each } => {
            kv_arguments.extend(shape.sizes());
            Ok(vec![
                call(
                    format!("attention_plain_backward_q_{each}_{suffix}"),
                    shape.grid(shape.queries.div_ceil(4)),
                    0,
                    q_arguments,
                ),
                call(
                    format!("attention_plain_backward_kv_{each}_{suffix}"),
                    shape.grid(shape.keys.div_ceil(4)),
                    0,
                    kv_arguments,
                ),
            ])
        }
        Kernels::TensorCores { width } => {
            let (rows, step, parts) = (backward_rows(width), backward_step(width), shape.parts(width));
            let row_bytes = pitch_bytes(width, element);
            let stages = if kept(width) { 1 } else { 2 };
            let held = if kept(width) { 2 * rows * row_bytes } else { 0 };
            let (parts_k, parts_v) = if parts == 1 {
                (Address::NONE, Address::NONE)
            } else {
                let first = at.workspace.offset(shape.delta_bytes());
                (first, first.offset(4 * parts * shape.key_elements()))
            };
            kv_arguments.extend(addresses(&[parts_k, parts_v]));
            kv_arguments.push(Argument::I32(parts as i32));
            kv_arguments.extend(shape.sizes());
            let mut calls = vec![
                call(
                    format!("attention_backward_q_{width}_{suffix}"),
                    shape.grid(shape.queries.div_ceil(rows)),
                    2 * 2 * step * row_bytes,
                    q_arguments,
                ),
                call(
                    format!("attention_backward_kv_{width}_{suffix}"),
                    shape.grid(shape.keys.div_ceil(rows) * parts),
                    // Tiles of queries and upstream gradients, their statistics, and what is held.
                    stages * 2 * step * (row_bytes + 4) + held,
                    kv_arguments,
                ),
            ];
            if parts > 1 {
                let mut arguments = addresses(&[parts_k, parts_v, at.dk, at.dv]);
                arguments.push(Argument::I32(parts as i32));
                arguments.push(Argument::I32(shape.key_elements() as i32));
                calls.push(Call {
                    name: format!("attention_sum_parts_{suffix}"),
                    grid: [shape.key_elements().div_ceil(256) as u32, 2, 1],
                    block: [256, 1, 1],
                    shared_bytes: 0,
                    arguments,
                });
            }
            Ok(calls)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SELF_64: Shape = Shape {
        rows: 2,
        queries: 4096,
        keys: 4096,
        heads: 8,
        head_size: 40,
        causal: false,
    };

    fn operands() -> Backward {
        let at = |n: u64| Address(n << 32);
        Backward {
            dy: at(1),
            q: at(2),
            k: at(3),
            v: at(4),
            y: at(5),
            stats: at(6),
            dq: at(7),
            dk: at(8),
            dv: at(9),
            workspace: at(10),
        }
    }

    #[test]
    fn heads_are_padded_to_the_next_width_and_odd_or_wide_ones_take_the_plain_kernels() {
        let of = |head_size, element| Shape { head_size, ..SELF_64 }.kernels(element);
        assert_eq!(of(40, Element::Bf16), Ok(Kernels::TensorCores { width: 40 }));
        assert_eq!(of(160, Element::F16), Ok(Kernels::TensorCores { width: 160 }));
        assert_eq!(of(40, Element::F32), Ok(Kernels::Plain { each: 2 }));
        assert_eq!(of(13, Element::Bf16), Ok(Kernels::Plain { each: 2 }));
        assert_eq!(of(512, Element::Bf16), Ok(Kernels::Plain { each: 16 }));
        assert_eq!(of(513, Element::Bf16), Err(TooWide(513)));
    }

    #[test]
    fn a_single_wide_head_is_taken_some_queries_at_a_time() {
        let decoder = Shape {
            rows: 1,
            heads: 1,
            head_size: 512,
            ..SELF_64
        };
        assert!(decoder.is_wide() && !SELF_64.is_wide());
        assert!(
            !Shape { heads: 2, ..decoder }.is_wide()
                && !Shape {
                    causal: true,
                    ..decoder
                }
                .is_wide()
        );
        assert_eq!(decoder.queries_at_once(Element::F16), 1024);
        let large = Shape { keys: 16384, ..decoder };
        assert_eq!(large.queries_at_once(Element::F16), 256);
        assert_eq!(Shape { queries: 9, ..decoder }.queries_at_once(Element::F32), 9);
    }

    #[test]
    fn few_keys_are_summed_in_parts_that_the_workspace_holds() {
        let cross = Shape { keys: 77, ..SELF_64 };
        let calls = backward(Element::Bf16, &cross, &operands()).unwrap();
        assert_eq!(calls.len(), 3);
        // Two blocks of 64 keys, 16 heads and rows: 9 parts make 288 blocks.
        assert_eq!(calls[1].grid, [18, 8, 2]);
        let sums = 2 * 4 * 9 * 2 * 77 * 320;
        assert_eq!(
            backward_workspace(Element::Bf16, &cross).unwrap(),
            4 * 2 * 8 * 4096 + sums
        );
        assert_eq!(backward(Element::Bf16, &SELF_64, &operands()).unwrap().len(), 2);
        assert_eq!(
            backward_workspace(Element::Bf16, &SELF_64).unwrap(),
            4 * 2 * 8 * 4096,
            "delta alone"
        );
    }

    #[test]
    fn shared_memory_stays_within_what_turing_has() {
        for head_size in [8, 40, 64, 80, 160] {
            let shape = Shape { head_size, ..SELF_64 };
            for call in backward(Element::F16, &shape, &operands()).unwrap() {
                assert!(call.shared_bytes <= 64 * 1024, "{}: {}", call.name, call.shared_bytes);
            }
        }
    }
}
