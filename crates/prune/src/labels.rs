//! Which positions of a batch count, found on the host before anything is computed.

use prunectl_model::{Batch, Head, Labels, Transformer};

use crate::error::Result;

/// Scored tokens (or 1) of each example: what `Transformer::loss` would count.
pub(crate) fn scored(model: &Transformer, batch: &Batch) -> Result<Vec<usize>> {
    let (b, s) = batch.size()?;
    if !matches!(model.blueprint().head, Head::Tokens { .. }) {
        return Ok(vec![1; b]);
    }
    let mut counts = vec![0; b];
    for row in token_rows(model, batch)? {
        if let Some(n) = counts.get_mut(row as usize / s.max(1)) {
            *n += 1;
        }
    }
    Ok(counts)
}

/// Rows of the outputs, flattened to `[rows, classes]`, that count: one an example for a sequence head; the positions that the loss scores
/// for a token head, and every real position of a masked LM without labels.
pub(crate) fn output_rows(model: &Transformer, batch: &Batch) -> Result<Vec<u32>> {
    let (b, _) = batch.size()?;
    match model.blueprint().head {
        Head::Tokens { .. } => token_rows(model, batch),
        _ => Ok((0..b as u32).collect()),
    }
}

fn token_rows(model: &Transformer, batch: &Batch) -> Result<Vec<u32>> {
    if model.blueprint().attention.causal || matches!(batch.labels, Some(Labels::Tokens(_))) {
        // Class labels of the same data mean nothing to a language model.
        let mut batch = batch.clone();
        batch.labels = batch.labels.filter(|l| matches!(l, Labels::Tokens(_)));
        return Ok(model.scored_tokens(&batch)?.rows);
    }
    let (b, s) = batch.size()?;
    let n = (b * s) as u32;
    Ok(match &batch.keep {
        Some(keep) => keep.flatten_all()?.to_vec1::<u8>()?.iter().zip(0..n).filter(|(k, _)| **k != 0).map(|(_, i)| i).collect(),
        None => (0..n).collect(),
    })
}
