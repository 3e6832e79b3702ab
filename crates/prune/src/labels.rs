//! Which positions of a batch count, found on the host before anything is computed.

use candle_core::{DType, Tensor};
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

/// Rows of the outputs, flattened by [`distributions`], that count: one an example for a sequence head, two for answer spans; the positions that the loss scores
/// for a token head, and every real position of a masked LM without labels.
pub(crate) fn output_rows(model: &Transformer, batch: &Batch) -> Result<Vec<u32>> {
    let (b, _) = batch.size()?;
    match model.blueprint().head {
        Head::Tokens { .. } => token_rows(model, batch),
        Head::Spans => Ok((0..2 * b as u32).collect()),
        _ => Ok((0..b as u32).collect()),
    }
}

/// Outputs as the rows that [`output_rows`] counts. Of answer spans, `[b, s, 2]`, that is where the answer begins and where it ends, each a
/// distribution over the example's real tokens: `[2·b, s]`.
pub(crate) fn distributions(model: &Transformer, batch: &Batch, outputs: &Tensor) -> Result<Tensor> {
    if !matches!(model.blueprint().head, Head::Spans) {
        let classes = outputs.dim(candle_core::D::Minus1)?;
        return Ok(outputs.reshape(((), classes))?);
    }
    let (b, s, sides) = outputs.dims3()?;
    let mut rows = outputs.transpose(1, 2)?.contiguous()?;
    if let Some(keep) = &batch.keep {
        let shut = (keep.to_dtype(DType::F64)?.affine(-1.0, 1.0)? * HIDDEN_LOGIT)?;
        rows = rows.broadcast_add(&shut.to_dtype(rows.dtype())?.unsqueeze(1)?)?;
    }
    Ok(rows.reshape((b * sides, s))?)
}

/// Stands for −∞ where a token is padding: its probability is 0, and a difference of two of them is 0, not NaN.
const HIDDEN_LOGIT: f64 = -1e30;

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
