//! Selection: from scores and an amount to a decision. Pure: no tensor is touched but the scores.

use prunectl_model::{LayerDims, Transformer};
use prunectl_recipe::plan::{Amount, Scope, Share};
use std::collections::BTreeMap;

use prunectl_recipe::catalogue::SiteKind;

use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::{Key, Sites};

/// The least that must stay in each layer (each matrix, for weights).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLeast {
    /// So many units.
    Units(usize),
    /// This share of the units there, rounded up.
    Share(Share),
}

/// What a `prune` asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The units that the selector names: the base of shares, and all that may go.
    pub sites: &'a Sites,
    /// How much of it is to be removed, together with what already is.
    pub amount: &'a Amount,
    /// Over which units scores are ranked; the criterion's default is the executor's to fill in.
    pub scope: Scope,
    /// What must stay in each layer.
    pub at_least: Option<AtLeast>,
    /// Kept counts of each layer are rounded up to a multiple.
    pub align: Option<usize>,
    /// Units that must not go although they count.
    pub protect: &'a Sites,
    /// What is masked already.
    pub removed: &'a Removed,
    /// At most this share of each ranking's units goes in one call (at least one unit): a step of `rescore`. `align` then waits.
    pub step: Option<Share>,
}

/// Shapes that selection counts in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shape {
    /// Each layer's counts.
    pub dims: Vec<LayerDims>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// `(out, in)` of each matrix that may lose single weights.
    pub weights: BTreeMap<String, (usize, usize)>,
    /// Parameters of one unit, by site: for amounts in parameters.
    pub cost: BTreeMap<Key, u64>,
}

impl Shape {
    /// The shape of a network, with the costs of the sites named.
    pub fn of(model: &Transformer, sites: &Sites) -> Result<Self> {
        let _ = (model, sites, SiteKind::Heads);
        Err(PruneError::NothingSelected)
    }
}

/// Chooses what stays.
pub fn select(scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<Decision> {
    let _ = (scores, request, shape);
    Err(PruneError::NothingSelected)
}
