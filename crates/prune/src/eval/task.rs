//! Metrics over examples: the task's loss, accuracy, F1, Spearman's correlation.

use candle_core::{D, DType, Tensor};
use prunectl_model::{Batch, Gates, Labels};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::{Inputs, Measured, Metric, Needs};
use crate::error::{PruneError, Result};
use crate::labels::output_rows;
use crate::row::{metric, needs_data, param, runs};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Accuracy,
    F1 { macro_average: bool },
    Spearman,
    Loss,
}

struct TaskMetric(What);

/// Predicted and true classes (or values) of what counts in a batch, one list an example.
struct Pairs {
    predicted: Vec<f64>,
    truth: Vec<f64>,
    /// Scored entries of each example.
    counts: Vec<usize>,
}

impl TaskMetric {
    fn name(&self) -> &'static str {
        match self.0 {
            What::Accuracy => "accuracy",
            What::F1 { .. } => "f1",
            What::Spearman => "spearman",
            What::Loss => "loss",
        }
    }

    fn wrong_labels(&self, needs: &str) -> PruneError {
        PruneError::Missing { method: self.name(), needs: needs.to_owned() }
    }

    fn pairs(&self, batch: &Batch, outputs: &Tensor, inputs: &Inputs<'_>) -> Result<Pairs> {
        let (b, s) = batch.size()?;
        match &batch.labels {
            Some(Labels::Classes(labels)) => {
                let truth: Vec<f64> = labels.to_vec1::<i64>()?.iter().map(|l| *l as f64).collect();
                let predicted = outputs.argmax(D::Minus1)?.to_vec1::<u32>()?.iter().map(|c| f64::from(*c)).collect();
                Ok(Pairs { predicted, truth, counts: vec![1; b] })
            }
            Some(Labels::Values(labels)) => {
                let truth = labels.to_dtype(DType::F64)?.to_vec1()?;
                let predicted = outputs.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
                Ok(Pairs { predicted, truth, counts: vec![1; b] })
            }
            Some(Labels::Tokens(labels)) => {
                let shift = u32::from(inputs.model.blueprint().attention.causal);
                let rows = output_rows(inputs.model, batch)?;
                self.token_pairs(labels, outputs, &rows, shift, b, s)
            }
            None if inputs.model.blueprint().attention.causal => {
                let rows = output_rows(inputs.model, batch)?;
                self.token_pairs(&batch.input_ids.to_dtype(DType::I64)?, outputs, &rows, 1, b, s)
            }
            Some(Labels::Spans(_)) | None => Err(self.wrong_labels("data with a class, a value or token labels for each example")),
        }
    }

    fn token_pairs(&self, labels: &Tensor, outputs: &Tensor, rows: &[u32], shift: u32, b: usize, s: usize) -> Result<Pairs> {
        let labels = labels.flatten_all()?.to_vec1::<i64>()?;
        let classes = outputs.dim(D::Minus1)?;
        let index = Tensor::from_slice(rows, rows.len(), outputs.device())?;
        let best = outputs.reshape(((), classes))?.index_select(&index, 0)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let mut counts = vec![0; b];
        let mut truth = Vec::with_capacity(rows.len());
        for row in rows {
            truth.push(labels.get((row + shift) as usize).copied().unwrap_or_default() as f64);
            if let Some(n) = counts.get_mut(*row as usize / s.max(1)) {
                *n += 1;
            }
        }
        Ok(Pairs { predicted: best.into_iter().map(f64::from).collect(), truth, counts })
    }

    fn loss(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let (mut sum, mut count, mut examples, mut seen) = (0.0, 0u64, 0u64, 0);
        let mut per_example = Vec::new();
        self.each(inputs, |batch, inputs| {
            let out = inputs.model.forward_loss(batch, &Gates::default(), &mut ())?;
            let sums = out.per_example_sum.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            for (s, n) in sums.iter().zip(&out.per_example_count) {
                sum += s;
                count += *n as u64;
                examples += 1;
                per_example.push(s / (*n).max(1) as f64);
            }
            seen += 1;
            Ok(())
        })?;
        if count == 0 {
            return Err(PruneError::NoData { method: self.name(), batches: seen });
        }
        Ok(Measured {
            value: sum / count as f64,
            stderr: Some(stderr(&per_example)),
            protocol:
                "mean over all scored tokens (or examples), natural logarithm, whatever the batch; its standard error is over examples"
                    .into(),
            tokens: Some(count),
            examples: Some(examples),
            per_example,
            ..Measured::default()
        })
    }

    fn each(&self, inputs: &mut Inputs<'_>, mut see: impl FnMut(&Batch, &Inputs<'_>) -> Result<()>) -> Result<()> {
        let batches = inputs.batches.take().ok_or_else(|| self.wrong_labels("data: `on DATA`"))?;
        batches.reset()?;
        let total = batches.len_hint().unwrap_or(0) as u64;
        let mut done = 0;
        while let Some(batch) = batches.next()? {
            inputs.progress.check()?;
            see(&batch, inputs)?;
            done += 1;
            inputs.progress.advance(done, total.max(done), self.name());
        }
        inputs.batches = Some(batches);
        Ok(())
    }
}

