//! The update of one trained weight by itself, as soon as its gradient is there (`low_memory.cu`): clipped by its own norm, the
//! weight bf16 and rounded by chance. bf16 alone, and 8-bit moments.

use super::{
    super::{
        super::{ir::Group, optim::adamw_8bit::BLOCK},
        call::{Address, Call},
    },
    Launch, THREADS,
    optimizer::{Arena, group_index},
};

/// Elements that a block of threads sums the squares of, at least; and blocks of threads, at most.
const SUMMED: usize = 8192;
const MOST_SUMS: usize = 256;
/// Blocks that a warp updates one after the other.
const ROUNDS: usize = 4;

/// Bytes of the workspace's part that [`update`] needs.
pub const WORKSPACE_BYTES: usize = 4 * MOST_SUMS;

/// A weight, and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// Its number among all weights.
    pub index: usize,
    pub group: Group,
    pub len: usize,
    /// bf16, up to a multiple of [`BLOCK`] with zeros behind the end.
    pub weight: Address,
    /// bf16. What is behind the end is another's.
    pub gradient: Address,
    pub moments: Moments,
    /// F32: becomes the gradient's sum of squares, where the group has a learning rate.
    pub squares: Address,
}

/// Where a weight's moments are.
#[derive(Clone, Copy, Debug)]
pub enum Moments {
    /// F32, first and second.
    Exact([Address; 2]),
    /// Codes and largest values of the first, and of the second.
    Coded([Address; 4]),
}

pub fn update(at: &Arena, tensor: &Tensor) -> Vec<Call> {
    let Tensor { index, len, .. } = *tensor;
    let group = usize::from(group_index(tensor.group));
    match tensor.moments {
        Moments::Exact([first, second]) => {
            let small = Launch::new("own_small_bf16".into(), [1, 1, 1], THREADS)
                .at([tensor.weight, tensor.gradient, first, second, at.slip, tensor.squares])
                .ints([group, index])
                .longs([len]);
            vec![small.0]
        }
        Moments::Coded([first_codes, first_largest, second_codes, second_largest]) => {
            let sums = len.div_ceil(SUMMED).clamp(1, MOST_SUMS);
            let squares = Launch::new("own_squares_bf16".into(), [sums, 1, 1], THREADS)
                .at([tensor.gradient, at.workspace])
                .longs([len]);
            let blocks = len.div_ceil(BLOCK).div_ceil(THREADS / 32 * ROUNDS);
            let update = Launch::new("own_8bit_bf16".into(), [blocks, 1, 1], THREADS)
                .at([
                    tensor.weight,
                    tensor.gradient,
                    first_codes,
                    first_largest,
                    second_codes,
                    second_largest,
                ])
                .at([at.tables, at.slip, at.workspace, tensor.squares])
                .ints([sums, group, index])
                .longs([len]);
            vec![squares.0, update.0]
        }
    }
}
