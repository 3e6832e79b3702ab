//! `prune … to BOUND`: how much each layer gives, from measured sensitivity curves.
//!
//! Li et al., Pruning Filters for Efficient ConvNets (2017), fig. 2b, measures one layer at a time; what the layers give together is a
//! knapsack, solved here on the lower convex hull of each curve (Dantzig's greedy rule, exact at the hull's corners; between two corners
//! units go one at a time): segments in the order of loss per parameter saved, until every limit is met. The last unit that must go goes,
//! no further one does. Losses of several layers are taken to add up, which is why the result is measured again, beside the same share
//! from every layer.
//!
//! Which units a layer gives is the criterion's word: lowest scores first.

use std::collections::BTreeMap;

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Scope, Share, Unit};

use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed, UnitMap};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::selection::{Request, Shape, chains, select};
use crate::site::{Key, Sites, plural};
use crate::surgery;

/// Points of a sensitivity curve besides the dense one.
pub const CURVE_POINTS: usize = 8;

/// Loss against units gone, of one site alone.
#[derive(Debug, Clone, PartialEq)]
pub struct SensitivityCurve {
    /// The site.
    pub key: Key,
    /// Units gone and the mean loss then, the first point the model as it came.
    pub points: Vec<(usize, f64)>,
}

/// How a bound was met.
#[derive(Debug, Clone)]
pub struct Bounded {
    /// What stays.
    pub decision: Decision,
    /// What was measured, by site.
    pub curves: Vec<SensitivityCurve>,
    /// What the limits' metrics are then, as shares of the limits: none is above 1.
    pub reached: Vec<f64>,
    /// Mean loss with nothing removed, as decided, and with the same share from every site, where that can meet the bound.
    pub losses: (f64, f64, Option<f64>),
}

/// Measures a compacted candidate: each limit's metric as a share of its limit; met where none is above 1.
pub type Limits<'a> = dyn FnMut(&Transformer) -> Result<Vec<f64>> + 'a;

/// One site's units in the order in which they go, in steps that are legal to stop at.
type Chain = Vec<Vec<usize>>;

/// A curve, and its points in steps of the chain.
struct Measured {
    curve: SensitivityCurve,
    steps: Vec<(usize, f64)>,
}

/// Where along a path limits are met.
#[derive(Debug, PartialEq)]
enum Met {
    /// After so many steps, with what was measured there.
    After(usize, Vec<f64>),
    /// Not even at the end.
    Never(Vec<f64>),
}

struct Search<'a> {
    model: &'a Transformer,
    removed: &'a Removed,
    shape: &'a Shape,
    chains: &'a BTreeMap<Key, Chain>,
}

