//! Losses per example, so that means over tokens or examples come out the same whatever the batch.

use candle_core::{DType, Tensor};
use prunectl_kernels as kernels;

use crate::batch::{Batch, IGNORED, Labels};
use crate::blueprint::Head;
use crate::error::{ModelError, Result};
use crate::net::heads::head_name;
use crate::transformer::Transformer;

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct LossOut {
    /// `[batch]`, in the graph: the sum over each example's scored tokens (or the example's one loss).
    pub per_example_sum: Tensor,
    /// Scored tokens of each example (1 for a class or a value).
    pub per_example_count: Vec<usize>,
}

impl LossOut {
    /// Scored tokens (or examples) of the batch.
    pub fn count(&self) -> usize {
        self.per_example_count.iter().sum()
    }

    /// Sum over all scored tokens: a scalar in the graph.
    pub fn sum(&self) -> Result<Tensor> {
        Ok(self.per_example_sum.sum_all()?)
    }

    /// Mean over all scored tokens: a scalar in the graph; 0 where nothing is scored.
    pub fn mean(&self) -> Result<Tensor> {
        Ok((self.sum()? / self.count().max(1) as f64)?)
    }

    /// `[batch]`, in the graph: the mean of each example.
    pub fn per_example_mean(&self) -> Result<Tensor> {
        let t = &self.per_example_sum;
        let inverse: Vec<f64> = self.per_example_count.iter().map(|n| 1.0 / (*n).max(1) as f64).collect();
        Ok((t * Tensor::new(inverse, &candle_core::Device::Cpu)?.to_dtype(t.dtype())?.to_device(t.device())?)?)
    }
}

/// Tokens that a batch scores.
#[derive(Debug, Clone, Default)]
pub struct ScoredTokens {
    /// Index into the flattened `[batch · seq]` states of the state that predicts it, ascending.
    pub rows: Vec<u32>,
    /// What it should predict.
    pub targets: Vec<u32>,
    /// The example it belongs to.
    pub examples: Vec<u32>,
}

impl Transformer {
    /// Which states are scored against which tokens. A causal model without labels predicts its own input, padding left out. Nothing is
    /// predicted from the state of a padding token: what stands first in a text counts nowhere, on whichever side the padding is.
    pub fn scored_tokens(&self, batch: &Batch) -> Result<ScoredTokens> {
        let (b, s) = batch.size()?;
        let causal = self.blueprint.attention.causal;
        let keep = batch.host_keep()?;
        let padding = |row: usize, at: usize| keep.as_ref().and_then(|k| k.get(row)?.get(at)).is_some_and(|k| *k == 0);
        let labels = match &batch.labels {
            Some(Labels::Tokens(t)) => {
                expect_shape("token labels", t, &[b, s])?;
                t.to_dtype(DType::I64)?.to_vec2::<i64>()?
            }
            None if causal => {
                let mut ids = batch.input_ids.to_dtype(DType::I64)?.to_vec2::<i64>()?;
                if let Some(keep) = &keep {
                    for (id, _) in ids.iter_mut().flatten().zip(keep.iter().flatten()).filter(|(_, k)| **k == 0) {
                        *id = IGNORED;
                    }
                }
                ids
            }
            other => return Err(wrong_labels(&self.blueprint.head, other.as_ref())),
        };
        let mut scored = ScoredTokens::default();
        for (example, tokens) in labels.iter().enumerate() {
            for (at, &label) in tokens.iter().enumerate() {
                if label == IGNORED || (causal && (at == 0 || padding(example, at - 1))) {
                    continue;
                }
                if label < 0 || label as usize >= self.blueprint.vocab {
                    return Err(ModelError::LabelOutOfRange { label, row: example, classes: self.blueprint.vocab });
                }
                scored.rows.push((example * s + at - usize::from(causal)) as u32);
                scored.targets.push(label as u32);
                scored.examples.push(example as u32);
            }
        }
        Ok(scored)
    }

    /// Loss of the logits `[scored, vocab]` of scored tokens.
    pub fn token_loss(&self, batch: usize, scored: &ScoredTokens, logits: &Tensor) -> Result<LossOut> {
        if scored.rows.is_empty() {
            let none = Tensor::zeros(batch, logits.dtype(), logits.device())?;
            return Ok(LossOut { per_example_sum: none, per_example_count: vec![0; batch] });
        }
        let nll = kernels::cross_entropy(logits, &Tensor::new(scored.targets.as_slice(), logits.device())?)?;
        by_example(batch, scored, &nll)
    }

