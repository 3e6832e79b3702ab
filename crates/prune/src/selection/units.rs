//! Ranking whole units.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use prunectl_model::LayerDims;
use prunectl_recipe::Units;
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Scope};

use super::{AtLeast, Request, Shape, amount_error, by_layer, scope_name, wanted};
use crate::decision::Removed;
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::{Key, even_group, plural, together};

/// Units that leave together: one unit, or one query head of each KV group, or one neuron of each expert.
struct Item {
    score: f64,
    key: Key,
    units: Vec<usize>,
    /// What it takes from the budget: units, or parameters.
    weight: u64,
}

/// Sites ranked together.
struct Ranking<'a> {
    kind: SiteKind,
    keys: Vec<Key>,
    amount: &'a Amount,
    what: String,
}

/// Kept units of each selected site of that kind.
pub(super) fn select(kind: SiteKind, scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<BTreeMap<Key, Vec<usize>>> {
    let keys: Vec<Key> = request.sites.of_kind(kind).map(|(k, _)| k).collect();
    check(&keys, scores, request, shape)?;
    let whole = matches!(kind, SiteKind::Layers | SiteKind::Hidden);
    let per_layer = by_layer(request.amount, keys.len())?;
    if per_layer.is_some() && whole {
        return Err(amount_error(request.amount, "units inside layers: amounts by layer make no sense here"));
    }
    let mut gone: BTreeSet<(Key, usize)> = BTreeSet::new();
    match (&per_layer, request.scope) {
        (Some(amounts), _) => {
            for (key, amount) in keys.iter().zip(amounts) {
                let ranking = Ranking { kind, keys: vec![*key], amount, what: key.to_string() };
                gone.extend(rank(&ranking, scores, request, shape)?);
            }
        }
        (None, Scope::Global) => {
            let what = format!("all selected {}", plural(kind));
            gone = rank(&Ranking { kind, keys: keys.clone(), amount: request.amount, what }, scores, request, shape)?;
        }
        (None, Scope::Layer) if !whole => {
            for key in &keys {
                let ranking = Ranking { kind, keys: vec![*key], amount: request.amount, what: key.to_string() };
                gone.extend(rank(&ranking, scores, request, shape)?);
            }
        }
        (None, scope) => {
            let expected = if whole { "`global`" } else { "`global` or `layer`" };
            return Err(PruneError::Scope { found: scope_name(scope), kind, expected });
        }
    }
    let mut out = BTreeMap::new();
    for key in keys {
        let stays = |unit: &usize| !request.removed.has(key, *unit) && !gone.contains(&(key, *unit));
        out.insert(key, (0..shape.count(key)).filter(stays).collect());
    }
    Ok(out)
}

/// Kept units of all selected sites, ranked together whatever their kind; the amount must be one of parameters.
pub(crate) fn select_together(scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<BTreeMap<Key, Vec<usize>>> {
    let keys: Vec<Key> = request.sites.units.iter().filter(|(_, u)| !u.is_empty()).map(|(k, _)| *k).collect();
    let Some(kind) = keys.first().map(|k| k.kind) else { return Err(PruneError::NothingSelected) };
    check(&keys, scores, request, shape)?;
    if !matches!((request.amount, request.scope), (Amount::OfParams(_), Scope::Global)) {
        return Err(amount_error(request.amount, "a share `of params` in `scope = global` to rank units of several kinds together"));
    }
    let what = "all selected units".to_owned();
    let gone = rank(&Ranking { kind, keys: keys.clone(), amount: request.amount, what }, scores, request, shape)?;
    let stays = |key: Key, unit: usize| !request.removed.has(key, unit) && !gone.contains(&(key, unit));
    Ok(keys.into_iter().map(|key| (key, (0..shape.count(key)).filter(|u| stays(key, *u)).collect())).collect())
}

/// Of each selected site, the units that may go in the order in which they go, in steps that leave a legal model: of query heads that
/// share keys and values one of each group, of neurons one of each expert, with `align` as many as the multiple asks for. `at_least` cuts the end off.
pub(crate) fn chains(scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<BTreeMap<Key, Vec<Vec<usize>>>> {
    if !request.sites.weights.is_empty() {
        return Err(amount_error(request.amount, "whole units: zeros among single weights make no model smaller"));
    }
    let keys: Vec<Key> = request.sites.units.iter().filter(|(_, u)| !u.is_empty()).map(|(k, _)| *k).collect();
    if keys.is_empty() {
        return Err(PruneError::NothingSelected);
    }
    check(&keys, scores, request, shape)?;
    let mut out = BTreeMap::new();
    for key in keys {
        let ranking = Ranking { kind: key.kind, keys: vec![key], amount: request.amount, what: key.to_string() };
        let room = floors(&ranking, request, shape)?.get(&key).copied().unwrap_or(usize::MAX);
        let left = (0..shape.count(key)).filter(|u| !request.removed.has(key, *u)).count();
        let multiple = multiple(key, request.align.unwrap_or(1).max(1), request.removed, &shape.dims);
        let (mut chain, mut open, mut gone) = (Vec::new(), Vec::new(), 0);
        for item in items(&ranking, scores, request, shape, false) {
            gone += item.units.len();
            if gone > room {
                break;
            }
            open.extend(item.units);
            if (left - gone).is_multiple_of(multiple) {
                chain.push(std::mem::take(&mut open));
            }
        }
        out.insert(key, chain);
    }
    Ok(out)
}

fn check(keys: &[Key], scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<()> {
    for key in keys {
        let total = shape.count(*key);
        let found = scores.get(*key).ok_or_else(|| PruneError::NoScores { key: key.to_string() })?.len();
        if found != total {
            return Err(PruneError::ScoreShape { key: key.to_string(), found, expected: total });
        }
        let units = request.sites.units.get(key);
        if let Some(unit) = units.and_then(Units::last).filter(|u| *u >= total) {
            return Err(PruneError::NoSuchUnit { key: *key, unit, available: total });
        }
    }
    Ok(())
}

/// What goes now.
fn rank(ranking: &Ranking<'_>, scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<BTreeSet<(Key, usize)>> {
    let (base, budget) = budget(ranking, request, shape)?;
    let free = items(ranking, scores, request, shape, true);
    let ideal = greedy(&free, budget, |_| usize::MAX).iter().map(|i| i.weight).sum::<u64>();
    let floors = floors(ranking, request, shape)?;
    let room = |key: Key| floors.get(&key).copied().unwrap_or(usize::MAX);
    let items = items(ranking, scores, request, shape, false);
    let mut taken = greedy(&items, budget, room);
    let possible = taken.iter().map(|i| i.weight).sum::<u64>();
    if possible < ideal {
        let mut reasons = Vec::new();
        if request.at_least.is_some() {
            reasons.push("`at_least`");
        }
        if !request.protect.is_empty() {
            reasons.push("`protect`");
        }
        return Err(PruneError::CannotRemove {
            what: ranking.what.clone(),
            wanted: ideal as usize,
            possible: possible as usize,
            reason: reasons.join(" and "),
        });
    }
    match request.step {
        Some(step) => {
            let first = taken.first().map_or(0, |i| i.weight);
            let cap = (step.of(base as usize) as u64).max(first).min(budget);
            taken = greedy(&items, cap, room);
        }
        None => align(&mut taken, ranking, request, shape),
    }
    Ok(taken.into_iter().flat_map(|i| i.units.iter().map(|u| (i.key, *u))).collect())
}

/// The base of shares and what of it may go now: in units, or in parameters.
fn budget(ranking: &Ranking<'_>, request: &Request<'_>, shape: &Shape) -> Result<(u64, u64)> {
    let selected = || {
        let of = |key: Key| request.sites.units.get(&key).into_iter().flatten().map(move |u| (key, u));
        ranking.keys.iter().copied().flat_map(of).collect::<Vec<_>>()
    };
    let gone = |(key, unit): &(Key, usize)| request.removed.has(*key, *unit);
    if let Amount::OfParams(share) = ranking.amount {
        let cost = |(key, unit): &(Key, usize)| shape.cost(*key, *unit);
        let total: u64 = selected().iter().map(cost).sum();
        let removed: u64 = selected().iter().filter(|u| gone(u)).map(cost).sum();
        return Ok((total, (share.of(total as usize) as u64).saturating_sub(removed)));
    }
    let total = selected().len();
    let removed = selected().iter().filter(|u| gone(u)).count();
    Ok((total as u64, wanted(ranking.amount, total, removed, ranking.kind)? as u64))
}

/// How many units of each site may go at most.
fn floors(ranking: &Ranking<'_>, request: &Request<'_>, shape: &Shape) -> Result<BTreeMap<Key, usize>> {
    let Some(at_least) = request.at_least else { return Ok(BTreeMap::new()) };
    let mut out = BTreeMap::new();
    for key in &ranking.keys {
        let total = shape.count(*key);
        let left = (0..total).filter(|u| !request.removed.has(*key, *u)).count();
        let keep = at_least.of(total);
        if keep > left {
            return Err(PruneError::AtLeast { key: key.to_string(), wanted: keep, left, total });
        }
        out.insert(*key, left - keep);
    }
    Ok(out)
}

/// What may go, in the order in which it goes. `ideal` ignores `protect`, to find out what the amount alone would remove.
fn items(ranking: &Ranking<'_>, scores: &Scores, request: &Request<'_>, shape: &Shape, ideal: bool) -> Vec<Item> {
    let in_params = matches!(ranking.amount, Amount::OfParams(_));
    let mut out = Vec::new();
    for key in &ranking.keys {
        let scores = scores.get(*key).unwrap_or_default();
        let score = |unit: usize| scores.get(unit).copied().unwrap_or_default() + 0.0;
        let may = |unit: &usize| !request.removed.has(*key, *unit) && (ideal || !request.protect.contains(*key, *unit));
        let units: Vec<usize> = request.sites.units.get(key).into_iter().flatten().filter(may).collect();
        for units in bundles(*key, units, &score, request, shape) {
            let score = units.iter().map(|u| f64::from(score(*u))).sum::<f64>() / units.len() as f64;
            let weight = if in_params { units.iter().map(|u| shape.cost(*key, *u)).sum() } else { units.len() as u64 };
            out.push(Item { score, key: *key, units, weight });
        }
    }
    // Stable: bundles of a layer, made in order, stay in order where their scores tie.
    out.sort_by(|a, b| a.score.total_cmp(&b.score).then(a.key.layer.cmp(&b.key.layer)));
    out
}

/// Single units; of query heads that share keys and values, and of experts' neurons, one from each group together, lowest first.
fn bundles(key: Key, units: Vec<usize>, score: &dyn Fn(usize) -> f32, request: &Request<'_>, shape: &Shape) -> Vec<Vec<usize>> {
    let Some(groups) = living(key, request.removed, &shape.dims) else { return units.into_iter().map(|u| vec![u]).collect() };
    // Ascending, so that each group's are together.
    let of = |group: &Range<usize>| {
        let (start, end) = (units.partition_point(|u| *u < group.start), units.partition_point(|u| *u < group.end));
        units.get(start..end).unwrap_or_default().to_vec()
    };
    let mut groups: Vec<Vec<usize>> = groups.iter().map(of).collect();
    for group in &mut groups {
        group.sort_by(|a, b| score(*a).total_cmp(&score(*b)).then(a.cmp(b)));
    }
    let n = groups.iter().map(Vec::len).min().unwrap_or(0);
    (0..n).map(|i| groups.iter().filter_map(|g| g.get(i)).copied().collect()).collect()
}

/// The groups of a site whose units leave evenly, those left out of which nothing is there any more; `None` where units leave on their own.
pub(crate) fn living(key: Key, removed: &Removed, dims: &[LayerDims]) -> Option<Vec<Range<usize>>> {
    let dims = key.layer.and_then(|l| dims.get(l))?;
    let size = even_group(key.kind, dims)?;
    let groups = (0..together(key.kind, dims)).map(|g| g * size..(g + 1) * size);
    Some(groups.filter(|group| group.clone().any(|u| !removed.has(key, u))).collect())
}

/// What the kept count of a site is a multiple of under `align`: the width of each expert is, not their sum.
pub(crate) fn multiple(key: Key, align: usize, removed: &Removed, dims: &[LayerDims]) -> usize {
    match (key.kind, living(key, removed, dims)) {
        (SiteKind::Neurons, Some(experts)) => align * experts.len().max(1),
        _ => align,
    }
}

/// The lowest items that fit the budget and each site's room. A site whose next item does not fit is done: nothing behind it goes first.
fn greedy(items: &[Item], budget: u64, room: impl Fn(Key) -> usize) -> Vec<&Item> {
    let mut left = budget;
    let mut gone: BTreeMap<Key, usize> = BTreeMap::new();
    let mut done: BTreeSet<Key> = BTreeSet::new();
    let mut out = Vec::new();
    for item in items {
        if left == 0 {
            break;
        }
        let so_far = gone.get(&item.key).copied().unwrap_or(0);
        // Whole layers differ in size: one that does not fit hides no other.
        let one_size = item.key.kind != SiteKind::Layers;
        if done.contains(&item.key) || item.weight > left || so_far + item.units.len() > room(item.key) {
            if one_size {
                done.insert(item.key);
            }
            continue;
        }
        left -= item.weight;
        gone.insert(item.key, so_far + item.units.len());
        out.push(item);
    }
    out
}

/// Gives back the highest of each site until the kept count is a multiple (or everything that was there).
fn align(taken: &mut Vec<&Item>, ranking: &Ranking<'_>, request: &Request<'_>, shape: &Shape) {
    let Some(align) = request.align.filter(|a| *a > 1) else { return };
    for key in &ranking.keys {
        let multiple = multiple(*key, align, request.removed, &shape.dims);
        let left = (0..shape.count(*key)).filter(|u| !request.removed.has(*key, *u)).count();
        let going = |taken: &[&Item]| taken.iter().filter(|i| i.key == *key).map(|i| i.units.len()).sum::<usize>();
        while going(taken) > 0 && !(left - going(taken)).is_multiple_of(multiple) {
            let Some(last) = taken.iter().rposition(|i| i.key == *key) else { break };
            taken.remove(last);
        }
    }
}

impl std::fmt::Display for AtLeast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Units(n) => write!(f, "{n}"),
            Self::Share(s) => write!(f, "{}%", s.fraction() * 100.0),
        }
    }
}
