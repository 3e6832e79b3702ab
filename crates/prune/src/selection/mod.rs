//! Selection: from scores and an amount to a decision. Pure: no tensor is touched but the scores.
//!
//! A share p of n units removes ⌊p·n⌋ in decimal arithmetic; units that are gone already count as removed, protected ones count as
//! there. The lowest scores go first; ties: the lowest layer, then the lowest index. Every kind of unit is ranked on its own.
//!
//! With grouped-query attention a layer loses equally many query heads from each KV group: heads go in *bundles*, the lowest head of each
//! group together, ranked by the mean of their scores; the count is the nearest legal one below. In `scope = global` bundles of all layers
//! are ranked together, so the rounding happens once for the model, not once a layer. Neurons of experts leave in the same way, the lowest
//! of each expert together: a layer's experts are as wide as each other.

#[cfg(test)]
mod tests;
mod units;
mod weights;

use std::collections::{BTreeMap, BTreeSet};

use prunectl_model::{LayerDims, Slice, Transformer};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Scope, Share, Unit};

use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::{Key, Sites, plural};

pub(crate) use units::{chains, living, multiple, select_together};
pub(crate) use weights::to_go as weights_to_go;

/// The least that must stay in each layer (each matrix, for weights).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLeast {
    /// So many units.
    Units(usize),
    /// This share of the units there, rounded up.
    Share(Share),
}

impl AtLeast {
    pub(crate) fn of(self, total: usize) -> usize {
        match self {
            Self::Units(n) => n,
            Self::Share(s) => total - Share(Share::ONE.0 - s.0).of(total).min(total),
        }
    }
}

/// What a `prune` asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The units that the selector names: the base of shares, and all that may go.
    pub sites: &'a Sites,
    /// How much of it is to be removed, together with what already is. A count (`12 heads`) is one of the whole selection in
    /// `scope = global`, of each layer in `scope = layer`.
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

/// No units.
static NOTHING: Sites = Sites { units: BTreeMap::new(), weights: BTreeSet::new() };

impl<'a> Request<'a> {
    /// A request without further conditions: nothing must stay, nothing is protected, and all goes in one call.
    pub fn plain(sites: &'a Sites, amount: &'a Amount, scope: Scope, removed: &'a Removed) -> Self {
        Self { sites, amount, scope, at_least: None, align: None, protect: &NOTHING, removed, step: None }
    }
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
    /// Parameters of each unit, by site, for amounts in parameters; a single entry stands for every unit of the site.
    pub cost: BTreeMap<Key, Vec<u64>>,
}

impl Shape {
    /// The shape of a network, with the costs of the sites named.
    pub fn of(model: &Transformer, sites: &Sites) -> Result<Self> {
        let mut shape =
            Self { dims: model.dims().to_vec(), hidden: model.blueprint().hidden, weights: BTreeMap::new(), cost: BTreeMap::new() };
        for slot in &sites.weights {
            let dims = model.params().shape(slot)?;
            let &[rows, columns] = dims else {
                return Err(PruneError::Invalid {
                    what: "matrix that loses single weights",
                    found: format!("{slot} {dims:?}"),
                    expected: "rows and columns".into(),
                });
            };
            shape.weights.insert(slot.clone(), (rows, columns));
        }
        for key in sites.units.keys() {
            // Whole layers may differ in size; the units of one layer do not.
            let units: Vec<usize> = if key.kind == SiteKind::Layers { (0..model.n_layers()).collect() } else { vec![0] };
            let mut costs = Vec::with_capacity(units.len());
            for unit in units {
                let mut cost = 0;
                for Slice { slot, dim, len, .. } in crate::units::group(model, *key, unit)? {
                    let dims = model.params().shape(&slot)?;
                    cost += (dims.iter().product::<usize>() / dims.get(dim).copied().unwrap_or(1).max(1) * len) as u64;
                }
                costs.push(cost);
            }
            shape.cost.insert(*key, costs);
        }
        Ok(shape)
    }

    /// Units of a site.
    pub fn count(&self, key: Key) -> usize {
        crate::decision::unit_count(key, &self.dims, self.hidden)
    }

    pub(crate) fn cost(&self, key: Key, unit: usize) -> u64 {
        let costs = self.cost.get(&key).map(Vec::as_slice).unwrap_or_default();
        costs.get(unit).or(costs.first()).copied().unwrap_or_default()
    }
}