/// Mean loss over all scored tokens or examples.
fn loss(model: &Transformer, data: &mut dyn Batches, progress: &dyn Progress) -> Result<f64> {
    let (mut sum, mut count, mut batches) = (0.0, 0, 0);
    data.reset()?;
    while let Some(batch) = data.next()? {
        progress.check()?;
        let out = model.forward_loss(&batch, &prunectl_model::Gates::default(), &mut ())?;
        count += out.count();
        sum += out.per_example_sum.to_dtype(candle_core::DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        batches += 1;
    }
    if count == 0 {
        return Err(PruneError::NoData { method: "a bound's sensitivity curves", batches });
    }
    Ok(sum / count as f64)
}

impl Search<'_> {
    /// What stays after so many steps of each chain.
    fn decision(&self, taken: &BTreeMap<Key, usize>) -> Decision {
        let mut out = Decision::default();
        for (key, chain) in self.chains {
            let n = taken.get(key).copied().unwrap_or(0);
            let gone: std::collections::BTreeSet<usize> = chain.iter().take(n).flatten().copied().collect();
            let stays = |u: &usize| !gone.contains(u) && !self.removed.has(*key, *u);
            out.sites.insert(*key, (0..self.shape.count(*key)).filter(stays).collect());
        }
        out
    }

    fn masked(&self, taken: &BTreeMap<Key, usize>) -> Result<(Transformer, Removed)> {
        let (mut model, mut removed) = (self.model.clone(), self.removed.clone());
        surgery::mask(&mut model, &mut removed, &self.decision(taken))?;
        Ok((model, removed))
    }

    fn measured(&self, taken: &BTreeMap<Key, usize>, limits: &mut Limits<'_>) -> Result<Vec<f64>> {
        let (mut model, mut removed) = self.masked(taken)?;
        surgery::compact(&mut model, &mut removed, &mut UnitMap::default())?;
        limits(&model)
    }

    fn loss(&self, taken: &BTreeMap<Key, usize>, data: &mut dyn Batches, progress: &dyn Progress) -> Result<f64> {
        loss(&self.masked(taken)?.0, data, progress)
    }

    /// Units of the first `steps` steps of a chain.
    fn units(&self, key: Key, steps: usize) -> usize {
        self.chains.get(&key).map_or(0, |c| c.iter().take(steps).map(Vec::len).sum())
    }

    fn curves(&self, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Vec<Measured>> {
        let dense = self.loss(&BTreeMap::new(), data, progress)?;
        let total = (self.chains.len() * CURVE_POINTS) as u64;
        let mut out = Vec::new();
        let mut done = 0;
        for (key, chain) in self.chains {
            let mut steps = vec![(0, dense)];
            for point in 1..=CURVE_POINTS {
                let n = (chain.len() * point).div_ceil(CURVE_POINTS);
                done += 1;
                progress.advance(done, total, "sensitivity");
                if steps.last().is_some_and(|(before, _)| *before == n) {
                    continue;
                }
                let value = self.loss(&[(*key, n)].into(), data, progress)?;
                if !value.is_finite() {
                    return Err(PruneError::Invalid {
                        what: "loss of a sensitivity curve",
                        found: format!("{value} with {} {} of {key} gone", self.units(*key, n), plural(key.kind)),
                        expected: "a finite loss; keep more of that layer with `at_least` or `protect`".into(),
                    });
                }
                steps.push((n, value));
            }
            let points = steps.iter().map(|(n, loss)| (self.units(*key, *n), *loss)).collect();
            out.push(Measured { curve: SensitivityCurve { key: *key, points }, steps });
        }
        Ok(out)
    }

    /// Every step of every chain, cheapest loss per parameter first.
    fn path(&self, curves: &[Measured]) -> Vec<Key> {
        let mut segments: Vec<(f64, Key, usize)> = Vec::new();
        for Measured { curve, steps } in curves {
            let key = curve.key;
            let cost = |n: usize| -> f64 {
                let units = self.chains.get(&key).into_iter().flat_map(|c| c.iter().take(n)).flatten();
                units.map(|u| self.shape.cost(key, *u) as f64).sum()
            };
            let points: Vec<(f64, f64, usize)> = steps.iter().map(|(n, loss)| (cost(*n), *loss, *n)).collect();
            for pair in hull(&points).windows(2) {
                let &[(c0, l0, n0), (c1, l1, n1)] = pair else { continue };
                segments.push(((l1 - l0) / (c1 - c0).max(1.0), key, n1 - n0));
            }
        }
        // Stable: of equal slopes the earlier site goes first, and a hull's slopes never fall.
        segments.sort_by(|a, b| a.0.total_cmp(&b.0));
        segments.into_iter().flat_map(|(_, key, n)| std::iter::repeat_n(key, n)).collect()
    }
}

/// The lower convex hull of points with ascending x.
fn hull(points: &[(f64, f64, usize)]) -> Vec<(f64, f64, usize)> {
    let mut out: Vec<(f64, f64, usize)> = Vec::new();
    for p in points {
        while let [.., a, b] = out.as_slice() {
            // b lies on or above the line from a to p.
            if (b.1 - a.1) * (p.0 - a.0) >= (p.1 - a.1) * (b.0 - a.0) {
                out.pop();
            } else {
                break;
            }
        }
        out.push(*p);
    }
    out
}

fn met(values: &[f64]) -> bool {
    values.iter().all(|v| *v <= 1.0)
}

/// The least n in `0..=last` that is met, supposing that what is met stays met; with what was measured there.
fn least(last: usize, mut measure: impl FnMut(usize) -> Result<Vec<f64>>) -> Result<Met> {
    let first = measure(0)?;
    if met(&first) {
        return Ok(Met::After(0, first));
    }
    let mut best = (last, measure(last)?);
    if !met(&best.1) {
        return Ok(Met::Never(best.1));
    }
    let mut low = 0;
    while low + 1 < best.0 {
        let middle = low + (best.0 - low) / 2;
        let values = measure(middle)?;
        if met(&values) {
            best = (middle, values);
        } else {
            low = middle;
        }
    }
    Ok(Met::After(best.0, best.1))
}

/// A loss for each share of a site's units gone.
pub(crate) type Losses = Vec<(Share, f64)>;

/// The dense loss, and the loss with each share of each site's units masked alone, lowest scores first.
pub(crate) fn one_by_one(
    model: &Transformer,
    scores: &Scores,
    sites: &Sites,
    shares: &[Share],
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<(f64, Vec<(Key, Losses)>)> {
    let (amount, nothing) = (Amount::Share { share: Share::ONE, each: true }, Removed::default());
    let request = Request::plain(sites, &amount, Scope::Layer, &nothing);
    let shape = Shape::of(model, sites)?;
    let chains = chains(scores, &request, &shape)?;
    let search = Search { model, removed: &nothing, shape: &shape, chains: &chains };
    let dense = search.loss(&BTreeMap::new(), data, progress)?;
    let total = (chains.len() * shares.len()) as u64;
    let (mut out, mut done) = (Vec::new(), 0);
    for (key, chain) in &chains {
        let mut curve = Vec::with_capacity(shares.len());
        for share in shares {
            curve.push((*share, search.loss(&[(*key, share.of(chain.len()))].into(), data, progress)?));
            done += 1;
            progress.advance(done, total, "sensitivity");
        }
        out.push((*key, curve));
    }
    Ok((dense, out))
}

/// Meets limits, given with their metrics' names, with the least removed along the path of least loss. The model is not changed. `request.amount` and `request.scope` are not
/// read.
///
/// # Errors
/// A selection of single weights, limits that even everything removable doesn't meet, a loss that is not finite.
pub fn to_limits(
    model: &Transformer,
    scores: &Scores,
    request: &Request<'_>,
    (names, limits): (&[&str], &mut Limits<'_>),
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Bounded> {
    let shape = Shape::of(model, request.sites)?;
    let chains = chains(scores, request, &shape)?;
    let search = Search { model, removed: request.removed, shape: &shape, chains: &chains };
    // What can't be met at all is said before anything is measured on data.
    let never = |values: &[f64]| PruneError::Invalid {
        what: "a bound",
        found: format!("{} with everything gone that may go", shares(names, values)),
        expected: "at most 100% of each limit: select more, or loosen `at_least`, `protect` or the bound".into(),
    };
    let everything = chains.iter().map(|(key, chain)| (*key, chain.len())).collect();
    let least_there_is = search.measured(&everything, limits)?;
    if !met(&least_there_is) {
        return Err(never(&least_there_is));
    }
    let measured = search.curves(data, progress)?;
    let path = search.path(&measured);
    let first = |n: usize| {
        let mut taken: BTreeMap<Key, usize> = BTreeMap::new();
        path.iter().take(n).for_each(|key| *taken.entry(*key).or_default() += 1);
        taken
    };
    let (n, reached) = match least(path.len(), |n| search.measured(&first(n), limits))? {
        Met::After(n, reached) => (n, reached),
        Met::Never(values) => return Err(never(&values)),
    };
    let taken = first(n);
    // The baseline: the same share of every site.
    let longest = chains.values().map(Vec::len).max().unwrap_or(0);
    let even = |n: usize| chains.iter().map(|(k, c)| (*k, c.len() * n / longest.max(1))).collect::<BTreeMap<_, _>>();
    let uniform = match least(longest, |n| search.measured(&even(n), limits))? {
        Met::After(n, _) => Some(search.loss(&even(n), data, progress)?),
        Met::Never(_) => None,
    };
    let dense = measured.first().and_then(|m| m.curve.points.first()).map_or(f64::NAN, |p| p.1);
    let losses = (dense, search.loss(&taken, data, progress)?, uniform);
    Ok(Bounded { decision: search.decision(&taken), curves: measured.into_iter().map(|m| m.curve).collect(), reached, losses })
}

fn shares(names: &[&str], values: &[f64]) -> String {
    names.iter().zip(values).map(|(name, v)| format!("{name} at {:.1}% of its limit", v * 100.0)).collect::<Vec<_>>().join(" and ")
}

/// `to { layers = 24, neurons = 4608 }`: exactly so many of each kind stay, in every selected layer, the highest scores.
pub fn to_shape(scores: &Scores, request: &Request<'_>, shape: &Shape, wanted: &[(SiteKind, u64)]) -> Result<Decision> {
    let mut out = Decision::default();
    for (kind, n) in wanted {
        let n = *n as usize;
        let keys: Vec<Key> = request.sites.of_kind(*kind).map(|(k, _)| k).collect();
        let mut amounts = Vec::new();
        for key in &keys {
            let total = shape.count(*key);
            if n > total {
                return Err(PruneError::Invalid {
                    what: "a shape to prune to",
                    found: format!("{n} {} in {key}", plural(*kind)),
                    expected: format!("at most {total}, what is there"),
                });
            }
            amounts.push(Amount::Units { n: (total - n) as u64, unit: Unit::Count });
        }
        let mut sites = Sites::default();
        for key in &keys {
            sites.units.insert(*key, request.sites.units.get(key).cloned().unwrap_or_default());
        }
        let whole = matches!(kind, SiteKind::Layers | SiteKind::Hidden);
        let amount = if whole { amounts.into_iter().next().unwrap_or(Amount::PerLayer(Vec::new())) } else { Amount::PerLayer(amounts) };
        let one = Request { sites: &sites, amount: &amount, scope: Scope::Global, step: None, ..*request };
        out.sites.extend(select(scores, &one, shape)?.sites);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hull_leaves_out_what_lies_above_a_line() {
        // (2, 3) lies above the line from (1, 0) to (3, 2).
        let points = [(0.0, 0.0, 0), (1.0, 0.0, 1), (2.0, 3.0, 2), (3.0, 2.0, 3)];
        assert_eq!(hull(&points), [points[0], points[1], points[3]]);
        assert_eq!(hull(&points[..1]), points[..1]);
    }

    #[test]
    fn the_least_that_meets_is_found() {
        let asked = std::cell::Cell::new(0);
        let at = |n: usize| {
            asked.set(asked.get() + 1);
            Ok(vec![(100 - n) as f64 / 63.0])
        };
        assert_eq!(least(100, at).unwrap(), Met::After(37, vec![1.0]));
        assert!(asked.get() < 12);
        assert_eq!(least(5, |_| Ok(vec![0.5])).unwrap(), Met::After(0, vec![0.5]));
        assert_eq!(least(5, |n| Ok(vec![2.0 - n as f64 * 0.1])).unwrap(), Met::Never(vec![1.5]));
    }
}
