//! Surgery: a decision applied. Masking writes zeros and keeps shapes; compacting makes tensors smaller.

use prunectl_model::Transformer;

use crate::decision::{Decision, Removed, UnitMap};
use crate::error::{PruneError, Result};

/// Zeroes what the decision removes and adds it to `removed`.
pub fn mask(model: &mut Transformer, removed: &mut Removed, decision: &Decision) -> Result<()> {
    let _ = (model, removed, decision);
    Err(PruneError::NothingSelected)
}

/// Takes masked whole units out: the model gets smaller tensors, `map` remembers what its units were, `removed` keeps only masks of
/// single weights, cut to the new shapes.
pub fn compact(model: &mut Transformer, removed: &mut Removed, map: &mut UnitMap) -> Result<()> {
    let _ = (model, removed, map);
    Err(PruneError::NothingSelected)
}
