//! Token and position embeddings (`embedding.cu`).

use super::{
    super::call::{Address, Call, Element},
    Launch, THREADS, sums,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    pub tokens: usize,
    pub width: usize,
    pub vocabulary: usize,
    /// Positions that the table of positions has; at least `tokens`.
    pub positions: usize,
}

/// `y[row, i] = table[ids[row, i]] + positions[i]`; ids are u32 and below the vocabulary's size.
pub fn embedding(
    element: Element,
    shape: &Shape,
    ids: Address,
    [table, positions]: [Address; 2],
    y: Address,
) -> Vec<Call> {
    let name = format!("embedding_{}", element.suffix());
    let launch = Launch::new(name, [shape.rows * shape.tokens, 1, 1], THREADS);
    vec![
        launch
            .at([ids, table, positions, y])
            .ints([shape.tokens, shape.width])
            .0,
    ]
}

/// Gradients of both tables, of which either may be absent. Rows of tokens that did not occur become zero unless `add`.
pub fn embedding_grad(
    element: Element,
    shape: &Shape,
    dy: Address,
    ids: Address,
    [dtable, dpositions]: [Address; 2],
    add: bool,
) -> Vec<Call> {
    let &Shape {
        rows,
        tokens,
        width,
        vocabulary,
        positions,
    } = shape;
    let mut calls = Vec::new();
    if dtable != Address::NONE {
        if !add {
            calls.extend(sums::zero(dtable, vocabulary * width * element.bytes()));
        }
        let grid = [rows * tokens, width.div_ceil(THREADS), 1];
        let launch = Launch::new(format!("embedding_grad_{}", element.suffix()), grid, THREADS);
        calls.push(launch.at([dy, ids, dtable]).ints([width, usize::from(add)]).0);
    }
    if dpositions != Address::NONE {
        if !add && positions > tokens {
            let bytes = tokens * width * element.bytes();
            calls.extend(sums::zero(
                dpositions.offset(bytes),
                (positions - tokens) * width * element.bytes(),
            ));
        }
        let launch = Launch::new(format!("positions_grad_{}", element.suffix()), [tokens, 1, 1], THREADS);
        calls.push(launch.at([dy, dpositions]).ints([rows, width, usize::from(add)]).0);
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::super::super::call::Argument;
    use super::*;

    #[test]
    fn tables_are_cleared_only_where_gradients_are_not_added() {
        let shape = Shape {
            rows: 2,
            tokens: 5,
            width: 300,
            vocabulary: 100,
            positions: 7,
        };
        let names = |tables: [Address; 2], add: bool| -> Vec<String> {
            let calls = embedding_grad(Element::F16, &shape, Address(256), Address(512), tables, add);
            calls.into_iter().map(|call| call.name).collect()
        };
        let both = [Address(1 << 20), Address(1 << 21)];
        assert_eq!(
            names(both, false),
            ["zero", "embedding_grad_f16", "zero", "positions_grad_f16"]
        );
        assert_eq!(names(both, true), ["embedding_grad_f16", "positions_grad_f16"]);
        assert_eq!(names([Address::NONE; 2], false), [""; 0]);
        let calls = embedding_grad(Element::F16, &shape, Address(256), Address(512), both, false);
        assert_eq!(calls[1].grid, [10, 2, 1], "columns beyond one block");
        // Positions that no token has.
        let start = Argument::Address(both[1].offset(5 * 300 * 2));
        assert_eq!(calls[2].arguments, [start, Argument::I64(2 * 300 * 2)]);
    }
}
