//! Dense f64 linear algebra of layer-wise methods. Every entry is one sum in a fixed order, so results do not depend on threads.

use prunectl_kernels::vector::dot;
use rayon::prelude::*;

/// Columns that are factored together.
const PANEL: usize = 64;
fn at(m: &[f64], index: usize) -> f64 {
    m.get(index).copied().unwrap_or_default()
}

fn span(m: &[f64], from: usize, to: usize) -> &[f64] {
    m.get(from..to).unwrap_or_default()
}

/// The lower factor of a symmetric matrix, row by row; None where it is not positive definite.
fn cholesky(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for start in (0..n).step_by(PANEL) {
        let end = (start + PANEL).min(n);
        // The panel's own rows, one after the other: they are what the rows below divide by.
        for i in start..end {
            for j in start..=i {
                let sum = at(&a, i * n + j) - dot(span(&a, i * n, i * n + j), span(&a, j * n, j * n + j));
                let value = if i == j { sum.sqrt() } else { sum / at(&a, j * n + j) };
                if !value.is_finite() || i == j && value <= 0.0 {
                    return None;
                }
                *a.get_mut(i * n + j)? = value;
            }
        }
        let (above, below) = a.split_at_mut(end * n);
        below.par_chunks_mut(n.max(1)).for_each(|row| {
            for j in start..end {
                let (known, open) = row.split_at_mut(j);
                let sum = open.first().copied().unwrap_or_default() - dot(known, span(above, j * n, j * n + j));
                if let Some(x) = open.first_mut() {
                    *x = sum / at(above, j * n + j);
                }
            }
        });
    }
    Some(a)
}

/// The columns of the inverse of a lower factor, each a row of the result.
fn inverse_columns(l: &[f64], n: usize) -> Vec<f64> {
    let mut columns = vec![0.0; n * n];
    columns.par_chunks_mut((PANEL * n).max(1)).enumerate().for_each(|(panel, columns)| {
        let first = panel * PANEL;
        for i in first..n {
            let (row, pivot) = (span(l, i * n, i * n + i), at(l, i * n + i));
            for (c, column) in columns.chunks_mut(n).enumerate().filter(|(c, _)| first + c <= i) {
                let one = f64::from(u8::from(first + c == i));
                let (known, open) = column.split_at_mut(i);
                if let Some(x) = open.first_mut() {
                    *x = (one - dot(span(row, first, i), span(known, first, i))) / pivot;
                }
            }
        }
    });
    columns
}

/// The upper Cholesky factor U of the inverse of a symmetric matrix, `A⁻¹ = UᵀU`, row by row; None where A is not positive definite.
///
/// No inverse is formed: with the rows and columns of A reversed, `JAJ = LLᵀ` gives `U = J L⁻¹ J`.
pub(crate) fn inverse_upper_factor(a: &[f64], n: usize) -> Option<Vec<f64>> {
    damped_inverse_upper_factor(a, n, 0.0)
}

/// The same of the matrix with `damp` added to its diagonal. Besides the matrix it takes two of its size.
pub(crate) fn damped_inverse_upper_factor(a: &[f64], n: usize, damp: f64) -> Option<Vec<f64>> {
    let mut reversed: Vec<f64> = a.iter().rev().copied().collect();
    reversed.iter_mut().step_by(n + 1).for_each(|x| *x += damp);
    let lower = cholesky(reversed, n)?;
    let columns = inverse_columns(&lower, n);
    let mut upper = lower;
    upper.fill(0.0);
    upper.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, row)| {
        for (j, u) in row.iter_mut().enumerate().skip(i) {
            *u = at(&columns, (n - 1 - j) * n + (n - 1 - i));
        }
    });
    upper.iter().all(|u| u.is_finite()).then_some(upper)
}

/// x of `A x = b`, A symmetric, row by row; None where A is not positive definite.
pub(crate) fn solve(a: &[f64], b: &[f64]) -> Option<Vec<f64>> {
    let n = b.len();
    // A⁻¹ = UᵀU.
    let upper = inverse_upper_factor(a, n)?;
    let half: Vec<f64> = upper.chunks(n.max(1)).map(|row| dot(row, b)).collect();
    let mut x = vec![0.0; n];
    for (row, h) in upper.chunks(n.max(1)).zip(&half) {
        x.iter_mut().zip(row).for_each(|(x, u)| *x += u * h);
    }
    x.iter().all(|v| v.is_finite()).then_some(x)
}

