//! What the CPU kernels share: matrix products over strided views, loops compiled for wide vectors, memory that is
//! used again.
//!
//! Work is cut by shape, never by the number of threads, and sums keep one order: the same input gives the same bits
//! on any number of cores.

use std::sync::{Mutex, PoisonError};

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// A matrix inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major, rows `row_stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            fits(data.len(), rows, cols, row_stride, 1),
            "a view of {rows} x {cols} leaves its slice"
        );
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    pub fn t(self) -> Self {
        let Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        } = self;
        Self {
            data,
            rows: cols,
            cols: rows,
            row_stride: col_stride,
            col_stride: row_stride,
        }
    }

    /// `count` rows from `first`.
    pub fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows {first}.. of {}", self.rows);
        Self {
            data: &self.data[first * self.row_stride..],
            rows: count,
            ..self
        }
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> bool {
    rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < len
}

/// A matrix to write: row-major, rows `row_stride` apart. Tiles of one matrix may be written from several threads.
#[derive(Clone, Copy)]
pub(super) struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: whoever copies a `MatMut` (only this room, through `tile`) writes disjoint parts from each thread.
unsafe impl Send for MatMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for MatMut<'_> {}

impl<'a> MatMut<'a> {
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            fits(data.len(), rows, cols, row_stride, 1),
            "a view of {rows} x {cols} leaves its slice"
        );
        Self {
            data: data.as_mut_ptr(),
            rows,
            cols,
            row_stride,
            life: std::marker::PhantomData,
        }
    }

    /// The part of `rows` x `cols` whose first element is (`row`, `col`).
    ///
    /// # Safety
    /// Parts that are alive at the same time must not overlap.
    pub unsafe fn tile(self, (row, rows): (usize, usize), (col, cols): (usize, usize)) -> Self {
        assert!(
            row + rows <= self.rows && col + cols <= self.cols,
            "a tile leaves its matrix"
        );
        // SAFETY: the first element lies inside the matrix, which lies inside its slice.
        let data = unsafe { self.data.add(row * self.row_stride + col) };
        Self {
            data,
            rows,
            cols,
            ..self
        }
    }

    /// Row `row` as a slice.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies inside the slice that the matrix borrows mutably; tiles do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.cols) }
    }
}

/// What becomes of the values that are there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Replace,
    Add,
}