/// Standard error of a mean.
pub(crate) fn stderr(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if n < 2.0 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (variance / n).sqrt()
}

/// Ranks from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let at = |i: &usize| values.get(*i).copied().unwrap_or_default();
    order.sort_by(|a, b| at(a).total_cmp(&at(b)));
    let mut out = vec![0.0; values.len()];
    let mut rank = 0;
    for tie in order.chunk_by(|a, b| at(a) == at(b)) {
        let mean = rank as f64 + (tie.len() as f64 + 1.0) / 2.0;
        rank += tie.len();
        for i in tie {
            if let Some(r) = out.get_mut(*i) {
                *r = mean;
            }
        }
    }
    out
}

/// Pearson's correlation; None where a side is constant.
fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let (ma, mb) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let mut cov = 0.0;
    let (mut va, mut vb) = (0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        cov += (x - ma) * (y - mb);
        va += (x - ma).powi(2);
        vb += (y - mb).powi(2);
    }
    (va > 0.0 && vb > 0.0).then(|| cov / (va * vb).sqrt())
}

/// Spearman's ρ; None where a side is constant or there are fewer than two values.
pub(crate) fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() < 2 || a.len() != b.len() {
        return None;
    }
    pearson(&ranks(a), &ranks(b))
}

/// F1 of one class.
fn f1(predicted: &[f64], truth: &[f64], class: f64) -> f64 {
    let (mut hit, mut said, mut is) = (0.0, 0.0, 0.0);
    for (p, t) in predicted.iter().zip(truth) {
        said += f64::from(u8::from(*p == class));
        is += f64::from(u8::from(*t == class));
        hit += f64::from(u8::from(*p == class && *t == class));
    }
    if said + is > 0.0 { 2.0 * hit / (said + is) } else { 0.0 }
}

/// The class that counts as positive in a binary F1.
const POSITIVE: f64 = 1.0;

impl Metric for TaskMetric {
    fn needs(&self) -> Needs {
        Needs::Batches
    }

