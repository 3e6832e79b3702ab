//! Costs as pure functions of shapes: what `plan` prints without a weight.

use crate::blueprint::Blueprint;
use crate::dims::LayerDims;

/// Multiply-adds counted as 2, for one token of a sequence of `length` tokens (attention over `length` keys, or its window).
pub fn flops_per_token(blueprint: &Blueprint, dims: &[LayerDims], length: usize) -> u64 {
    let _ = (blueprint, dims, length);
    0
}

/// Bytes of keys and values that generation keeps.
pub fn kv_cache_bytes(blueprint: &Blueprint, dims: &[LayerDims], batch: usize, length: usize, bytes_per_value: usize) -> u64 {
    let _ = (blueprint, dims, batch, length, bytes_per_value);
    0
}
