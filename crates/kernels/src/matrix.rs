//! A bounds-checked door to the `gemm` crate for strided matrices inside one task.

use crate::error::KernelError;
use crate::real::Real;
use candle_core::Result;
use gemm::Parallelism;

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
    let fits = |m: &Matrix<'_, T>| m.start + span(m.rows, m.cols, m.row_stride, m.col_stride) <= m.data.len();
    if a.cols != b.rows || !fits(&a) || !fits(&b) || span(a.rows, b.cols, row_stride, 1) > out.len() || (a.rows > 1 && row_stride < b.cols)
    {
        let found = format!("[{}, {}]·[{}, {}] into {} elements", a.rows, a.cols, b.rows, b.cols, out.len());
        let expected = "factors that match and lie within their buffers".to_string();
        return Err(KernelError::Value { op: "matrix product", what: "operands", found, expected }.into());
    }
    if a.rows == 0 || b.cols == 0 {
        return Ok(());
    }
    // SAFETY: the check above keeps every element that is read within `a.data` and `b.data` and every one that is written within `out`,
    // whose rows do not overlap.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
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
            Parallelism::None,
        );
    }
    Ok(())
}
