//! Sums over rows, and zeros (`sums.cu`).

use super::{
    super::call::{Address, Call, Element},
    Launch, THREADS, vector_of,
};

/// Vectors of columns, side by side, of a block; the other threads are rows.
const TILE: usize = 8;
/// Blocks that share a tile's rows find out by a counter who is last; there are so many counters.
const COUNTERS: usize = 4096;
/// Blocks that fill a large GPU. Not the card's own number, so that sums are made alike on every card.
const ENOUGH_BLOCKS: usize = 264;
/// Below so many rows a block more costs more than it helps.
const ROWS_OF_A_PART: usize = 160;

/// Into how many parts of rows the sum is cut, and rows of a part.
fn parts(element: Element, rows: usize, columns: usize) -> (usize, usize) {
    let tiles = columns.div_ceil(TILE * vector_of(element, columns));
    if tiles > COUNTERS {
        return (1, rows);
    }
    let wanted = (ENOUGH_BLOCKS / tiles).clamp(1, rows.div_ceil(ROWS_OF_A_PART).max(1));
    let of_a_part = rows.div_ceil(wanted).max(1);
    (rows.div_ceil(of_a_part).max(1), of_a_part)
}

/// Bytes that [`column_sums`] needs besides its operands.
pub fn column_sums_workspace(element: Element, rows: usize, columns: usize) -> usize {
    match parts(element, rows, columns) {
        (1, _) => 0,
        (parts, _) => parts * columns * 4,
    }
}

/// `sums[column]` = sum over rows of `x` `[rows, columns]`, added to what is there with `add`: a bias' gradient.
pub fn column_sums(
    element: Element,
    x: Address,
    sums: Address,
    workspace: Address,
    [rows, columns]: [usize; 2],
    add: bool,
) -> Vec<Call> {
    let width = vector_of(element, columns);
    let (parts, of_a_part) = parts(element, rows, columns);
    let name = format!("column_sums_{width}_{}", element.suffix());
    let launch = Launch::new(name, [columns.div_ceil(TILE * width), parts, 1], THREADS);
    vec![
        launch
            .at([x, sums, workspace])
            .ints([rows, columns, of_a_part, usize::from(add)])
            .0,
    ]
}

/// Zeros. `at` and `bytes` are multiples of 2.
pub fn zero(at: Address, bytes: usize) -> Vec<Call> {
    if bytes == 0 {
        return vec![];
    }
    vec![
        Launch::flat("zero".to_owned(), bytes.div_ceil(16))
            .at([at])
            .longs([bytes])
            .0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_all_rows_and_each_has_some() {
        for element in [Element::F32, Element::Bf16] {
            for (rows, columns) in [
                (8192, 320),
                (154, 768),
                (1, 1),
                (161, 8),
                (4097, 13),
                (5, 100_000),
                (3, 8 * COUNTERS + 8),
            ] {
                let (parts, of_a_part) = parts(element, rows, columns);
                assert!(
                    parts * of_a_part >= rows && (parts - 1) * of_a_part < rows,
                    "{rows} {columns}"
                );
                let workspace = column_sums_workspace(element, rows, columns);
                assert_eq!(workspace, if parts == 1 { 0 } else { parts * columns * 4 });
                let calls = column_sums(
                    element,
                    Address(256),
                    Address(512),
                    Address(768),
                    [rows, columns],
                    false,
                );
                assert_eq!(calls[0].grid[1] as usize, parts);
                assert!(
                    parts == 1 || calls[0].grid[0] as usize <= COUNTERS,
                    "each tile has a counter"
                );
            }
        }
        // Enough blocks for a large GPU.
        assert_eq!(parts(Element::Bf16, 8192, 320).0, 52);
    }
}
