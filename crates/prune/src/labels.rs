//! Which positions of a batch count, found on the host before anything is computed.

use prunectl_model::{Batch, Head, IGNORED, Labels, Transformer};

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
    let (b, s) = batch.size()?;
    let shift = usize::from(model.blueprint().attention.causal);
    let counts: Vec<bool> = match (&batch.labels, &batch.keep) {
        (Some(Labels::Tokens(labels)), _) => labels.flatten_all()?.to_vec1::<i64>()?.iter().map(|l| *l != IGNORED).collect(),
        (_, Some(keep)) => keep.flatten_all()?.to_vec1::<u8>()?.iter().map(|k| *k != 0).collect(),
        (_, None) => vec![true; b * s],
    };
    let at = |row: usize, position: usize| counts.get(row * s + position).copied().unwrap_or(false);
    let mut rows = Vec::new();
    for row in 0..b {
        for position in 0..s.saturating_sub(shift) {
            if at(row, position + shift) {
                rows.push((row * s + position) as u32);
            }
        }
    }
    Ok(rows)
}
