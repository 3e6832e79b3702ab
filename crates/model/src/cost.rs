//! Costs as pure functions of shapes: what `plan` prints without a weight.

use crate::blueprint::{Blueprint, Head, Projection};
use crate::dims::LayerDims;

/// Floating-point operations of one forward pass over a sequence of `length` tokens: a multiply-add counts as 2, matrix products
/// alone are counted (norms, activations and look-ups are not), and attention scores only what a query sees.
pub fn flops(blueprint: &Blueprint, dims: &[LayerDims], length: usize) -> u64 {
    let (h, n) = (blueprint.hidden as u128, length as u128);
    let width = blueprint.embeddings.width as u128;
    let mut multiply_adds = match blueprint.embeddings.project {
        Some(Projection::Tokens | Projection::Sum) => n * width * h,
        None => 0,
    };
    for (d, spec) in dims.iter().zip(&blueprint.layers) {
        let (q, kv, ffn) = (d.q_width() as u128, d.kv_width() as u128, d.ffn as u128);
        multiply_adds += n * h * (2 * q + 2 * kv);
        multiply_adds += 2 * q * u128::from(pairs_seen(length, blueprint.attention.causal, spec.window));
        let matrices = if blueprint.mlp.gated { 3 } else { 2 };
        let experts = match &blueprint.mlp.router {
            Some(router) if d.experts > 0 => router.top_k.min(d.experts) as u128,
            _ => 1,
        };
        multiply_adds += n * h * (ffn * matrices * experts + d.experts as u128);
    }
    let narrowed = if blueprint.projects_out() { h * width } else { 0 };
    multiply_adds += match &blueprint.head {
        Head::Tokens { transform, project, .. } => {
            let before = if transform.is_some() || *project { h * width } else { 0 };
            n * (before + blueprint.head_width() as u128 * blueprint.vocab as u128)
        }
        Head::Sequence { labels, dense, .. } => {
            u128::from(dense.is_some()) * h * h + narrowed + blueprint.head_width() as u128 * *labels as u128
        }
        Head::Spans => n * h * 2,
        Head::Encode { .. } => narrowed,
    };
    u64::try_from(2 * multiply_adds).unwrap_or(u64::MAX)
}

/// The same for one token: the mean over the sequence.
pub fn flops_per_token(blueprint: &Blueprint, dims: &[LayerDims], length: usize) -> u64 {
    flops(blueprint, dims, length) / length.max(1) as u64
}

/// Bytes of keys and values that generation keeps; a sliding window keeps no more than itself.
pub fn kv_cache_bytes(blueprint: &Blueprint, dims: &[LayerDims], batch: usize, length: usize, bytes_per_value: usize) -> u64 {
    let values: u64 = dims
        .iter()
        .zip(&blueprint.layers)
        .map(|(d, spec)| 2 * d.kv_width() as u64 * spec.window.map_or(length, |w| w.min(length)) as u64)
        .sum();
    values * batch as u64 * bytes_per_value as u64
}

/// Query–key pairs that attention computes in a sequence.
fn pairs_seen(length: usize, causal: bool, window: Option<usize>) -> u64 {
    let n = length as u64;
    let w = window.map_or(n, |w| (w as u64).min(n));
    // Rows 1..=w see as many keys as their index, later rows see w.
    let looking_back = w * (w + 1) / 2 + (n - w) * w;
    if causal { looking_back } else { 2 * looking_back - n }
}

#[cfg(test)]
mod tests {
    use super::pairs_seen;

    #[test]
    fn pairs_are_counted_as_the_masks_allow_them() {
        for length in 0..12 {
            for window in [None, Some(1), Some(3), Some(50)] {
                for causal in [false, true] {
                    let sees = |q: usize, p: usize| (!causal || p <= q) && window.is_none_or(|w| q.abs_diff(p) < w);
                    let counted = (0..length).flat_map(|q| (0..length).map(move |p| (q, p))).filter(|(q, p)| sees(*q, *p)).count();
                    assert_eq!(pairs_seen(length, causal, window), counted as u64, "{length} {window:?} {causal}");
                }
            }
        }
    }
}
