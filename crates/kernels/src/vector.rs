//! Operations on plain f64 vectors, for the dense linear algebra of layer-wise methods; sums are in a fixed order.

use crate::real::Real;
use crate::simd::{self, multiversion};

multiversion! {
    fn dot_of<T: Real>(a: &[T], b: &[T]) -> T {
        simd::sum2(a, b, |a, b| a * b)
    }
}

multiversion! {
    fn subtract_scaled_of<T: Real>(w: &mut [T], u: &[T], by: T) {
        for (w, &u) in w.iter_mut().zip(u) {
            *w -= by * u;
        }
    }
}

/// Σ a·b, over the shorter of the two.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    dot_of(a, b)
}

/// w ← w − by · u, over the shorter of the two.
pub fn subtract_scaled(w: &mut [f64], u: &[f64], by: f64) {
    subtract_scaled_of(w, u, by);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_and_past_a_register() {
        assert_eq!(dot(&[1.0, 2.0, 3.0], &[4.0, 5.0]), 14.0);
        let a: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(dot(&a, &a), 328_350.0);
        let mut w = a.clone();
        subtract_scaled(&mut w, &a, 0.5);
        assert!(w.iter().zip(&a).all(|(w, a)| *w == a * 0.5));
    }
}
