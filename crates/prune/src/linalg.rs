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

/// A row of a symmetric matrix while it is turned, and the row of the turn that made it.
#[derive(Default)]
struct Turned {
    row: Vec<f64>,
    turn: Vec<f64>,
}

/// Turns two rows against one another until they are orthogonal; whether they were not.
fn orthogonal(a: &mut Turned, b: &mut Turned, negligible: f64) -> bool {
    let (aa, bb, ab) = (dot(&a.row, &a.row), dot(&b.row, &b.row), dot(&a.row, &b.row));
    let near = f64::EPSILON * (a.row.len() as f64).sqrt() * (aa * bb).sqrt();
    if aa.min(bb) <= negligible || ab.abs() <= near {
        return false;
    }
    let zeta = (bb - aa) / (2.0 * ab);
    let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
    let c = 1.0 / (1.0 + t * t).sqrt();
    let turn = |x: &mut [f64], y: &mut [f64]| {
        for (x, y) in x.iter_mut().zip(y) {
            (*x, *y) = (c * *x - c * t * *y, c * t * *x + c * *y);
        }
    };
    turn(&mut a.row, &mut b.row);
    turn(&mut a.turn, &mut b.turn);
    true
}

/// Eigenvalues of a symmetric matrix without negative ones, descending, and the eigenvector of each, of length 1: Jacobi's method on its
/// rows, those of a round in pairs that do not depend on one another, so that results do not depend on threads.
pub(crate) fn symmetric_eigen(a: &[f64], n: usize) -> Vec<(f64, Vec<f64>)> {
    let unit = |i: usize| (0..n).map(|j| f64::from(u8::from(i == j))).collect();
    let mut rows: Vec<Turned> = (0..n).map(|i| Turned { row: span(a, i * n, (i + 1) * n).to_vec(), turn: unit(i) }).collect();
    if n % 2 == 1 {
        rows.push(Turned::default());
    }
    let largest = rows.iter().map(|r| dot(&r.row, &r.row)).fold(0.0, f64::max);
    let negligible = largest * (f64::EPSILON * n as f64).powi(2);
    for _ in 0..SWEEPS {
        let mut turned = false;
        // All pairs meet once: the first row stays, the others move on by one place.
        for _ in 1..rows.len() {
            let half = rows.len() / 2;
            let (front, back) = rows.split_at_mut(half);
            let pairs = front.par_iter_mut().zip(back.par_iter_mut().rev());
            turned |= pairs.map(|(a, b)| orthogonal(a, b, negligible)).reduce(|| false, |a, b| a | b);
            if let Some((_, others)) = rows.split_first_mut() {
                others.rotate_right(1);
            }
        }
        if !turned {
            break;
        }
    }
    let mut out: Vec<(f64, Vec<f64>)> =
        rows.into_iter().filter(|r| !r.turn.is_empty()).map(|r| (dot(&r.row, &r.row).sqrt(), r.turn)).collect();
    out.sort_by(|a, b| b.0.total_cmp(&a.0));
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn eigenvectors_by_hand_and_of_a_larger_matrix() {
        // [[2, 1], [1, 2]]: 3 along (1, 1), 1 along (1, −1); a singular matrix has a zero and a whole basis all the same.
        let found = symmetric_eigen(&[2.0, 1.0, 1.0, 2.0], 2);
        assert!((found[0].0 - 3.0).abs() < 1e-14 && (found[1].0 - 1.0).abs() < 1e-14);
        assert!((found[0].1[0] - found[0].1[1]).abs() < 1e-14 && (found[1].1[0] + found[1].1[1]).abs() < 1e-14);
        for n in [1usize, 7, 30] {
            // XᵀX of fewer rows than columns.
            let x: Vec<f64> = (0..n * n / 2).map(|i| ((i * 37 + 11) % 101) as f64 / 50.0 - 1.0).collect();
            let a: Vec<f64> = (0..n * n).map(|k| x.chunks(n).map(|r| at(r, k / n) * at(r, k % n)).sum()).collect();
            let found = symmetric_eigen(&a, n);
            assert_eq!(found.len(), n);
            for (i, (value, v)) in found.iter().enumerate() {
                for (j, (_, w)) in found.iter().enumerate() {
                    assert!((dot(v, w) - f64::from(u8::from(i == j))).abs() < 1e-12);
                }
                for (row, x) in a.chunks(n).zip(v) {
                    assert!((dot(row, v) - value * x).abs() < 1e-10 * (1.0 + found[0].0), "{n}: {value}");
                }
            }
            assert!(found.windows(2).all(|w| w[0].0 >= w[1].0));
        }
    }

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