/// Chooses what stays.
///
/// # Errors
/// Scores that do not fit, an amount or a scope that makes no sense for the kind, `at_least` or `protect` that leave too little to remove.
pub fn select(scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<Decision> {
    let kinds = request.sites.kinds();
    if kinds.is_empty() {
        return Err(PruneError::NothingSelected);
    }
    if kinds.len() > 1 && matches!(request.amount, Amount::Share { each: false, .. } | Amount::OfRemaining { each: false, .. }) {
        let names: Vec<&str> = kinds.iter().map(|k| plural(*k)).collect();
        return Err(amount_error(request.amount, &format!("`… each` or `… of params`: the selector names {}", names.join(" and "))));
    }
    let mut decision = Decision::default();
    for kind in kinds {
        if kind == SiteKind::Weights {
            decision.weights = weights::select(scores, request, shape)?.into();
        } else {
            decision.sites.extend(units::select(kind, scores, request, shape)?);
        }
    }
    Ok(decision)
}

fn amount_error(amount: &Amount, expected: &str) -> PruneError {
    PruneError::Amount { found: format!("{amount:?}"), expected: expected.to_owned() }
}

/// How much of a base of `total` is to go, `gone` of it already, so that the difference may be removed now.
fn wanted(amount: &Amount, total: usize, gone: usize, kind: SiteKind) -> Result<usize> {
    Ok(match amount {
        Amount::Share { share, .. } => share.of(total).min(total).saturating_sub(gone),
        Amount::OfRemaining { share, .. } => share.of(total - gone).min(total - gone),
        Amount::Units { n, unit } => {
            let fits = match unit {
                Unit::Heads => kind == SiteKind::Heads,
                Unit::Groups => kind == SiteKind::KvGroups,
                Unit::Neurons => kind == SiteKind::Neurons,
                Unit::Layers => matches!(kind, SiteKind::Layers | SiteKind::Attention | SiteKind::Mlp),
                Unit::Experts => kind == SiteKind::Experts,
                Unit::Channels => kind == SiteKind::Hidden,
                Unit::Count => true,
                Unit::Tokens | Unit::Steps | Unit::Epochs | Unit::Bytes | Unit::Milliseconds => false,
            };
            let n = *n as usize;
            if !fits || n > total {
                return Err(amount_error(amount, &format!("at most {total} {}", plural(kind))));
            }
            n.saturating_sub(gone)
        }
        Amount::OfParams(_) | Amount::NofM { .. } | Amount::PerLayer(_) | Amount::AcrossLayers { .. } | Amount::Scheduled { .. } => {
            return Err(amount_error(amount, "a share or a count here"));
        }
    })
}

/// The amount of each of `layers` layers, where amounts differ by layer.
fn by_layer(amount: &Amount, layers: usize) -> Result<Option<Vec<Amount>>> {
    Ok(match amount {
        Amount::PerLayer(list) if list.len() == layers => Some(list.clone()),
        Amount::PerLayer(list) => {
            let found = format!("a list of {} amounts", list.len());
            return Err(PruneError::Amount { found, expected: format!("one for each of the {layers} selected layers") });
        }
        Amount::AcrossLayers { from, to } => {
            let last = layers.saturating_sub(1).max(1) as i128;
            let at = |i: usize| {
                let rise = i128::from(to.0 - from.0) * i as i128;
                Share(from.0 + (rise.div_euclid(last)) as i64)
            };
            Some((0..layers).map(|i| Amount::Share { share: at(i), each: true }).collect())
        }
        _ => None,
    })
}

/// The amount of each selected layer, by layer, where amounts differ by layer; None where one amount serves all.
pub(crate) fn layer_amounts(amount: &Amount, sites: &Sites) -> Result<Option<BTreeMap<usize, Amount>>> {
    let mut layers: std::collections::BTreeSet<usize> = sites.weights.iter().filter_map(|s| crate::site::slot_layer(s)).collect();
    layers.extend(sites.units.iter().filter(|(_, u)| !u.is_empty()).filter_map(|(k, _)| k.layer));
    Ok(by_layer(amount, layers.len())?.map(|amounts| layers.into_iter().zip(amounts).collect()))
}

pub(crate) fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Global => "global",
        Scope::Layer => "layer",
        Scope::Matrix => "matrix",
        Scope::Row => "row",
    }
}