    /// The loss of outputs of `finish`, per example.
    pub fn loss(&self, batch: &Batch, outputs: &Tensor) -> Result<LossOut> {
        let (b, _) = batch.size()?;
        let device = outputs.device();
        match (&self.blueprint.head, &batch.labels) {
            (Head::Tokens { .. }, _) => {
                let scored = self.scored_tokens(batch)?;
                let rows = Tensor::new(scored.rows.as_slice(), device)?;
                let n = outputs.dims().iter().rev().skip(1).product::<usize>();
                if 2 * scored.rows.len() >= n.max(1) {
                    // Picking rows out costs two passes over the logits and their gradient; what is not scored then counts nothing.
                    let mut targets = vec![0; n];
                    for (row, target) in scored.rows.iter().zip(&scored.targets) {
                        if let Some(slot) = targets.get_mut(*row as usize) {
                            *slot = *target;
                        }
                    }
                    let nll = kernels::cross_entropy(outputs, &Tensor::from_vec(targets, n, device)?)?;
                    return by_example(b, &scored, &nll.index_select(&rows, 0)?);
                }
                let logits = outputs.flatten_to(1)?;
                let logits = if scored.rows.is_empty() { logits.narrow(0, 0, 0)? } else { logits.index_select(&rows, 0)? };
                self.token_loss(b, &scored, &logits)
            }
            (Head::Sequence { labels, regression: false, .. }, Some(Labels::Classes(classes))) => {
                expect_shape("class labels", classes, &[b])?;
                let classes = checked(&classes.to_dtype(DType::I64)?.to_vec1::<i64>()?, *labels)?;
                let nll = kernels::cross_entropy(outputs, &Tensor::new(classes, device)?)?;
                Ok(LossOut { per_example_sum: nll, per_example_count: vec![1; b] })
            }
            (Head::Sequence { regression: true, .. }, Some(Labels::Values(values))) => {
                expect_shape("values", values, &[b])?;
                let error = (outputs.squeeze(1)? - values.to_dtype(outputs.dtype())?.to_device(device)?)?;
                Ok(LossOut { per_example_sum: error.sqr()?, per_example_count: vec![1; b] })
            }
            (Head::Spans, Some(Labels::Spans(spans))) => {
                expect_shape("answer spans", spans, &[b, 2])?;
                let s = outputs.dim(1)?;
                let spans = spans.to_dtype(DType::I64)?.to_vec2::<i64>()?;
                let mut sum = Tensor::zeros(b, outputs.dtype(), device)?;
                for side in 0..2 {
                    let ends: Vec<i64> = spans.iter().filter_map(|pair| pair.get(side).copied()).collect();
                    let logits = outputs.narrow(2, side, 1)?.squeeze(2)?.contiguous()?; // [b, s]
                    sum = (sum + kernels::cross_entropy(&logits, &Tensor::new(checked(&ends, s)?, device)?)?)?;
                }
                Ok(LossOut { per_example_sum: (sum / 2.0)?, per_example_count: vec![1; b] })
            }
            (head, labels) => Err(wrong_labels(head, labels.as_ref())),
        }
    }
}

/// Sums of the scored tokens' losses.
fn by_example(batch: usize, scored: &ScoredTokens, nll: &Tensor) -> Result<LossOut> {
    let mut per_example_count = vec![0; batch];
    for example in &scored.examples {
        if let Some(count) = per_example_count.get_mut(*example as usize) {
            *count += 1;
        }
    }
    let examples = Tensor::new(scored.examples.as_slice(), nll.device())?;
    let none = Tensor::zeros(batch, nll.dtype(), nll.device())?;
    Ok(LossOut { per_example_sum: none.index_add(&examples, nll, 0)?, per_example_count })
}

fn wrong_labels(head: &Head, labels: Option<&Labels>) -> ModelError {
    let labels = match labels {
        None => "no labels",
        Some(Labels::Tokens(_)) => "token labels",
        Some(Labels::Classes(_)) => "class labels",
        Some(Labels::Values(_)) => "values",
        Some(Labels::Spans(_)) => "answer spans",
    };
    ModelError::WrongLabels { head: head_name(head).into(), labels: labels.into() }
}

fn expect_shape(what: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
    if t.dims() == shape {
        return Ok(());
    }
    Err(ModelError::Mismatch { what: format!("shape of the {what}"), found: format!("{:?}", t.dims()), expected: format!("{shape:?}") })
}

/// Labels as u32, each below `classes`.
fn checked(labels: &[i64], classes: usize) -> Result<Vec<u32>> {
    let mut out = Vec::with_capacity(labels.len());
    for (row, &label) in labels.iter().enumerate() {
        if label < 0 || label as usize >= classes {
            return Err(ModelError::LabelOutOfRange { label, row, classes });
        }
        out.push(label as u32);
    }
    Ok(out)
}
