//! Products of a matrix's columns with one another, XᵀX, in f64 and on the host: what layer-wise methods know of a projection's inputs.

use std::ops::Range;

use candle_core::Result;

use crate::error::KernelError;
use crate::matrix::{Matrix, multiply};

/// sum ← sum + X[:, left]ᵀ · X[:, right] for X of rows of `columns` elements; `sum` [left, right], row by row. One thread: the caller's
/// tasks are the parallel ones.
///
/// # Errors
/// Ranges outside of X, or a `sum` of another size.
pub fn add_column_products(sum: &mut [f64], x: &[f64], columns: usize, left: Range<usize>, right: Range<usize>) -> Result<()> {
    if left.end.max(right.end) > columns || sum.len() != left.len() * right.len() {
        let found = format!("columns {left:?} and {right:?} of {columns} into {} sums", sum.len());
        return Err(KernelError::Value { op: "column products", what: "ranges", found, expected: "one sum for each pair".into() }.into());
    }
    let of = |range: &Range<usize>| Matrix { start: range.start, cols: range.len(), ..Matrix::packed(x, columns) };
    multiply(sum, right.len(), of(&left).transposed(), of(&right), 1.0, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_and_refused_outside() {
        // Two rows of three: columns (1, 4), (2, 5), (3, 6).
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut sum = [100.0, 0.0];
        add_column_products(&mut sum, &x, 3, 0..1, 1..3).unwrap();
        assert_eq!(sum, [100.0 + 2.0 + 20.0, 3.0 + 24.0]);
        assert!(add_column_products(&mut sum, &x, 3, 0..1, 2..4).is_err());
        assert!(add_column_products(&mut sum, &x, 3, 0..1, 1..2).is_err());
        let mut none: [f64; 0] = [];
        add_column_products(&mut none, &[], 0, 0..0, 0..0).unwrap();
    }
}
