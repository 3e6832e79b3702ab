//! Seeded draws that are the same on every platform and in every version: ChaCha8, keyed by the seed alone, read as little-endian u64s.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A stream of draws.
#[derive(Debug, Clone)]
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    /// The key is the seed, then the purpose, as little-endian u64s, then zeros: streams for different purposes don't meet. `stream` is
    /// ChaCha's nonce, one for each epoch or row.
    pub(crate) fn new(seed: u64, purpose: &[u8; 8], stream: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(purpose);
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Uniform in `0..n` without bias: draws at or above the largest multiple of `n` are thrown away. 0 when `n` is 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        // 2^64 mod n values at the top would make small results likelier.
        let top = u64::MAX - (u64::MAX % n + 1) % n;
        loop {
            let x = self.0.next_u64();
            if x <= top {
                return x % n;
            }
        }
    }

    /// True with this probability, to 2⁻³².
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        f64::from(self.0.next_u32()) < probability * 4_294_967_296.0
    }

    /// The first `k` of a Fisher–Yates shuffle of `items`, in the order drawn: a larger `k` only adds to the end.
    pub(crate) fn choose<T>(&mut self, items: &mut Vec<T>, k: usize) {
        let n = items.len();
        for i in 0..k.min(n) {
            let j = i + self.below((n - i) as u64) as usize;
            items.swap(i, j);
        }
        items.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_draws_everywhere() {
        // Fixed figures: a change here would change every recorded calibration set.
        let mut d = Draw::new(0, b"sample\0\0", 0);
        let got: Vec<u64> = (0..6).map(|_| d.below(1000)).collect();
        assert_eq!(got, [763, 416, 992, 414, 116, 900]);
    }

    #[test]
    fn a_larger_sample_begins_with_the_smaller() {
        let draw = |k| {
            let mut all: Vec<u32> = (0..100).collect();
            Draw::new(7, b"sample\0\0", 0).choose(&mut all, k);
            all
        };
        assert_eq!(draw(10), draw(40)[..10]);
        let mut whole = draw(100);
        whole.sort_unstable();
        assert_eq!(whole, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn draws_are_even() {
        let mut d = Draw::new(1, b"sample\0\0", 0);
        let mut counts = [0u32; 7];
        (0..70_000).for_each(|_| counts[d.below(7) as usize] += 1);
        // Standard deviation 93; five of them.
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 470), "{counts:?}");
    }
}
