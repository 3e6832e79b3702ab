//! Criteria: one file each, ending in its row.

mod activation;
mod activation_norm;
mod adaptive;
mod block_influence;
mod blocks;
#[cfg(test)]
mod by_hand;
mod experts;
mod fisher;
mod flap;
mod gate_gradients;
mod gates;
mod grasp;
mod group_fisher;
mod gum;
mod hrank;
mod loss_delta;
mod loss_model;
mod lrp;
mod magnitude;
mod movement;
mod random;
mod slice;
mod snip;
mod sparsegpt;
mod supermask;
mod synflow;
mod taylor;
mod thinet;
mod uniform;
mod uniqueness;
mod wanda;
mod weight_gradients;

pub use blocks::TOKENS_SIDE_BY_SIDE;
pub(crate) use magnitude::plain as magnitudes;
pub(crate) use synflow::total as synaptic_flow;
pub(crate) use weight_gradients::norms as gradient_norms;

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{Entry, SiteKind};
use prunectl_recipe::plan::Scope;
use serde::{Deserialize, Serialize};

use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::Result;
use crate::learned::{Learner, Shrink};
use crate::network::Network;
use crate::scores::Scores;
use crate::selection::{Request, Shape, select};
use crate::site::Sites;

/// Scores units or weights. Must not change the model, and must give the same bits for any number of threads and, up to rounding
/// (1e-5), for any batch size.
pub trait Criterion: Send + Sync {
    /// Scores what `sites` names. `data` is the criterion's `on`; a criterion that needs none never touches it.
    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores>;

    /// Whether `data` is read.
    fn needs_data(&self) -> bool {
        false
    }

    /// Passes over the data that scoring so many units takes, for `plan`; a backward pass counts as one with its forward pass.
    fn passes(&self, units: usize) -> u64 {
        let _ = units;
        u64::from(self.needs_data())
    }

    /// Tokens of each of the passes that run at once, one on every thread; 0 where passes follow one another. For `plan`.
    fn parallel_tokens(&self) -> usize {
        0
    }

    /// The scope where a recipe names none.
    fn default_scope(&self, kind: SiteKind) -> Scope {
        if kind == SiteKind::Weights { Scope::Matrix } else { Scope::Global }
    }

    /// The form for any network, of methods that are a formula in its weights, gradients and gates.
    fn formula(&self) -> Option<&dyn Formula> {
        None
    }

    /// The layer-wise form, for methods that decide block by block or update the weights that stay.
    fn layerwise(&self) -> Option<&dyn Layerwise> {
        None
    }

    /// The form that learns its scores inside `train`.
    fn learner(&self) -> Option<&dyn Learner> {
        None
    }

    /// The decay that it asks of the weights it may remove, inside `train`.
    fn shrinks(&self) -> Option<&dyn Shrink> {
        None
    }

    /// The snapshot that it compares with; the executor hands it over before scoring.
    fn snapshot(&self) -> Option<&str> {
        None
    }

    /// Takes the network of [`Criterion::snapshot`].
    fn set_snapshot(&mut self, model: Transformer) {
        let _ = model;
    }

    /// What its scores are to a comparison of criteria.
    fn standing(&self) -> Standing {
        Standing::Estimate
    }

    /// Whether it holds the products of all pairs of a matrix's inputs, squares of its width in f64: what a plan's memory must count.
    fn holds_products(&self) -> bool {
        false
    }

    /// Whether pruning with it gives a head that shares the table of embeddings a matrix of its own.
    fn unties_head(&self) -> bool {
        false
    }

    /// Whether pruning with it changes weights that stay: such a step can't be done again from its decision alone.
    fn updates_weights(&self) -> bool {
        false
    }
}

/// What scores are to a comparison: the measure itself, an estimate of it, or the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The loss without each unit, measured.
    Exact,
    /// Everything else that says something about the model.
    #[default]
    Estimate,
    /// Says nothing about the model: what every method must beat.
    Chance,
}

/// A formula in weights, gradients and gates: it scores whatever is a [`Network`], and a transformer by the same code.
pub trait Formula {
    /// What [`Criterion::score`] says.
    fn scores(&self, network: &dyn Network, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores>;

    /// What stays of a network of that shape, and on which scores.
    fn decide(
        &self,
        network: &dyn Network,
        shape: &Shape,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        let scores = self.scores(network, request.sites, data, progress)?;
        Ok((select(&scores, request, shape)?, scores))
    }
}

/// Prunes block by block: each block is scored on the inputs that its pruned predecessors give.
pub trait Layerwise {
    /// Masks the model in place and says what it decided, and on which scores.
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)>;
}

/// Every criterion that the language knows.
pub static CRITERIA: &[Entry<dyn Criterion>] = &[
    random::ENTRY,
    magnitude::ENTRY,
    loss_delta::ENTRY,
    taylor::ENTRY,
    fisher::ENTRY,
    group_fisher::ENTRY,
    loss_model::OBD,
    loss_model::LOSS_MODEL,
    wanda::ENTRY,
    sparsegpt::ENTRY,
    flap::ENTRY,
    thinet::ENTRY,
    hrank::ENTRY,
    gates::SLIMMING,
    gates::PSP,
    movement::MOVEMENT,
    movement::LEARNED_SCORES,
    gum::ENTRY,
    uniqueness::UNIQUENESS,
    uniqueness::SENSITIVITY,
    snip::ENTRY,
    grasp::ENTRY,
    synflow::ENTRY,
    lrp::ENTRY,
    activation::ENTRY,
    adaptive::ENTRY,
    gates::SERENE,
    gates::LOBSTER,
    supermask::ENTRY,
    gates::HARD_CONCRETE,
    activation_norm::ENTRY,
    experts::REAP,
    experts::FREQUENCY,
    slice::ENTRY,
    block_influence::ENTRY,
    uniform::ENTRY,
];
