//! Metrics over examples: the task's loss, accuracy, F1, Matthews' and the other correlations.

use candle_core::{D, DType, Tensor};
use prunectl_model::{Batch, Gates, Head, Labels};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::agreement::{f1, matthews, pearson, ranks, stderr};
use super::{Inputs, Measured, Metric, Needs};
use crate::error::{PruneError, Result};
use crate::labels::output_rows;
use crate::row::{metric, needs_data, param};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Accuracy,
    F1 { macro_average: bool },
    Matthews,
    Pearson,
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
            What::Matthews => "matthews",
            What::Pearson => "pearson",
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
            Some(Labels::Values(labels)) if matches!(inputs.model.blueprint().head, Head::Encode { .. }) => {
                let truth: Vec<f64> = labels.to_dtype(DType::F64)?.to_vec1()?;
                let n = truth.len();
                if b != 2 * n {
                    return Err(self.wrong_labels("pairs of texts: their embeddings are compared"));
                }
                let vectors = outputs.to_dtype(DType::F64)?;
                let (first, second) = (vectors.narrow(0, 0, n)?, vectors.narrow(0, n, n)?); // [n, hidden]
                let dot = |x: &Tensor, y: &Tensor| (x * y)?.sum(D::Minus1)?.to_vec1::<f64>();
                let (xy, xx, yy) = (dot(&first, &second)?, dot(&first, &first)?, dot(&second, &second)?);
                let cosine = xy.iter().zip(xx.iter().zip(&yy)).map(|(xy, (xx, yy))| xy / (xx * yy).sqrt().max(f64::MIN_POSITIVE));
                Ok(Pairs { predicted: cosine.collect(), truth, counts: vec![1; n] })
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
            What::Matthews => {
                let protocol = "Matthews' correlation over all classes; 0 where a side is constant";
                Measured { value: matthews(&predicted, &truth), protocol: protocol.into(), ..measured }
            }
            What::Pearson | What::Spearman => {
                let ranked = self.0 == What::Spearman;
                let value = if ranked { pearson(&ranks(&predicted), &ranks(&truth)) } else { pearson(&predicted, &truth) };
                let value = value.ok_or_else(|| {
                    self.wrong_labels("predictions and labels that vary: one side is constant, so there is no correlation")
                })?;
                // Fisher's z has variance 1/(n − 3), for ranks 1.06/(n − 3) (Fieller et al. 1957); r changes by 1 − r² as much as z.
                let variance = if ranked { 1.06 } else { 1.0 };
                let stderr = (n > 3.0).then(|| (1.0 - value * value) * (variance / (n - 3.0)).sqrt());
                let of = match inputs.model.blueprint().head {
                    Head::Encode { .. } => "the cosines of the two texts' embeddings",
                    _ => "predictions",
                };
                let protocol = match ranked {
                    true => format!("Spearman's rank correlation of {of} and labels, ties at their mean rank"),
                    false => format!("Pearson's correlation of {of} and labels"),
                };
                Measured { value, stderr, protocol, ..measured }
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
fn matthews_metric(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(TaskMetric(What::Matthews)))
}
fn pearson_metric(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(TaskMetric(What::Pearson)))
}
fn loss(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(TaskMetric(What::Loss)))
}

pub(super) const ACCURACY: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "accuracy",
        "share of right predictions",
        &[],
        "Share of examples (or of scored tokens, for a language model) whose highest output is the label. Between 0% and 100%.\n\n\
         ```prune\neval accuracy() of m on d.validation as acc\n```",
    )),
    build: accuracy,
};
pub(super) const F1: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "f1",
        "harmonic mean of precision and recall",
        &[param("average", Ty::OneOf(&["binary", "macro"]), "binary", "Of class 1, or the unweighted mean over classes.")],
        "Harmonic mean of precision and recall.",
    )),
    build: build_f1,
};
pub(super) const SPEARMAN: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "spearman",
        "Spearman, The proof and measurement of association between two things (1904)",
        &[],
        "Rank correlation between predicted and true values; ties take their mean rank. For a model without a task's head (an encoder of \
         sentences) the predictions are the cosines between the embeddings of the two texts of each row, by the pooling that the model's \
         folder states.\n\n\
         ```prune\neval spearman() of m on d.test as similarity\n```",
    )),
    build: spearman,
};
pub(super) const PEARSON: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "pearson",
        "Pearson, Notes on regression and inheritance in the case of two parents (1895)",
        &[],
        "Correlation between predicted and true values; of an encoder of sentences, as `spearman`.",
    )),
    build: pearson_metric,
};
pub(super) const MATTHEWS: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "matthews",
        "Matthews, Comparison of the predicted and observed secondary structure of T4 phage lysozyme (1975); for several classes, \
         Gorodkin (2004), eq. 8",
        &[],
        "Correlation between predicted and true classes, 1 for all right, 0 for chance; what CoLA is scored by.",
    )),
    build: matthews_metric,
};
pub(super) const LOSS: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "loss",
        "mean loss of the model's own head",
        &[],
        "The mean over all scored tokens (or examples), whatever the batch, without a router's auxiliary loss.",
    )),
    build: loss,
};