/// Sweeps of Jacobi's method; it converges quadratically, in far fewer.
const SWEEPS: usize = 60;

/// The singular values of a matrix given by rows, in no order: one-sided Jacobi, which finds the small ones to full relative precision.
pub(crate) fn singular_values(rows: &[Vec<f64>]) -> Vec<f64> {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    // The vectors that are made orthogonal are the fewer of rows and columns.
    let mut vectors: Vec<Vec<f64>> = if rows.len() <= width {
        rows.to_vec()
    } else {
        (0..width).map(|j| rows.iter().map(|r| r.get(j).copied().unwrap_or_default()).collect()).collect()
    };
    for _ in 0..SWEEPS {
        let mut turned = false;
        for q in 1..vectors.len() {
            let (before, rest) = vectors.split_at_mut(q);
            let Some(b) = rest.first_mut() else { continue };
            for a in before {
                let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
                if ab.abs() <= f64::EPSILON * (aa * bb).sqrt() || ab == 0.0 {
                    continue;
                }
                turned = true;
                let zeta = (bb - aa) / (2.0 * ab);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                for (x, y) in a.iter_mut().zip(b.iter_mut()) {
                    (*x, *y) = (c * *x - c * t * *y, c * t * *x + c * *y);
                }
            }
        }
        if !turned {
            break;
        }
    }
    vectors.iter().map(|v| dot(v, v).sqrt()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn singular_values_by_hand() {
        // [[3, 0], [4, 5]] has the singular values √45 and √5; a rank-one matrix one that is not zero; of nothing there are none.
        let mut v = singular_values(&[vec![3.0, 0.0], vec![4.0, 5.0]]);
        v.sort_by(f64::total_cmp);
        assert!((v[0] - 5f64.sqrt()).abs() < 1e-14 && (v[1] - 45f64.sqrt()).abs() < 1e-14, "{v:?}");
        let v = singular_values(&[vec![1.0, 2.0], vec![2.0, 4.0], vec![3.0, 6.0]]);
        assert!(v.iter().filter(|s| **s > 1e-12).count() == 1, "{v:?}");
        assert!(singular_values(&[]).is_empty());
    }

    use super::*;

    #[test]
    fn by_hand() {
        // A = [[4, 2], [2, 2]], A⁻¹ = [[½, −½], [−½, 1]] = UᵀU with U = [[√½, −√½], [0, √½]].
        let u = inverse_upper_factor(&[4.0, 2.0, 2.0, 2.0], 2).unwrap();
        let half = 0.5f64.sqrt();
        for (a, b) in u.iter().zip([half, -half, 0.0, half]) {
            assert!((a - b).abs() < 1e-15, "{u:?}");
        }
        assert!(inverse_upper_factor(&[1.0, 1.0, 1.0, 1.0], 2).is_none());
        // 4x + 2y = 10, 2x + 2y = 6.
        let x = solve(&[4.0, 2.0, 2.0, 2.0], &[10.0, 6.0]).unwrap();
        assert!((x[0] - 2.0).abs() < 1e-14 && (x[1] - 1.0).abs() < 1e-14, "{x:?}");
        assert!(solve(&[0.0], &[1.0]).is_none() && solve(&[], &[]).unwrap().is_empty());
        assert!(inverse_upper_factor(&[1.0, f64::NAN, f64::NAN, 1.0], 2).is_none());
    }

    #[test]
    fn larger_than_a_panel() {
        let n = 150;
        let a: Vec<f64> = (0..n * n)
            .map(|k| (k / n, k % n))
            .map(|(i, j)| if i == j { 3.0 } else { 1.0 / (1.0 + (i as f64 - j as f64).abs()) / 4.0 })
            .collect();
        let u = inverse_upper_factor(&a, n).unwrap();
        // U A⁻¹… : A·(UᵀU) is the identity.
        for i in [0, 63, 64, 149] {
            for j in [0, 1, 64, 148] {
                let inverse = |k: usize| (0..n).map(|m| u[m * n + k] * u[m * n + j]).sum::<f64>();
                let entry: f64 = (0..n).map(|k| a[i * n + k] * inverse(k)).sum();
                assert!((entry - f64::from(u8::from(i == j))).abs() < 1e-12, "{i} {j}: {entry}");
            }
        }
    }
}
