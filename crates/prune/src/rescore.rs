//! Iterative one-shot pruning: score, remove a little, score again.

use std::collections::BTreeMap;

use prunectl_model::{LayerDims, Transformer};

use crate::criterion::Criterion;
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::Result;
use crate::scores::Scores;
use crate::selection::{Request, Shape, living, multiple, select};
use crate::site::{Key, Sites};
use crate::surgery;

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Rescored {
    /// What stays after the last round.
    pub decision: Decision,
    /// The scores of each round; the first are those of the model as it came.
    pub rounds: Vec<Scores>,
}

/// Scores and removes in rounds of `request.step` of the selected units (at once without it). `model` and `removed` are left masked;
/// `request.removed` is not read. `align` is applied when all rounds are done: what went last comes back first.
pub fn rescore(
    model: &mut Transformer,
    removed: &mut Removed,
    criterion: &dyn Criterion,
    request: &Request<'_>,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Rescored> {
    let (dense, before) = (model.clone(), removed.clone());
    let mut out = Rescored::default();
    // Units in the order in which they went.
    let mut gone: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    loop {
        progress.check()?;
        let scores = criterion.score(model, &left(request.sites, removed), data, progress)?;
        let shape = Shape::of(model, request.sites)?;
        let decision = select(&filled(scores.clone(), request.sites, &shape), &Request { removed, ..*request }, &shape)?;
        out.rounds.push(scores);
        let scores = out.rounds.last();
        let mut new = 0;
        for (key, kept) in &decision.sites {
            let stays = |u: &usize| kept.binary_search(u).is_ok() || removed.has(*key, *u);
            let mut units: Vec<usize> = (0..shape.count(*key)).filter(|u| !stays(u)).collect();
            let score = |u: &usize| scores.and_then(|s| s.get(*key)).and_then(|s| s.get(*u)).copied().unwrap_or_default();
            units.sort_by(|a, b| score(a).total_cmp(&score(b)).then(a.cmp(b)));
            new += units.len();
            gone.entry(*key).or_default().extend(units);
        }
        for (slot, keep) in &decision.weights {
            let zeros =
                |t: &candle_core::Tensor| -> Result<usize> { Ok(t.flatten_all()?.to_vec1::<u8>()?.iter().filter(|k| **k == 0).count()) };
            new += zeros(keep)? - removed.weights.get(slot).map(zeros).transpose()?.unwrap_or(0);
        }
        surgery::mask(model, removed, &decision)?;
        out.decision = decision;
        if new == 0 || request.step.is_none() {
            break;
        }
    }
    if let Some(align) = request.align.filter(|a| *a > 1 && request.step.is_some()) {
        let mut changed = false;
        for (key, kept) in &mut out.decision.sites {
            let order = gone.entry(*key).or_default();
            let multiple = multiple(*key, align, &before, dense.dims());
            while !kept.len().is_multiple_of(multiple) {
                let back = last_gone(*key, order, dense.dims(), &before);
                if back.is_empty() {
                    break;
                }
                kept.extend(back);
                changed = true;
            }
            kept.sort_unstable();
        }
        if changed {
            *model = dense;
            *removed = before;
            surgery::mask(model, removed, &out.decision)?;
        }
    }
    Ok(out)
}

/// Takes the unit that went last out of `order`; of units that leave evenly one of each group.
fn last_gone(key: Key, order: &mut Vec<usize>, dims: &[LayerDims], before: &Removed) -> Vec<usize> {
    let Some(groups) = living(key, before, dims) else { return order.pop().into_iter().collect() };
    groups.iter().filter_map(|group| order.iter().rposition(|u| group.contains(u)).map(|at| order.remove(at))).collect()
}

/// Selected units that are still there: nothing else needs a score.
pub(crate) fn left(sites: &Sites, removed: &Removed) -> Sites {
    let mut out = Sites { weights: sites.weights.clone(), ..Sites::default() };
    for (key, units) in &sites.units {
        out.add(*key, units.iter().filter(|u| !removed.has(*key, *u)));
    }
    out
}

/// Sites whose units are all gone have no scores; selection wants one for each site.
pub(crate) fn filled(mut scores: Scores, sites: &Sites, shape: &Shape) -> Scores {
    for key in sites.units.keys() {
        scores.sites.entry(*key).or_insert_with(|| vec![0.0; shape.count(*key)]);
    }
    scores
}
