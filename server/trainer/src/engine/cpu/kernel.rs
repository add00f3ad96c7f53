//! What the CPU kernels share: matrix products over strided views, loops compiled for wide vectors, memory that is
//! used again. Arithmetic is in `math`.
//!
//! Work is cut by shape, never by the number of threads, and sums keep one order: the same input gives the same bits
//! on any number of cores.

use std::sync::{Mutex, PoisonError};

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// A matrix inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
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
pub(crate) struct MatMut<'a> {
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
pub(crate) enum Write {
    Replace,
    Add,
}

impl From<bool> for Write {
    fn from(add: bool) -> Self {
        if add { Self::Add } else { Self::Replace }
    }
}

/// `out = scale * a b`, or added to it, on this thread.
pub(crate) fn product(out: MatMut, a: Mat, b: Mat, scale: f32, write: Write) {
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
pub(crate) fn par_product(out: MatMut, a: Mat, b: Mat, scale: f32, write: Write) {
    par_tiles(out, a, b, |out, _, a, b| product(out, a, b, scale, write));
}

/// `out = a b + onto`, over all threads. `out` is row-major without gaps.
pub(crate) fn par_affine(out: &mut [f32], a: Mat, b: Mat, onto: Onto) {
    let out = MatMut::new(out, a.rows, b.cols);
    par_tiles(out, a, b, |part, first, a, b| {
        let write = onto.lay(part, first, out.cols);
        product(part, a, b, 1., write);
    });
}

/// Cuts a product into parts of the result, with the operands that each needs: `task(part, (row, column), a, b)`.
fn par_tiles(out: MatMut, a: Mat, b: Mat, task: impl Fn(MatMut, (usize, usize), Mat, Mat) + Sync) {
    let tasks = (out.rows * out.cols * a.cols / TASK).clamp(1, 64);
    if tasks == 1 {
        return task(out, (0, 0), a, b);
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
        task(unsafe { out.tile((row, rows), (col, cols)) }, (row, col), a, b);
    });
}

/// A value of the result's size that is added to it.
#[derive(Clone, Copy)]
pub(crate) enum Plus<'a> {
    Nothing,
    /// What the result holds already.
    Itself,
    Values(&'a [f32]),
}

impl<'a> Plus<'a> {
    /// The part that belongs to `len` values of the result from `start`.
    pub fn part(self, start: usize, len: usize) -> Self {
        match self {
            Self::Values(values) => Self::Values(&values[start..start + len]),
            other => other,
        }
    }

    /// Makes `result` what is to be added to.
    pub fn lay(self, result: &mut [f32]) {
        match self {
            Self::Nothing => result.fill(0.),
            Self::Itself => {}
            Self::Values(values) => result.copy_from_slice(values),
        }
    }

    /// `result = self + values`.
    pub fn with(self, result: &mut [f32], values: &[f32]) {
        match self {
            Self::Nothing => result.copy_from_slice(values),
            Self::Itself => add(result, values),
            Self::Values(plus) => sum(result, plus, values),
        }
    }
}

vectorized! {
    pub(crate) fn add(sums: &mut [f32], values: &[f32]) {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}

vectorized! {
    pub(crate) fn sum(y: &mut [f32], a: &[f32], b: &[f32]) {
        y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + b);
    }
}

/// What a product is added to: a value per column, and one per element.
#[derive(Clone, Copy)]
pub(crate) struct Onto<'a> {
    pub bias: Option<&'a [f32]>,
    pub plus: Plus<'a>,
}

impl Onto<'_> {
    /// Puts it into the part of the result whose first element is (`row`, `col`), of a result of `width` columns; says
    /// what the product over it has to do.
    pub fn lay(self, mut part: MatMut, (row, col): (usize, usize), width: usize) -> Write {
        let (rows, cols) = (part.rows, part.cols);
        let bias = self.bias.map(|bias| &bias[col..col + cols]);
        for i in 0..rows {
            let line = part.row(i);
            match (bias, self.plus.part((row + i) * width + col, cols)) {
                (None, Plus::Nothing) => return Write::Replace,
                (None, Plus::Itself) => return Write::Add,
                (None, Plus::Values(plus)) => line.copy_from_slice(plus),
                (Some(bias), Plus::Nothing) => line.copy_from_slice(bias),
                (Some(bias), Plus::Itself) => add(line, bias),
                (Some(bias), Plus::Values(plus)) => sum(line, plus, bias),
            }
        }
        Write::Add
    }
}

/// Rows summed in f32 before they go into f64.
const BLOCK_ROWS: usize = 256;

/// Sums over the rows of a matrix of `width` columns, or added to what is there.
pub(crate) fn column_sums(sums: &mut [f32], values: &[f32], write: Write) {
    let width = sums.len();
    let blocks: Vec<Vec<f32>> = values
        .par_chunks(BLOCK_ROWS * width)
        .map(|block| {
            let mut sums = vec![0f32; width];
            block.chunks_exact(width).for_each(|row| add(&mut sums, row));
            sums
        })
        .collect();
    sum_parts(sums, &blocks, write);
}

/// Adds up partial sums in their order.
pub(crate) fn sum_parts(sums: &mut [f32], parts: &[Vec<f32>], write: Write) {
    for (i, sum) in sums.iter_mut().enumerate() {
        let total = parts.iter().map(|part| f64::from(part[i])).sum::<f64>() as f32;
        *sum = if write == Write::Add { *sum + total } else { total };
    }
}

/// Values that a task of an element by element instruction takes.
pub(crate) const CHUNK: usize = 1 << 14;

/// Buffers of finished tasks. A fresh megabyte costs more in page faults than many a kernel in arithmetic.
static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
const POOL_BUFFERS: usize = 64;

/// A buffer of any content (NaN in tests, so that a value that nobody wrote shows).
pub(crate) struct Scratch {
    /// At least `len` long: a buffer that shrank would be filled again when it grows.
    buffer: Vec<f32>,
    len: usize,
}

impl Scratch {
    pub fn new(len: usize) -> Self {
        let mut buffer = POOL
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default();
        if cfg!(test) {
            buffer.fill(f32::NAN);
        }
        if buffer.len() < len {
            // Not `resize`, which would move what nobody wants.
            buffer = vec![if cfg!(test) { f32::NAN } else { 0. }; len];
        }
        Self { buffer, len }
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < POOL_BUFFERS {
            pool.push(std::mem::take(&mut self.buffer));
        }
    }
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
pub(crate) use vectorized;

#[cfg(test)]
mod tests {
    use super::{super::testing::noise, *};

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
}
