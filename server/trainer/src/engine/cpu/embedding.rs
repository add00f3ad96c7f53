//! Rows of a table by number, plus a row per position; the gradient adds up where a number occurs more than once.

use super::kernel::{Write, add, sum};

/// `ids` `[rows, tokens]`, `table` `[vocabulary, width]`, `positions` `[at least tokens, width]`.
///
/// # Errors
/// The first id that is not in the table.
pub(crate) fn forward(
    y: &mut [f32],
    ids: &[u32],
    table: &[f32],
    positions: &[f32],
    (tokens, width): (usize, usize),
) -> Result<(), u32> {
    for (index, (y, &id)) in y.chunks_exact_mut(width).zip(ids).enumerate() {
        let row = table.chunks_exact(width).nth(id as usize).ok_or(id)?;
        sum(y, row, &positions[index % tokens * width..][..width]);
    }
    Ok(())
}

/// The gradients that are wanted. The ids are those of a forward, and so are in the table.
pub(crate) fn backward<'a>(
    mut dtable: Option<&'a mut [f32]>,
    mut dpositions: Option<&'a mut [f32]>,
    dy: &[f32],
    ids: &[u32],
    (tokens, width): (usize, usize),
    write: Write,
) {
    if write == Write::Replace {
        for gradient in [&mut dtable, &mut dpositions].into_iter().flatten() {
            gradient.fill(0.);
        }
    }
    for (index, (dy, &id)) in dy.chunks_exact(width).zip(ids).enumerate() {
        if let Some(dtable) = &mut dtable {
            add(&mut dtable[id as usize * width..][..width], dy);
        }
        if let Some(dpositions) = &mut dpositions {
            add(&mut dpositions[index % tokens * width..][..width], dy);
        }
    }
}
