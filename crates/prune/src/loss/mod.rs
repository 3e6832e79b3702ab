//! Terms of a training loss: one file each, ending in its row.

mod attention_maps;
mod distill;
mod features;
mod hidden;
mod imitate;
mod l1;
mod masked_lm;
mod minilm;
mod noisy_student;
mod relation;
mod task;

use std::cell::OnceCell;

use candle_core::Tensor;
use prunectl_model::{Batch, Context, Gates, Point, Transformer};
use prunectl_recipe::catalogue::Entry;
use prunectl_recipe::plan::Value;

use crate::error::Result;

/// What the names of parameters begin with that a loss term learns: they stand beside the model's, whose network never reads them.
pub const LEARNED: &str = "loss.";

/// One pass of the model over a micro-batch, made once for all terms that want it.
#[derive(Default)]
pub struct Shared {
    /// Where terms look.
    places: Vec<(usize, Point)>,
    hidden: OnceCell<(Tensor, Context, features::Seen)>,
    outputs: OnceCell<Tensor>,
}

impl Shared {
    /// What these terms will want of that model.
    pub fn of<'t>(terms: impl Iterator<Item = &'t dyn LossTerm>, model: &Transformer) -> Self {
        Self { places: terms.flat_map(|t| t.places(model)).collect(), ..Self::default() }
    }
}

/// One micro-batch of a training step.
pub struct LossInput<'a> {
    /// The model, its trained parameters in the graph.
    pub model: &'a Transformer,
    /// The examples.
    pub batch: &'a Batch,
    /// The model that the term imitates ([`LossTerm::teacher`]).
    pub teacher: Option<&'a Transformer>,
    /// Differs for each micro-batch of each step, the same after a resume.
    pub seed: u64,
    /// Whether other terms want the outputs, too; a term alone may compute only the rows that it scores.
    pub alone: bool,
    shared: &'a Shared,
}

impl<'a> LossInput<'a> {
    /// The input of a term; `shared` is the same for the terms of one micro-batch.
    pub fn new(
        model: &'a Transformer,
        batch: &'a Batch,
        teacher: Option<&'a Transformer>,
        seed: u64,
        alone: bool,
        shared: &'a Shared,
    ) -> Self {
        Self { model, batch, teacher, seed, alone, shared }
    }

    /// What the model shows at the places of all terms, its parameters in the graph.
    fn look(&self) -> Result<&'a features::Seen> {
        Ok(&self.pass()?.2)
    }

    fn pass(&self) -> Result<&'a (Tensor, Context, features::Seen)> {
        if self.shared.hidden.get().is_none() {
            let pass = features::Seen::pass(self.model, self.batch, self.shared.places.clone())?;
            // The cell is empty: only this function fills it, on this thread.
            let _ = self.shared.hidden.set(pass);
        }
        self.shared.hidden.get().ok_or(crate::error::PruneError::Missing { method: "loss", needs: "the model's hidden states".into() })
    }

    /// A parameter that the term learns ([`LossTerm::parameters`]).
    fn parameter(&self, name: &str) -> Option<&Tensor> {
        self.model.params().get(&format!("{LEARNED}{name}"))
    }

    /// The model's outputs for the batch as it is, computed once for all terms.
    pub fn outputs(&self) -> Result<&Tensor> {
        if self.shared.outputs.get().is_none() {
            let outputs = if self.shared.places.is_empty() {
                self.model.forward(self.batch, &Gates::default(), &mut ())?
            } else {
                let (x, context, _) = self.pass()?;
                self.model.finish(x, context, &mut ())?
            };
            // The cell is empty: only this function fills it, on this thread.
            let _ = self.shared.outputs.set(outputs);
        }
        self.shared.outputs.get().ok_or(crate::error::PruneError::Missing { method: "loss", needs: "the model's outputs".into() })
    }
}

/// A term of `loss = …`. A training step minimises Σ weight · (Σ sums / Σ counts) over its micro-batches.
pub trait LossTerm: Send + Sync {
    /// The `teacher` argument: the executor finds the model and passes it to every call.
    fn teacher(&self) -> Option<&Value> {
        None
    }
    /// Whether it is a penalty on learned scores, which the training loop computes itself: `count` and `sum` are never asked then.
    fn of_scores(&self) -> bool {
        false
    }
    /// Where in the student it looks ([`LossInput`] then has what stands there).
    fn places(&self, model: &Transformer) -> Vec<(usize, Point)> {
        let _ = model;
        Vec::new()
    }
    /// What the term learns besides the model: names and first values. They train with it, and are not part of it.
    fn parameters(&self, model: &Transformer, teacher: Option<&Transformer>, seed: u64) -> Result<Vec<(String, Tensor)>> {
        let _ = (model, teacher, seed);
        Ok(Vec::new())
    }
    /// Scored tokens (or examples) of a micro-batch: what its sum will be divided by, together with the step's other micro-batches.
    fn count(&self, model: &Transformer, batch: &Batch, seed: u64) -> Result<f64>;
    /// The sum over scored tokens (or examples): a scalar in the graph. `clock` and `step` are for schedules.
    fn sum(&self, input: &LossInput<'_>, clock: &crate::schedule::Clock, step: u64) -> Result<Tensor>;
}

/// Every loss term that the language knows.
pub static LOSSES: &[Entry<dyn LossTerm>] = &[
    task::TASK,
    task::NEXT_TOKEN,
    masked_lm::ENTRY,
    distill::ENTRY,
    l1::ENTRY,
    hidden::ENTRY,
    attention_maps::ENTRY,
    minilm::ENTRY,
    relation::ENTRY,
    noisy_student::ENTRY,
];
