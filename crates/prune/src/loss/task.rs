//! The model's own loss: `task()` for whatever head it has, `next_token()` for causal language models only.

use candle_core::Tensor;
use prunectl_model::{Batch, Gates, Head, Labels, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind};

use super::{LossInput, LossTerm};
use crate::error::{PruneError, Result};
use crate::labels::scored;
use crate::row::other;
use crate::schedule::Clock;

struct Task {
    next_token: bool,
}

impl Task {
    fn name(&self) -> &'static str {
        if self.next_token { "next_token" } else { "task" }
    }

    fn check(&self, model: &Transformer) -> Result<()> {
        let causal = matches!(model.blueprint().head, Head::Tokens { .. }) && model.blueprint().attention.causal;
        if self.next_token && !causal {
            return Err(PruneError::Missing {
                method: "next_token",
                needs: "a causal language model; `task()` is the loss of other heads".into(),
            });
        }
        Ok(())
    }

    /// A causal model's `next_token` ignores class labels: the input is its own label.
    fn batch(&self, batch: &Batch) -> Batch {
        let mut batch = batch.clone();
        if self.next_token && !matches!(batch.labels, Some(Labels::Tokens(_))) {
            batch.labels = None;
        }
        batch
    }
}

impl LossTerm for Task {
    fn count(&self, model: &Transformer, batch: &Batch, _: u64) -> Result<f64> {
        self.check(model)?;
        let n: usize = scored(model, &self.batch(batch))?.iter().sum();
        Ok(n as f64)
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        self.check(input.model)?;
        let batch = self.batch(input.batch);
        let out = if input.alone {
            input.model.forward_loss(&batch, &Gates::default(), &mut ())?
        } else {
            input.model.loss(&batch, input.outputs()?)?
        };
        if out.count() == 0 {
            return Err(PruneError::NoData { method: self.name(), batches: 1 });
        }
        Ok(out.sum()?)
    }
}

fn build_task(_: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    Ok(Box::new(Task { next_token: false }))
}

fn build_next_token(_: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    Ok(Box::new(Task { next_token: true }))
}

pub(super) const TASK: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        "task",
        "",
        &[],
        "The loss of the model's own head: cross-entropy of classes or tokens, mean squared error of a value. The mean over all scored tokens (or examples) of a step, whatever its micro-batches.",
    ),
    build: build_task,
};

pub(super) const NEXT_TOKEN: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        "next_token",
        "",
        &[],
        "Cross-entropy of the next token. Labels in the data are not shifted; the loss shifts them. Without labels the input is its own label.",
    ),
    build: build_next_token,
};
