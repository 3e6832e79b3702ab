//! Pruning that learns: numbers that train beside the weights and say what goes.
//!
//! A [`Learner`] is a formula: it holds no tensor and no state. What it has learned is handed to it, so that the training loop can save and
//! restore it like everything else. Gradients come in by the weights *as the forward pass used them* (W′ = W ⊙ mask): the straight-through
//! estimator of every method here is a sum over these, so no method needs a graph of its own.

mod bar;
#[cfg(test)]
mod by_hand;
pub(crate) mod gum;
pub(crate) mod hard_concrete;
mod layout;
pub(crate) mod lobster;
pub(crate) mod psp;
pub(crate) mod scores;
pub(crate) mod serene;
pub(crate) mod slimming;

use std::collections::BTreeMap;

use candle_core::Tensor;
use prunectl_model::{Batch, Transformer};
use prunectl_recipe::plan::Schedule;

pub use layout::Layout;

use crate::criterion::Criterion;
use crate::data::{Batches, Progress};
use crate::decision::Decision;
use crate::error::{PruneError, Result};
use crate::schedule::Clock;
use crate::scores::Scores;
use crate::selection::{Request, Shape, select};
use crate::site::{Key, Sites};

/// Flat f32 vectors by name: of a site (`layers.0.mlp.neurons`) or of a matrix (`layers.0.mlp.up.weight`).
pub type Values = BTreeMap<String, Vec<f32>>;

/// What a learner has learned so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Learned {
    /// Numbers that follow gradients.
    pub params: Values,
    /// Numbers that follow something else: running means, multipliers.
    pub aux: Values,
}

/// When something is asked, and how far the pruning is.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The training's clock.
    pub clock: &'a Clock,
    /// Steps done before this one.
    pub step: u64,
    /// Share of the selected units that is to be gone now.
    pub removed: f64,
    /// Share that is to be gone in the end.
    pub finally: f64,
    /// Weight of `l1(scores)` for each score vector of this training.
    pub l1: f64,
    /// Seed of what is drawn in this step, the same after a resume.
    pub noise: u64,
}

impl Moment<'_> {
    /// The value of a schedule now.
    pub fn value(&self, schedule: &Schedule) -> f64 {
        self.clock.value(schedule, self.step)
    }
}

/// What a backward pass gave.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// ∂L/∂W′ by slot, flat: W′ is the weight under its mask.
    pub gradients: &'a Values,
    /// W by slot, flat: the weight without its mask.
    pub weights: &'a BTreeMap<&'a str, &'a [f32]>,
}

/// A method whose scores are trained. The loop asks in this order: `decide` (when an update is due), forward and backward pass,
/// `gradients`, `observe`, and then lets the training's optimiser move `params` with `lr`.
pub trait Learner: Send + Sync {
    /// Its name in a recipe.
    fn name(&self) -> &'static str;
    /// The learning rate of its parameters, None for that of the weights: a group of their own, clipped on its own, without decay.
    fn lr(&self) -> Option<&Schedule>;
    /// Where it starts.
    fn start(&self, layout: &Layout) -> Result<Learned>;
    /// Scores as they are now, for files and reports.
    fn scores(&self, layout: &Layout, learned: &Learned) -> Result<Scores>;
    /// What stays for the next steps. `finish` after the last step: then the amount holds exactly.
    fn decide(
        &self,
        layout: &Layout,
        learned: &Learned,
        request: &Request<'_>,
        shape: &Shape,
        moment: &Moment<'_>,
        finish: bool,
    ) -> Result<Decision> {
        let _ = (moment, finish);
        select(&self.scores(layout, learned)?, request, shape)
    }
    /// Whether [`Learner::gates`] multiplies anything.
    fn gated(&self) -> bool {
        false
    }
    /// What each unit's output is multiplied by beside its mask; `drawn` in the passes of a training step, otherwise as the model is seen
    /// from outside. After the last step gates are multiplied into the weights.
    fn gates(&self, layout: &Layout, learned: &Learned, moment: &Moment<'_>, drawn: bool) -> Result<BTreeMap<Key, Vec<f32>>> {
        let _ = (layout, learned, moment, drawn);
        Ok(BTreeMap::new())
    }
    /// Whether an update removes what the amount says; otherwise only `finish` does.
    fn exact(&self) -> bool {
        true
    }
    /// Gradients by `params`, the penalty's included, and the penalty.
    fn gradients(&self, layout: &Layout, learned: &Learned, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<(Values, f64)>;
    /// Whether `observe` is to be called with the inputs of the down projections.
    fn observes(&self) -> bool {
        false
    }
    /// Sees the activations `[tokens, ffn]` of a step by layer, padding left out.
    fn observe(&self, layout: &Layout, learned: &mut Learned, activations: &BTreeMap<usize, Tensor>, moment: &Moment<'_>) -> Result<()> {
        let _ = (layout, learned, activations, moment);
        Ok(())
    }
}

/// A decay that a criterion asks of the weights it may remove, at every step of the `train` around it.
pub trait Shrink: Send + Sync {
    /// What it wants to know of the model, as the step's forward pass sees it, on the step's batches: vectors by the name of the site.
    fn feel(&self, layout: &Layout, model: &Transformer, batches: &[Batch]) -> Result<Values> {
        let _ = (layout, model, batches);
        Ok(Values::new())
    }
    /// What each weight is multiplied by after the optimiser's update, by slot. What [`Shrink::feel`] found stands among the gradients.
    fn factors(&self, layout: &Layout, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<Values>;
    /// Share by which the loss of a step's batches may rise when units go, at every update but the last.
    fn tolerance(&self) -> f64;
}

/// A learner as a row of the criteria: it scores inside `train` only.
pub(crate) struct InTrain<L>(pub L);

impl<L: Learner> Criterion for InTrain<L> {
    fn score(&self, _: &Transformer, _: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        Err(PruneError::Missing { method: self.0.name(), needs: "a `train` around its `prune`: it learns its scores".into() })
    }

    fn learner(&self) -> Option<&dyn Learner> {
        Some(&self.0)
    }
}

/// |value| of each unit's parameter as scores.
fn magnitudes(method: &'static str, layout: &Layout, learned: &Learned) -> Result<Scores> {
    let mut sites = layout.by_site(&learned.params)?;
    sites.values_mut().flatten().for_each(|v| *v = v.abs());
    Scores { sites, ..Scores::default() }.checked(method)
}

/// σ.
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Adds `weight · mean σ(S)·m` and its gradient by S; `multiplier` is m, 1 where there is none.
pub(crate) fn press(scores: &[f32], multiplier: Option<&[f32]>, weight: f64, gradient: &mut [f32]) -> f64 {
    if weight == 0.0 || scores.is_empty() {
        return 0.0;
    }
    let each = weight / scores.len() as f64;
    let mut sum = 0.0;
    for (i, (s, g)) in scores.iter().zip(gradient).enumerate() {
        let m = multiplier.and_then(|m| m.get(i)).map_or(1.0, |m| f64::from(*m));
        let y = sigmoid(f64::from(*s));
        sum += each * y * m;
        *g += (each * y * (1.0 - y) * m) as f32;
    }
    sum
}
