//! What can go wrong in the science. Every variant carries the values; the executor adds the place in the recipe.

use prunectl_model::ModelError;
use prunectl_recipe::catalogue::{ArgError, SiteKind};

use crate::site::Key;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// A tensor operation failed (shapes, memory, device).
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),

    /// The network refused.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// An argument that a constructor can't use.
    #[error(transparent)]
    Argument(#[from] ArgError),

    /// The data source failed.
    #[error("{0}")]
    Data(Box<dyn std::error::Error + Send + Sync>),

    /// The data gave nothing that counts.
    #[error("{method}: the data holds no scored token or example; found {batches} batches, expected at least one with labels that count")]
    NoData {
        /// The method that asked.
        method: &'static str,
        /// Batches read.
        batches: usize,
    },

    /// A method was asked for a kind of unit that it does not know.
    #[error("{method} can't score {kind}: {hint}", kind = crate::site::plural(*kind))]
    Site {
        /// The method.
        method: &'static str,
        /// The kind.
        kind: SiteKind,
        /// What would work.
        hint: &'static str,
    },

    /// A method that decides on what only its own prune makes.
    #[error("{method} gives no scores apart from a prune: {hint}")]
    ScoresNothing {
        /// The method.
        method: &'static str,
        /// What to write instead.
        hint: &'static str,
    },

    /// A score that is NaN or infinite.
    #[error(
        "{method}: the score of unit {unit} of {key} is {value}; the model's activations or gradients overflow there: check its weights, or score in f32"
    )]
    NotFinite {
        /// The method.
        method: &'static str,
        /// The site.
        key: Key,
        /// The unit.
        unit: usize,
        /// The value.
        value: f32,
    },

    /// A weight's score that is NaN or infinite.
    #[error("{method}: the score of entry {index} of `{slot}` is {value}; check the model's weights, or score in f32")]
    WeightNotFinite {
        /// The method.
        method: &'static str,
        /// The matrix.
        slot: String,
        /// Flat index.
        index: usize,
        /// The value.
        value: f32,
    },

    /// Scores that do not fit the model they are used on.
    #[error("scores of {key}: found {found} units, expected {expected}; they were made on another shape: score again")]
    ScoreShape {
        /// The site.
        key: String,
        /// Scores given.
        found: usize,
        /// Units of the model.
        expected: usize,
    },

    /// Scores of a site that was never scored.
    #[error("there are no scores of {key}; score it with the same selector first")]
    NoScores {
        /// The site or matrix.
        key: String,
    },

    /// A selection that leaves nothing to do.
    #[error("the selection names no unit")]
    NothingSelected,

    /// A unit past the end.
    #[error("{key}: unit {unit} does not exist, there are {available}")]
    NoSuchUnit {
        /// The site.
        key: Key,
        /// The index.
        unit: usize,
        /// Units there.
        available: usize,
    },

    /// More units should go than may.
    #[error("{what}: {wanted} should go, but only {possible} may ({reason}); remove less, or loosen what keeps them")]
    CannotRemove {
        /// The ranking: a kind, a layer, a matrix.
        what: String,
        /// Units that the amount removes, those already gone not counted.
        wanted: usize,
        /// Units that may go.
        possible: usize,
        /// `at_least`, `protect`.
        reason: String,
    },

    /// `at_least` exceeds what is there.
    #[error("{key}: `at_least` asks for {wanted} units, {left} of {total} are left")]
    AtLeast {
        /// The site.
        key: String,
        /// Units to keep.
        wanted: usize,
        /// Units not removed yet.
        left: usize,
        /// Units altogether.
        total: usize,
    },

    /// An amount that makes no sense for the selection.
    #[error("the amount {found} does not fit: {expected}")]
    Amount {
        /// The amount.
        found: String,
        /// What would.
        expected: String,
    },

    /// A scope that the kind of unit does not have.
    #[error("scope `{found}` does not exist for {kind}: use {expected}", kind = crate::site::plural(*kind))]
    Scope {
        /// The scope.
        found: &'static str,
        /// The kind.
        kind: SiteKind,
        /// What would work.
        expected: &'static str,
    },

    /// A metric or loss needs something that the call does not give.
    #[error("{method} needs {needs}")]
    Missing {
        /// The method.
        method: &'static str,
        /// What is missing.
        needs: String,
    },

    /// The loss of a training step is NaN or infinite.
    #[error("the loss is {loss} at step {step} (learning rate {lr:e}); try a smaller learning rate, a longer warm-up, or `clip = 1`")]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// The learning rate of that step.
        lr: f64,
    },

    /// A gradient that is NaN or infinite although the loss is not.
    #[error(
        "the gradient norm is {norm} at step {step} (learning rate {lr:e}); try a smaller learning rate, a longer warm-up, `clip = 1`, or f32"
    )]
    GradientDiverged {
        /// The step, from 1.
        step: u64,
        /// The norm.
        norm: f64,
        /// The learning rate of that step.
        lr: f64,
    },

    /// A weight that is NaN or infinite although loss and gradient are not.
    #[error(
        "a weight of `{slot}` is no number at step {step}, after its update (learning rate {lr:e}); try a smaller learning rate, a longer warm-up, or `clip = 1`"
    )]
    WeightsDiverged {
        /// The step, from 1.
        step: u64,
        /// The parameter.
        slot: String,
        /// The learning rate of that step.
        lr: f64,
    },

    /// A saved training state that does not belong to this training.
    #[error("the saved state does not fit: {what}: found {found}, expected {expected}")]
    State {
        /// What was compared.
        what: String,
        /// In the state.
        found: String,
        /// In this training.
        expected: String,
    },

    /// Nothing would be trained.
    #[error(
        "`only` names no parameter of the model: a language model's output is `m.head`, a classifier's `m.classifier`, layers are `m.layers[*]`"
    )]
    NothingToTrain,

    /// A parameter outside its legal values.
    #[error("{what}: found {found}, expected {expected}")]
    Invalid {
        /// What.
        what: &'static str,
        /// The value.
        found: String,
        /// The legal values.
        expected: String,
    },

    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, PruneError>;
