//! The proof after writing: the folder is opened as anyone would open it, and must compute what the model in memory computes.

use std::path::Path;

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, Gates, LoadOptions, Transformer, load};
use serde::Serialize;

use super::SaveError;

/// Rows of the probe; the last one is padded on the right.
const ROWS: usize = 3;
/// Its tokens per row, or fewer where the model has fewer positions.
const TOKENS: usize = 24;

/// What the comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Largest relative difference, max|a−b| / max|b|, between the folder's logits and those of the model in memory with its weights
    /// rounded to the dtype that was written: whether the files are right.
    pub difference: f64,
    /// Its tolerance.
    pub tolerance: f64,
    /// The same against the unrounded model: what the dtype costs.
    pub rounding: f64,
    /// From here on that is worth a warning.
    pub rounding_worth_saying: f64,
    /// The dtype written.
    pub dtype: String,
    /// The probe, in words.
    pub probe: String,
}

impl Verified {
    /// Said when rounding to the written dtype moves the logits noticeably.
    pub(crate) fn warning(&self) -> Option<String> {
        (self.rounding > self.rounding_worth_saying).then(|| {
            format!(
                "saved as {}, which moves the logits by {:.1e} (relative); metrics were measured before that rounding, `dtype = f32` avoids it",
                self.dtype, self.rounding
            )
        })
    }
}

/// Tolerance of the comparison, by the dtype that both sides compute in: the same products are summed, but over zeros too where a padded
/// layout has them, hence in another order. A few units in the last place of each dtype, times the depth of a network.
fn tolerance(compute: DType) -> f64 {
    match compute {
        DType::F64 => 1e-10,
        DType::F32 => 2e-5,
        DType::F16 => 2e-2,
        _ => 1e-1,
    }
}

/// The relative difference that rounding weights to a dtype usually stays below.
fn usual_rounding(dtype: &str) -> f64 {
    match dtype {
        "f64" | "f32" => 2e-5,
        "f16" => 1e-2,
        _ => 5e-2,
    }
}

/// Opens `dir` and compares it with `model` on the probe.
pub(super) fn compare(dir: &Path, model: &Transformer, stored: DType) -> Result<Verified, SaveError> {
    let options = LoadOptions {
        dtype: model.dtype(),
        device: model.device().clone(),
        task: Some(model.origin().task),
        shelf: model.params().tensors().shelf().cloned(),
        ..LoadOptions::default()
    };
    let again = load(dir, &options).map_err(|e| SaveError::Reload { reason: e.to_string() })?;
    against(&again, &rounded(model, stored)?, model, &format!("{stored:?}").to_lowercase())
}

/// Compares `found` with `rounded` (they must agree) and with `model` (the cost of the dtype).
pub(crate) fn against(found: &Transformer, rounded: &Transformer, model: &Transformer, dtype: &str) -> Result<Verified, SaveError> {
    let (batch, probe) = probe(model)?;
    let run = |m: &Transformer| -> Result<Tensor, SaveError> { Ok(m.forward(&batch, &Gates::default(), &mut ())?) };
    let found = run(found)?;
    let expected = run(rounded)?;
    let whole = run(model)?;
    let tolerance = tolerance(model.dtype());
    let difference = relative_difference(&found, &expected, &batch)?;
    if difference.is_nan() || difference > tolerance {
        return Err(SaveError::Differs { found: difference, allowed: tolerance, probe });
    }
    let rounding = relative_difference(&found, &whole, &batch)?;
    Ok(Verified { difference, tolerance, rounding, rounding_worth_saying: usual_rounding(dtype), dtype: dtype.to_owned(), probe })
}

/// The model with its weights as the file has them.
fn rounded(model: &Transformer, stored: DType) -> Result<Transformer, SaveError> {
    if stored == model.dtype() {
        return Ok(model.clone());
    }
    // int8 values are in the file as they are.
    let params = model.params_as(|name, tensor| match model.is_int8(name) {
        true => Ok(tensor),
        false => Ok(tensor.to_dtype(stored)?.to_dtype(model.dtype())?),
    })?;
    Ok(model.with_shape(model.dims().to_vec(), params)?)
}

/// Token ids that visit the vocabulary in large strides, the same for everyone, with padding at the end of the last row.
fn probe(model: &Transformer) -> Result<(Batch, String), SaveError> {
    let blueprint = model.blueprint();
    let rows = blueprint.embeddings.positions.as_ref().map_or(usize::MAX, |p| p.rows);
    // Some position tables keep two rows for padding.
    let tokens = TOKENS.min(rows.saturating_sub(2)).max(1);
    let vocab = blueprint.vocab.max(1) as u64;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let ids: Vec<u32> = (0..ROWS * tokens)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab) as u32
        })
        .collect();
    let padding = tokens / 3;
    let keep: Vec<u8> = (0..ROWS * tokens).map(|i| u8::from(i < ROWS * tokens - padding)).collect();
    let device = model.device();
    let batch =
        Batch { keep: Some(Tensor::from_vec(keep, (ROWS, tokens), device)?), ..Batch::new(Tensor::from_vec(ids, (ROWS, tokens), device)?) };
    Ok((batch, format!("{ROWS} rows of {tokens} tokens, {padding} of them padding")))
}

/// max|a−b| / max|b| over real tokens; NaN and infinite where the logits are.
fn relative_difference(a: &Tensor, b: &Tensor, batch: &Batch) -> Result<f64, SaveError> {
    if a.dims() != b.dims() {
        return Ok(f64::INFINITY);
    }
    // [batch, seq, …] outputs have a row per token, [batch, …] outputs one per example.
    let per_token = b.rank() == 3;
    let flat = |t: &Tensor| -> Result<Vec<f64>, SaveError> { Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?) };
    let (a, b) = (flat(a)?, flat(b)?);
    let keep: Vec<u8> = match &batch.keep {
        Some(keep) => keep.flatten_all()?.to_vec1::<u8>()?,
        None => Vec::new(),
    };
    let (n, s) = batch.size()?;
    let width = a.len() / (n * s).max(1);
    let (mut worst, mut largest) = (0.0_f64, 0.0_f64);
    for (i, (x, y)) in a.iter().zip(&b).enumerate() {
        if per_token && keep.get(i / width.max(1)) == Some(&0) {
            continue;
        }
        if !x.is_finite() || !y.is_finite() {
            return Ok(f64::NAN);
        }
        worst = worst.max((x - y).abs());
        largest = largest.max(y.abs());
    }
    Ok(if worst == 0.0 { 0.0 } else { worst / largest.max(f64::MIN_POSITIVE) })
}
