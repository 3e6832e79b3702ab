//! A bounds-checked door to the `gemm` crate for strided matrices inside one task.

use crate::error::KernelError;
use crate::real::Real;
use crate::threads::products_stay_whole;
use candle_core::Result;
use gemm::Parallelism;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// rows × cols elements of `data`: element (i, j) at `start + i·row_stride + j·col_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    pub data: &'a [T],
    pub start: usize,
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    pub fn transposed(self) -> Self {
        Matrix { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Rows `start ..  start + rows`.
    pub fn narrow(self, start: usize, rows: usize) -> Self {
        Matrix { start: self.start + start * self.row_stride, rows, ..self }
    }

    /// All of `data`, row by row.
    pub fn packed(data: &'a [T], cols: usize) -> Self {
        Matrix { data, start: 0, rows: data.len() / cols.max(1), cols, row_stride: cols, col_stride: 1 }
    }
}

/// Elements from the first to the last of a matrix, 0 for an empty one.
fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

/// out ← scale · a·b (`add`: out ← out + scale · a·b); row i of the result starts at `out[i · row_stride]`. One thread: the callers'
/// tasks are the parallel ones.
pub fn multiply<T: Real>(out: &mut [T], row_stride: usize, a: Matrix<'_, T>, b: Matrix<'_, T>, scale: T, add: bool) -> Result<()> {
    check(out.len(), row_stride, &a, &b)?;
    // SAFETY: checked.
    unsafe { run(out.as_mut_ptr(), row_stride, a, b, scale, add, Parallelism::None) };
    Ok(())
}

/// Rows of a product that one task computes, at least: each task packs the right factor for itself, which fewer rows would not pay for.
const ROWS_PER_TASK: usize = 256;

/// Cuts the rows of a result into a task for each thread, where they pay off, and runs them: `task(first row, rows' elements, …)`. An
/// element's sum is the same wherever its row is cut off.
fn by_rows<E: Send>(out: &mut [E], (rows, cols): (usize, usize), task: impl Fn(usize, &mut [E], Parallelism) + Sync) {
    let threads = rayon::current_num_threads();
    if threads == 1 || products_stay_whole() {
        task(0, out, Parallelism::None);
    } else if rows < threads * ROWS_PER_TASK {
        task(0, out, Parallelism::Rayon(0));
    } else {
        let per_task = rows.div_ceil(threads);
        let pieces = out.par_chunks_mut((per_task * cols).max(1)).enumerate();
        pieces.for_each(|(i, out)| task(i * per_task, out, Parallelism::None));
    }
}

/// out ← out + a·b, row by row, in parallel.
pub fn add_product<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>) -> Result<()> {
    let (rows, cols) = (a.rows, b.cols);
    check(out.len(), cols, &a, &b)?;
    by_rows(&mut out[..rows * cols], (rows, cols), |first, out, parallelism| {
        let a = a.narrow(first, out.len() / cols.max(1));
        // SAFETY: `out` holds whole rows from `first` on, and the whole product was checked.
        unsafe { run(out.as_mut_ptr(), cols, a, b, T::ONE, true, parallelism) };
    });
    Ok(())
}

/// a·b, row by row, in parallel; `start` (as long as a row of the result) is added to every row.
pub fn product<T: Real>(a: Matrix<'_, T>, b: Matrix<'_, T>, start: Option<&[T]>) -> Result<Vec<T>> {
    let (rows, cols) = (a.rows, b.cols);
    if let Some(start) = start.filter(|s| s.len() != cols) {
        let (found, expected) = (format!("{} elements", start.len()), format!("{cols}, one for each column of the product"));
        return Err(KernelError::Value { op: OP, what: "row to start from", found, expected }.into());
    }
    check(rows * cols, cols, &a, &b)?;
    let task = |first: usize, out: &mut [MaybeUninit<T>], parallelism: Parallelism| {
        if let Some(start) = start {
            for row in out.chunks_exact_mut(cols.max(1)) {
                row.iter_mut().zip(start).for_each(|(y, &b)| _ = y.write(b));
            }
        }
        let a = a.narrow(first, out.len() / cols.max(1));
        // SAFETY: `out` holds whole rows from `first` on, and the whole product was checked; without `start` nothing in it is read.
        unsafe { run(out.as_mut_ptr().cast(), cols, a, b, T::ONE, start.is_some(), parallelism) };
    };
    let mut out: Vec<T> = Vec::with_capacity(rows * cols);
    let fresh = &mut out.spare_capacity_mut()[..rows * cols];
    by_rows(fresh, (rows, cols), task);
    // SAFETY: the product has written every element.
    unsafe { out.set_len(rows * cols) };
    Ok(out)
}

const OP: &str = "matrix product";

fn check<T>(out: usize, row_stride: usize, a: &Matrix<'_, T>, b: &Matrix<'_, T>) -> Result<()> {
    let fits = |m: &Matrix<'_, T>| m.start + span(m.rows, m.cols, m.row_stride, m.col_stride) <= m.data.len();
    if a.cols != b.rows || !fits(a) || !fits(b) || span(a.rows, b.cols, row_stride, 1) > out || (a.rows > 1 && row_stride < b.cols) {
        let found = format!("[{}, {}]·[{}, {}] into {out} elements", a.rows, a.cols, b.rows, b.cols);
        let expected = "factors that match and lie within their buffers".to_string();
        return Err(KernelError::Value { op: OP, what: "operands", found, expected }.into());
    }
    Ok(())
}

/// # Safety
/// [`check`] passed for a buffer of rows that starts at `out`.
unsafe fn run<T: Real>(out: *mut T, row_stride: usize, a: Matrix<'_, T>, b: Matrix<'_, T>, scale: T, add: bool, parallelism: Parallelism) {
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    // SAFETY: every element that is read lies within `a.data` and `b.data` and every one that is written within the buffer, whose rows do
    // not overlap.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out,
            1,
            row_stride as isize,
            add,
            a.data.as_ptr().add(a.start),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr().add(b.start),
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
