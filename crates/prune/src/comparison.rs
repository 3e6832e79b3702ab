//! Do two criteria agree? Spearman's rank correlation between scores of the same site, and a metric's distance from its floor.
//!
//! Spearman, The Proof and Measurement of Association between Two Things (1904): Pearson's correlation of the ranks, ties sharing their mean
//! rank. Units of all layers are ranked together (what `scope = global` cuts by); the mean over layers of each layer's own correlation
//! stands beside it (what `scope = layer` cuts by). Of single weights every n-th is looked at, at most [`SAMPLED`] of a matrix.

use std::collections::BTreeSet;

use prunectl_recipe::catalogue::SiteKind;

use crate::error::Result;
use crate::eval::spearman;
use crate::scores::Scores;
use crate::site::{Key, slot_layer};

/// Weights of one matrix that a correlation looks at, at most.
const SAMPLED: usize = 1 << 14;

/// Rank correlations of several scores of one kind of unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    /// The kind.
    pub kind: SiteKind,
    /// Indices of the compared scores in the list that was given, ascending.
    pub members: Vec<usize>,
    /// Units that two members share, the most of any pair.
    pub units: usize,
    /// Layers that hold them.
    pub layers: usize,
    /// ρ over all units, by member and member; None: no unit in common, or one of them is the same for all units.
    pub overall: Vec<Vec<Option<f64>>>,
    /// Mean over layers of the layer's own ρ.
    pub within_layers: Vec<Vec<Option<f64>>>,
}

/// How a metric stands to its floor (random scores, of one seed or several), over the amounts that both were measured at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Margin {
    /// Amounts compared.
    pub amounts: usize,
    /// Amounts at which it is better than the mean of the floor's seeds.
    pub better: usize,
    /// Amounts at which it is better than each of them.
    pub better_than_all: usize,
    /// Mean improvement over the floor's mean, in the metric's unit; positive is better.
    pub mean: f64,
}

/// Every kind of unit that at least two of the scores have, each pair of them compared over the sites that both have in one shape.
pub fn agreements(all: &[&Scores]) -> Result<Vec<Agreement>> {
    let mut kinds: BTreeSet<SiteKind> = all.iter().flat_map(|s| s.sites.keys().map(|k| k.kind)).collect();
    if all.iter().any(|s| !s.weights.is_empty()) {
        kinds.insert(SiteKind::Weights);
    }
    let mut out = Vec::new();
    for kind in kinds {
        let columns: Vec<Vec<Column>> = all.iter().map(|s| columns(s, kind)).collect::<Result<_>>()?;
        let members: Vec<usize> = columns.iter().enumerate().filter(|(_, c)| !c.is_empty()).map(|(i, _)| i).collect();
        if members.len() < 2 {
            continue;
        }
        let n = members.len();
        let mut found =
            Agreement { kind, members, units: 0, layers: 0, overall: vec![vec![None; n]; n], within_layers: vec![vec![None; n]; n] };
        for a in 0..n {
            for b in a..n {
                let of = |i: usize| found.members.get(i).and_then(|m| columns.get(*m)).map(Vec::as_slice).unwrap_or_default();
                let pair = Pair::of(of(a), of(b));
                if a != b && pair.units > found.units {
                    (found.units, found.layers) = (pair.units, pair.layers);
                }
                for (i, j) in [(a, b), (b, a)] {
                    set(&mut found.overall, i, j, pair.overall);
                    set(&mut found.within_layers, i, j, pair.within);
                }
            }
        }
        out.push(found);
    }
    Ok(out)
}

/// A metric by amount.
pub type ByAmount = Vec<(String, f64)>;

/// The mean of several curves at each amount that one of them has, in the order of their first mention; what is not finite counts nowhere.
#[must_use]
pub fn mean_curve(curves: &[ByAmount]) -> ByAmount {
    let mut out: Vec<(String, f64, u32)> = Vec::new();
    for (amount, value) in curves.iter().flatten().filter(|(_, v)| v.is_finite()) {
        match out.iter_mut().find(|(a, ..)| a == amount) {
            Some((_, sum, n)) => (*sum, *n) = (*sum + value, *n + 1),
            None => out.push((amount.clone(), *value, 1)),
        }
    }
    out.into_iter().map(|(amount, sum, n)| (amount, sum / f64::from(n))).collect()
}

/// The values of `curve` against those of `floors`, one curve a seed, all by amount; None where they share no amount.
#[must_use]
pub fn margin(curve: &[(String, f64)], floors: &[ByAmount], higher_is_better: bool) -> Option<Margin> {
    let sign = if higher_is_better { 1.0 } else { -1.0 };
    let middle = mean_curve(floors);
    let mut out = Margin { amounts: 0, better: 0, better_than_all: 0, mean: 0.0 };
    for (amount, value) in curve.iter().filter(|(_, v)| v.is_finite()) {
        let Some((_, floor)) = middle.iter().find(|(a, _)| a == amount) else { continue };
        let seeds = floors.iter().flatten().filter(|(a, v)| a == amount && v.is_finite());
        let gain = sign * (value - floor);
        out.amounts += 1;
        out.better += usize::from(gain > 0.0);
        out.better_than_all += usize::from(seeds.into_iter().all(|(_, v)| sign * (value - v) > 0.0));
        out.mean += gain;
    }
    out.mean /= out.amounts.max(1) as f64;
    (out.amounts > 0).then_some(out)
}

