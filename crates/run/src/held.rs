//! What is in memory at once, counted in copies of the weights: one table, for the memory that `plan` foresees of each step and for
//! models that pass through memory block by block.

use prunectl_model::Facts;
use prunectl_prune::Criterion;

/// Bytes of a weight: f32.
pub const WEIGHT_BYTES: u64 = 4;
/// The program, its threads, tokenizers, tables.
pub const PROCESS_BYTES: u64 = 64 << 20;
/// Copies of weights that are loaded.
const LOADED: u64 = 1;
/// Copies that scores of single weights are.
pub const SCORES: u64 = 1;
/// Copies that pruning single weights adds: the weights that replace those of before, and masks with what makes them.
pub const MASKED: u64 = 2;
/// All of them.
pub const COPIES: u64 = LOADED + SCORES + MASKED;
/// Matrices that a second-order method has at once: the sum of the inputs' products, its factor, that one's inverse, and what is worked on.
const PRODUCTS: u64 = 4;
/// Bytes of an entry of such a matrix: f64.
const ENTRY_BYTES: u64 = 8;

/// Inputs of the widest linear layer.
fn widest(model: &Facts) -> u64 {
    model.dims.iter().map(|d| d.ffn.max(d.q_width())).fold(model.blueprint.hidden, usize::max) as u64
}

/// Bytes of the products of all pairs of a layer's inputs, where the criterion holds them.
pub fn products(criterion: &dyn Criterion, model: &Facts) -> u64 {
    let widest = widest(model);
    if criterion.holds_products() { PRODUCTS * ENTRY_BYTES * widest * widest } else { 0 }
}