/// `out = scale * a b`, or added to it, on this thread.
pub(super) fn product(out: MatMut, a: Mat, b: Mat, scale: f32, write: Write) {
    assert!(
        out.rows == a.rows && out.cols == b.cols && a.cols == b.rows,
        "matrix sizes do not match"
    );
    if out.rows == 0 || out.cols == 0 {
        return;
    }
    // SAFETY: the views were checked against their slices when made, and the sizes match.
    unsafe {
        gemm(
            out.rows,
            out.cols,
            a.cols,
            out.data,
            1,
            out.row_stride as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Multiplications worth a task of their own.
const TASK: usize = 1 << 20;

/// [`product`] over all threads.
pub(super) fn par_product(out: MatMut, a: Mat, b: Mat, scale: f32, write: Write) {
    let tasks = (out.rows * out.cols * a.cols / TASK).clamp(1, 64);
    if tasks == 1 {
        return product(out, a, b, scale, write);
    }
    // Cut the longer side: the pieces of the other operand are read again by each task.
    let (row_tile, col_tile) = if out.rows >= out.cols {
        (out.rows.div_ceil(tasks).next_multiple_of(16), out.cols)
    } else {
        (out.rows, out.cols.div_ceil(tasks).next_multiple_of(16))
    };
    let (row_tiles, col_tiles) = (out.rows.div_ceil(row_tile), out.cols.div_ceil(col_tile));
    (0..row_tiles * col_tiles).into_par_iter().for_each(|tile| {
        let (row, col) = (tile / col_tiles * row_tile, tile % col_tiles * col_tile);
        let (rows, cols) = (row_tile.min(out.rows - row), col_tile.min(out.cols - col));
        let a = Mat {
            data: &a.data[row * a.row_stride..],
            rows,
            ..a
        };
        let b = Mat {
            data: &b.data[col * b.col_stride..],
            cols,
            ..b
        };
        // SAFETY: tiles of a grid do not overlap.
        product(unsafe { out.tile((row, rows), (col, cols)) }, a, b, scale, write);
    });
}

/// Buffers of finished tasks. A fresh megabyte costs more in page faults than many a kernel in arithmetic.
static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
const POOL_BUFFERS: usize = 64;

/// A buffer of any content (NaN in tests, so that a value that nobody wrote shows).
pub(super) struct Scratch(Vec<f32>);

impl Scratch {
    pub fn new(len: usize) -> Self {
        let mut buffer = POOL
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default();
        if cfg!(test) {
            buffer.clear();
        }
        buffer.resize(len, f32::NAN);
        Self(buffer)
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < POOL_BUFFERS {
            pool.push(std::mem::take(&mut self.0));
        }
    }
}

/// An output that every element will be written of. In tests it starts as NaN, so that a forgotten one shows.
pub(super) fn output(len: usize) -> Vec<f32> {
    if cfg!(test) { vec![f32::NAN; len] } else { vec![0.; len] }
}

/// Defines a function whose body is compiled twice: for any processor, and for AVX2, which is taken where there is
/// one. Both give the same bits, since Rust neither reorders nor contracts floating-point arithmetic.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $type),*) $(-> $result)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use vectorized;

const LANES: usize = 16;
/// Values summed in f32 lanes before the lanes go into an f64.
const BLOCK: usize = 64 * LANES;

/// Sum of `term` over the indexes, in a fixed order: f32 lanes inside blocks, f64 across blocks.
#[inline(always)]
pub(super) fn sum_by(len: usize, term: impl Fn(usize) -> f32) -> f64 {
    let mut total = 0f64;
    let mut start = 0;
    while start < len {
        let end = (start + BLOCK).min(len);
        let mut lanes = [0f32; LANES];
        let mut i = start;
        while i + LANES <= end {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += term(i + lane);
            }
            i += LANES;
        }
        for (lane, sum) in lanes.iter_mut().enumerate() {
            if i + lane < end {
                *sum += term(i + lane);
            }
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        start = end;
    }
    total
}

/// `e^x` to 1e-7 relative, without branches so that loops over it vectorise. Cephes' expf.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding it rounds to a whole number in the low bits.
    const ROUND: f32 = 12_582_912.;
    // Not `clamp`, which is slower; NaN stays NaN through the comparison's false branch.
    let bounded = if x > 88.376 { 88.376 } else { x };
    let bounded = if bounded < -87.336 { -87.336 } else { bounded };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = bounded - whole * LN2_HIGH - whole * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let fraction = p * r * r + r + 1.;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    fraction * f32::from_bits(exponent)
}

#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1. / (1. + exp(-x))
}

/// The error function to 2e-7, a rational approximation on -4 to 4, beyond which it is 1 (as Eigen and XLA do it).
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let x = if x > 3.832_507 { 3.832_507 } else { x };
    let x = if x < -3.832_507 { -3.832_507 } else { x };
    let square = x * x;
    let mut p = -2.726_142_3e-10;
    p = p * square + 2.770_681_4e-8;
    p = p * square + -2.101_024e-6;
    p = p * square + -5.692_506_5e-5;
    p = p * square + -7.349_906e-4;
    p = p * square + -2.954_6e-3;
    p = p * square + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * square + -2.133_740_6e-4;
    q = q * square + -1.682_827e-3;
    q = q * square + -7.373_329e-3;
    q = q * square + -1.426_474_e-2;
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{exact_erf, noise},
        *,
    };

    #[test]
    fn exp_and_erf_are_right_to_the_last_digits() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 2e-7 * want, "exp({x}) = {got}, not {want}");
        }
        for i in -6000..6000 {
            let x = i as f32 * 0.001;
            let (got, want) = (f64::from(erf(x)), exact_erf(f64::from(x)));
            assert!((got - want).abs() <= 4e-7, "erf({x}) = {got}, not {want}");
        }
        assert!(exp(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn products_of_views_and_transposes_add_and_replace() {
        let (m, n, k) = (37, 70, 53);
        let (a, b) = (noise(m * (k + 3), 1), noise(n * k, 2));
        let start = noise(m * (n + 5), 3);
        let mut out = start.clone();
        let view = MatMut::strided(&mut out, m, n, n + 5);
        par_product(
            view,
            Mat::strided(&a, m, k, k + 3),
            Mat::new(&b, n, k).t(),
            0.5,
            Write::Add,
        );
        for (i, j) in (0..m).flat_map(|i| (0..n + 5).map(move |j| (i, j))) {
            let before = f64::from(start[i * (n + 5) + j]);
            let sum: f64 = (0..k)
                .map(|l| f64::from(a[i * (k + 3) + l]) * f64::from(b[(j % n) * k + l]))
                .sum();
            let want = if j < n { before + 0.5 * sum } else { before };
            assert!((f64::from(out[i * (n + 5) + j]) - want).abs() < 1e-5, "({i}, {j})");
        }
    }

    #[test]
    fn a_large_product_does_not_depend_on_the_number_of_threads() {
        let (m, n, k) = (130, 190, 300);
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let run = |threads| {
            let mut out = vec![f32::NAN; m * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let view = MatMut::new(&mut out, m, n);
            pool.install(|| par_product(view, Mat::new(&a, m, k), Mat::new(&b, k, n), 1., Write::Replace));
            out
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn sums_lose_nothing_at_odd_lengths() {
        for len in [0, 1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let values = noise(len, 7);
            let want: f64 = values.iter().map(|&v| f64::from(v)).sum();
            assert!((sum_by(len, |i| values[i]) - want).abs() < 1e-3, "{len}");
        }
    }
}