fn set(matrix: &mut [Vec<Option<f64>>], row: usize, column: usize, value: Option<f64>) {
    if let Some(cell) = matrix.get_mut(row).and_then(|r| r.get_mut(column)) {
        *cell = value;
    }
}

/// The scores of one site.
struct Column {
    name: String,
    layer: Option<usize>,
    size: usize,
    values: Vec<f64>,
}

fn columns(scores: &Scores, kind: SiteKind) -> Result<Vec<Column>> {
    if kind != SiteKind::Weights {
        let of = |(key, values): (&Key, &Vec<f32>)| Column {
            name: key.to_string(),
            layer: key.layer,
            size: values.len(),
            values: values.iter().map(|v| f64::from(*v)).collect(),
        };
        return Ok(scores.sites.iter().filter(|(k, v)| k.kind == kind && !v.is_empty()).map(of).collect());
    }
    let mut out = Vec::new();
    for (slot, t) in &scores.weights {
        let flat = t.flatten_all()?.to_vec1::<f32>()?;
        let every = flat.len().div_ceil(SAMPLED).max(1);
        let values = flat.iter().step_by(every).map(|v| f64::from(*v)).collect();
        out.push(Column { name: slot.clone(), layer: slot_layer(slot), size: flat.len(), values });
    }
    Ok(out)
}

struct Pair {
    units: usize,
    layers: usize,
    overall: Option<f64>,
    within: Option<f64>,
}

impl Pair {
    fn of(a: &[Column], b: &[Column]) -> Self {
        let (mut left, mut right, mut own) = (Vec::new(), Vec::new(), Vec::new());
        let (mut units, mut layers) = (0, BTreeSet::new());
        for x in a {
            let Some(y) = b.iter().find(|y| y.name == x.name && y.size == x.size) else { continue };
            left.extend_from_slice(&x.values);
            right.extend_from_slice(&y.values);
            own.extend(spearman(&x.values, &y.values));
            units += x.size;
            layers.insert(x.layer);
        }
        let within = (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64);
        Self { units, layers: layers.len(), overall: spearman(&left, &right), within }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(layers: &[&[f32]]) -> Scores {
        let site = |(l, v): (usize, &&[f32])| (Key::of(SiteKind::Heads, l), v.to_vec());
        Scores { sites: layers.iter().enumerate().map(site).collect(), ..Scores::default() }
    }

    /// Ranks 1 2 3 4 against 1 2 4 3: ρ = 1 − 6·2 / (4·15) = 0.8. In layer 0 both agree (ρ = 1), in layer 1 they do not (ρ = −1).
    #[test]
    fn rank_correlation_by_hand() {
        let (a, b) = (scores(&[&[0.1, 0.2], &[3.0, 4.0]]), scores(&[&[1.0, 2.0], &[9.0, 7.0]]));
        let found = agreements(&[&a, &b]).unwrap();
        assert_eq!(found.len(), 1);
        let one = &found[0];
        assert_eq!((one.units, one.layers, one.members.clone()), (4, 2, vec![0, 1]));
        assert!((one.overall[0][1].unwrap() - 0.8).abs() < 1e-15, "{one:?}");
        assert_eq!(one.overall[0][1], one.overall[1][0]);
        assert!((one.overall[0][0].unwrap() - 1.0).abs() < 1e-15);
        assert!(one.within_layers[0][1].unwrap().abs() < 1e-15);
    }

    /// Scores that are all equal stand in no order, sites of another shape are not compared, one set alone has nothing to agree with.
    #[test]
    fn what_can_not_be_compared_says_so() {
        let (a, flat, other) = (scores(&[&[0.1, 0.2]]), scores(&[&[5.0, 5.0]]), scores(&[&[1.0, 2.0, 3.0]]));
        let found = agreements(&[&a, &flat, &other]).unwrap();
        assert_eq!(found[0].overall[0][1], None);
        assert_eq!(found[0].overall[0][2], None);
        assert!(agreements(&[&a]).unwrap().is_empty());
        assert!(agreements(&[&a, &Scores::default()]).unwrap().is_empty());
    }

    #[test]
    fn margins_follow_the_metrics_direction() {
        let at = |v: &[(&str, f64)]| v.iter().map(|(a, x)| ((*a).to_owned(), *x)).collect::<ByAmount>();
        let curve = at(&[("20%", 0.9), ("40%", 0.7), ("60%", 0.5)]);
        let floor = [at(&[("20%", 0.8), ("40%", 0.75)])];
        let up = margin(&curve, &floor, true).unwrap();
        assert_eq!((up.amounts, up.better, up.better_than_all), (2, 1, 1));
        assert!((up.mean - 0.025).abs() < 1e-12);
        assert!((margin(&curve, &floor, false).unwrap().mean + 0.025).abs() < 1e-12);
        assert!(margin(&curve, &[], true).is_none());
    }

    /// Seeds give 0.6 and 0.8 at 40%: their mean, 0.7, is beaten by 0.75, the second one is not. What is no number is nobody's floor.
    #[test]
    fn several_seeds_make_one_floor() {
        let at = |a: &str, x: f64| vec![(a.to_owned(), x)];
        let floors = [at("40%", 0.6), at("40%", 0.8), at("40%", f64::NAN), at("60%", 0.1)];
        assert!((mean_curve(&floors)[0].1 - 0.7).abs() < 1e-12);
        let found = margin(&at("40%", 0.75), &floors, true).unwrap();
        assert_eq!((found.amounts, found.better, found.better_than_all), (1, 1, 0));
        assert!((found.mean - 0.05).abs() < 1e-12);
    }
}
