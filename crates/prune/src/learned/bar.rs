//! Deciding by a bar on scores instead of by an amount.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::decision::{Decision, Removed};
use crate::error::Result;
use crate::scores::Scores;
use crate::selection::{Request, Shape, living, select};

/// Everything above the bar stays, and of each matrix or site at least `floor` of it (one unit more than the share) and `at_least`, the
/// highest first. `protect` stays in any case; what `base` has masked is gone in any case. Where units leave evenly, each group keeps as many
/// as the one with the most above the bar.
pub(super) fn above(
    scores: &Scores,
    request: &Request<'_>,
    base: &Removed,
    shape: &Shape,
    floor: f64,
    over: &dyn Fn(f32) -> bool,
) -> Result<Decision> {
    let keeps = |values: &[f32], gone: &dyn Fn(usize) -> bool, stays: &dyn Fn(usize) -> bool| -> Vec<bool> {
        let floor = (floor * values.len() as f64) as usize + 1;
        let floor = request.at_least.map_or(floor, |a| a.of(values.len()).max(floor));
        let mut kept: Vec<bool> = values.iter().map(|s| over(*s)).collect();
        if kept.iter().filter(|k| **k).count() < floor {
            let mut order: Vec<usize> = (0..values.len()).collect();
            let score = |i: &usize| values.get(*i).copied().unwrap_or_default();
            order.sort_by(|a, b| score(b).total_cmp(&score(a)).then(b.cmp(a)));
            kept = vec![false; values.len()];
            for i in order.into_iter().take(floor) {
                if let Some(k) = kept.get_mut(i) {
                    *k = true;
                }
            }
        }
        kept.iter().enumerate().map(|(i, k)| (*k || stays(i)) && !gone(i)).collect()
    };
    let mut out = Decision::default();
    for (key, values) in &scores.sites {
        let selected = request.sites.units.get(key);
        let stays = |u: usize| request.protect.contains(*key, u) || !selected.is_some_and(|s| s.contains(u));
        let mut kept = keeps(values, &|u| base.has(*key, u), &stays);
        for group in short_groups(&kept, &living(*key, base, &shape.dims).unwrap_or_default()) {
            let mut back: Vec<usize> = group.units.filter(|u| kept.get(*u) == Some(&false) && !base.has(*key, *u)).collect();
            let score = |u: &usize| values.get(*u).copied().unwrap_or_default();
            back.sort_by(|a, b| score(b).total_cmp(&score(a)).then(b.cmp(a)));
            for unit in back.into_iter().take(group.missing) {
                if let Some(k) = kept.get_mut(unit) {
                    *k = true;
                }
            }
        }
        out.sites.insert(*key, kept.iter().enumerate().filter(|(_, k)| **k).map(|(u, _)| u).collect());
    }
    for (slot, values) in &scores.weights {
        let flat = values.flatten_all()?.to_vec1::<f32>()?;
        let before = base.weights.get(slot).map(|k| k.flatten_all()?.to_vec1::<u8>()).transpose()?;
        let gone = |i: usize| before.as_ref().is_some_and(|b| b.get(i) == Some(&0));
        let kept = keeps(&flat, &gone, &|_| request.protect.weights.contains(slot));
        let kept: Vec<u8> = kept.into_iter().map(u8::from).collect();
        out.weights.insert(slot.clone(), Tensor::from_vec(kept, values.dims2()?, &Device::Cpu)?);
    }
    Ok(out)
}

/// A group of units that keeps fewer than another of its layer.
struct Short {
    units: Range<usize>,
    missing: usize,
}

/// The groups that keep fewer than the fullest.
fn short_groups(kept: &[bool], groups: &[Range<usize>]) -> Vec<Short> {
    let count = |group: &Range<usize>| kept.get(group.clone()).unwrap_or_default().iter().filter(|k| **k).count();
    let most = groups.iter().map(count).max().unwrap_or(0);
    let short = groups.iter().map(|group| Short { units: group.clone(), missing: most - count(group) });
    short.filter(|group| group.missing > 0).collect()
}

/// After the last step no less than the amount has gone: what is under the bar, then the lowest above it.
pub(super) fn and_the_amount(
    decision: &Decision,
    scores: &Scores,
    request: &Request<'_>,
    base: &Removed,
    shape: &Shape,
) -> Result<Decision> {
    let mut base = base.clone();
    base.add(decision, &shape.dims, shape.hidden)?;
    select(scores, &Request { removed: &base, ..*request }, shape)
}
