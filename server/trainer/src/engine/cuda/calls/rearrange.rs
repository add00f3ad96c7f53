//! Upsampling and concatenation (`rearrange.cu`).

use super::{
    super::call::{Address, Call, Element},
    Launch, vector_of,
};

/// A map `[rows, from, channels]` that becomes `[rows, to, channels]`; sizes are height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    pub rows: usize,
    pub from: [usize; 2],
    pub to: [usize; 2],
    pub channels: usize,
}

/// Nearest neighbour: source index = floor(i * size_in / size_out).
pub fn upsample(element: Element, shape: &Resize, x: Address, y: Address) -> Vec<Call> {
    let &Resize {
        rows,
        from,
        to,
        channels,
    } = shape;
    let width = vector_of(element, channels);
    let vectors = rows * to[0] * to[1] * (channels / width);
    let launch = Launch::flat(format!("upsample_{width}_{}", element.suffix()), vectors);
    vec![
        launch
            .at([x, y])
            .ints(from)
            .ints(to)
            .ints([channels])
            .longs([vectors])
            .0,
    ]
}

/// `dx` = sums of what each pixel became, plus `plus`, which may be absent or `dx`.
pub fn upsample_grad(element: Element, shape: &Resize, dy: Address, plus: Address, dx: Address) -> Vec<Call> {
    let &Resize {
        rows,
        from,
        to,
        channels,
    } = shape;
    let width = vector_of(element, channels);
    let vectors = rows * from[0] * from[1] * (channels / width);
    let launch = Launch::flat(format!("upsample_grad_{width}_{}", element.suffix()), vectors);
    vec![
        launch
            .at([dy, plus, dx])
            .ints(from)
            .ints(to)
            .ints([channels])
            .longs([vectors])
            .0,
    ]
}

/// `y` `[pixels, channels of a + channels of b]`.
pub fn concat(element: Element, [a, b]: [Address; 2], y: Address, pixels: usize, channels: [usize; 2]) -> Vec<Call> {
    let width = vector_of(element, channels[0]).min(vector_of(element, channels[1]));
    let vectors = pixels * (channels[0] + channels[1]) / width;
    let launch = Launch::flat(format!("concat_{width}_{}", element.suffix()), vectors);
    vec![launch.at([a, b, y]).ints(channels).longs([vectors]).0]
}

/// The parts of `dy`; `da` or `db` may be absent.
pub fn concat_grad(
    element: Element,
    dy: Address,
    [da, db]: [Address; 2],
    pixels: usize,
    channels: [usize; 2],
) -> Vec<Call> {
    let width = vector_of(element, channels[0]).min(vector_of(element, channels[1]));
    let vectors = pixels * (channels[0] + channels[1]) / width;
    let launch = Launch::flat(format!("concat_grad_{width}_{}", element.suffix()), vectors);
    vec![launch.at([dy, da, db]).ints(channels).longs([vectors]).0]
}