    fn higher_is_better(&self) -> Option<bool> {
        Some(self.0 != What::Loss)
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        if self.0 == What::Loss {
            return self.loss(inputs);
        }
        let (mut predicted, mut truth, mut per_example, mut seen) = (Vec::new(), Vec::new(), Vec::new(), 0);
        self.each(inputs, |batch, inputs| {
            let outputs = inputs.model.forward(batch, &Gates::default(), &mut ())?;
            let pairs = self.pairs(batch, &outputs, inputs)?;
            let mut at = 0;
            for n in &pairs.counts {
                let hits = (at..at + n).filter(|i| pairs.predicted.get(*i) == pairs.truth.get(*i)).count();
                per_example.push(hits as f64 / (*n).max(1) as f64);
                at += n;
            }
            predicted.extend(pairs.predicted);
            truth.extend(pairs.truth);
            seen += 1;
            Ok(())
        })?;
        if truth.is_empty() {
            return Err(PruneError::NoData { method: self.name(), batches: seen });
        }
        let n = truth.len() as f64;
        let examples = Some(per_example.len() as u64);
        let tokens = (per_example.len() != truth.len()).then_some(truth.len() as u64);
        let measured = Measured { examples, tokens, ..Measured::default() };
        Ok(match self.0 {
            What::Accuracy => {
                let hits = predicted.iter().zip(&truth).filter(|(p, t)| p == t).count() as f64;
                let value = hits / n;
                Measured {
                    value,
                    stderr: Some((value * (1.0 - value) / n).sqrt()),
                    protocol: format!(
                        "share of {} whose highest output is the label; the lowest index wins a tie",
                        if tokens.is_some() { "scored tokens" } else { "examples" }
                    ),
                    per_example,
                    ..measured
                }
            }
            What::F1 { macro_average } => {
                let value = if macro_average {
                    let mut classes: Vec<f64> = truth.iter().chain(&predicted).copied().collect();
                    classes.sort_by(f64::total_cmp);
                    classes.dedup();
                    classes.iter().map(|c| f1(&predicted, &truth, *c)).sum::<f64>() / classes.len() as f64
                } else {
                    f1(&predicted, &truth, POSITIVE)
                };
                let protocol = if macro_average { "F1, unweighted mean over the classes that occur" } else { "F1 of class 1" };
                Measured { value, protocol: protocol.into(), ..measured }
            }
            What::Spearman => {
                let value = pearson(&ranks(&predicted), &ranks(&truth)).ok_or_else(|| {
                    self.wrong_labels("predictions and labels that vary: one side is constant, so there is no correlation")
                })?;
                // Fisher's z for ranks, with the variance 1.06/(n − 3) of Fieller et al. (1957).
                let stderr = (n > 3.0).then(|| (1.0 - value * value) * (1.06 / (n - 3.0)).sqrt());
                Measured { value, stderr, protocol: "Spearman's rank correlation, ties at their mean rank".into(), ..measured }
            }
            What::Loss => measured,
        })
    }
}

fn accuracy(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(TaskMetric(What::Accuracy)))
}
fn build_f1(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(TaskMetric(What::F1 { macro_average: args.word("average")? == "macro" })))
}
fn spearman(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(TaskMetric(What::Spearman)))
}
fn loss(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(TaskMetric(What::Loss)))
}

pub(super) const ACCURACY: Entry<dyn Metric> = Entry {
    spec: runs(needs_data(metric(
        "accuracy",
        "share of right predictions",
        &[],
        "Share of examples (or of scored tokens, for a language model) whose highest output is the label. Between 0% and 100%.\n\n\
         ```prune\neval accuracy() of m on d.validation as acc\n```",
    ))),
    build: Some(accuracy),
};
pub(super) const F1: Entry<dyn Metric> = Entry {
    spec: runs(needs_data(metric(
        "f1",
        "harmonic mean of precision and recall",
        &[param("average", Ty::OneOf(&["binary", "macro"]), "binary", "Of class 1, or the unweighted mean over classes.")],
        "Harmonic mean of precision and recall.",
    ))),
    build: Some(build_f1),
};
pub(super) const SPEARMAN: Entry<dyn Metric> = Entry {
    spec: runs(needs_data(metric(
        "spearman",
        "Spearman, The proof and measurement of association between two things (1904)",
        &[],
        "Rank correlation between predicted and true values; ties take their mean rank.",
    ))),
    build: Some(spearman),
};
pub(super) const LOSS: Entry<dyn Metric> = Entry {
    spec: runs(needs_data(metric(
        "loss",
        "mean loss of the model's own head",
        &[],
        "The mean over all scored tokens (or examples), whatever the batch, without a router's auxiliary loss.",
    ))),
    build: Some(loss),
};

#[cfg(test)]
mod tests {
    use super::{f1, pearson, ranks, stderr};

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[10.0, 20.0, 10.0, 30.0]), [1.5, 3.0, 1.5, 4.0]);
    }

    #[test]
    fn correlation_by_hand() {
        let r = pearson(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0]);
        assert_eq!(r, Some(0.5));
        assert_eq!(pearson(&[1.0, 1.0], &[0.0, 1.0]), None);
    }

    #[test]
    fn f1_by_hand() {
        // 1 hit, 2 said, 3 are: 2·1/(2 + 3)
        assert!((f1(&[1.0, 1.0, 0.0, 0.0], &[1.0, 0.0, 1.0, 1.0], 1.0) - 0.4).abs() < 1e-12);
    }

    #[test]
    fn standard_error_by_hand() {
        assert!((stderr(&[1.0, 3.0]) - 1.0).abs() < 1e-12);
    }
}
