//! ThiNet: units whose absence the next layer notices least.
//!
//! Luo et al., ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression (2017), eq. 6-7 and algorithm 1. Of each input
//! channel j of a consumer (`o` for heads, `down` for neurons), `x̂_ij` is what it gives to one output of the consumer for sampled token i,
//! the output drawn at random. The removed set T grows greedily by the channel that keeps `Σ_i (Σ_{j∈T} x̂_ij)²` least; survivors are
//! rescaled by least squares on the same rows, `w = argmin Σ_i (y_i − Σ_{j∈S} w_j x̂_ij)²`, y the consumer's output without its bias.
//!
//! A score is the place in the removal order, as a share: the sets are nested, so any amount in `scope = layer` cuts where the greedy search
//! would have stopped. A head's x̂ is the sum over its columns. The sums of products are all that the search needs, so memory holds the
//! sampled rows of one layer, whatever the data.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Gates, ModelError, Point, Tap, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::Scope;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::flap::{Consumer, consumer};
use super::{Criterion, Layerwise, blocks};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::linalg::solve;
use crate::row::{CALIBRATION, INNER_SITES, criterion, needs_data, param, sequential, within};
use crate::scores::Scores;
use crate::selection::{Request, Shape, layer_amounts, select};
use crate::site::{Key, Sites};
use crate::surgery;
use crate::units::count;

const NAME: &str = "thinet";
/// How often a singular least-squares problem is tried again, each time with a hundred times the damping.
const RETRIES: u32 = 4;
/// The first damping, as a share of the mean of the diagonal.
const LEAST_DAMP: f64 = 1e-8;

struct ThiNet {
    samples: usize,
    rescale: bool,
    seed: u64,
}

/// Tokens drawn evenly from a stream of unknown length (Vitter 1985, algorithm R).
struct Reservoir {
    rows: Vec<Vec<f32>>,
    seen: usize,
    rng: ChaCha8Rng,
}

/// The inputs of consumers, sampled.
struct Samples {
    capacity: usize,
    seed: u64,
    /// By point and layer.
    kept: BTreeMap<(Point, usize), Reservoir>,
    real: Option<Vec<u8>>,
}

impl Samples {
    fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.real = batch.keep.as_ref().map(|k| k.flatten_all()?.to_vec1()).transpose()?;
        Ok(())
    }
}

impl Tap for Samples {
    fn wants(&self, _: usize, point: Point) -> bool {
        matches!(point, Point::HeadContext | Point::Intermediate)
    }

    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        let rows = x.to_dtype(DType::F32)?.flatten_from(2)?.flatten_to(1)?.to_vec2::<f32>()?;
        let seed = self.seed ^ ((layer as u64) << 1 | u64::from(point == Point::HeadContext));
        let fresh = || Reservoir { rows: Vec::new(), seen: 0, rng: ChaCha8Rng::seed_from_u64(seed) };
        let own = self.kept.entry((point, layer)).or_insert_with(fresh);
        for (token, row) in rows.into_iter().enumerate() {
            if self.real.as_ref().is_some_and(|r| r.get(token).is_none_or(|k| *k == 0)) {
                continue;
            }
            if own.rows.len() < self.capacity {
                own.rows.push(row);
            } else {
                let place = own.rng.random_range(0..=own.seen);
                if let Some(old) = own.rows.get_mut(place) {
                    *old = row;
                }
            }
            own.seen += 1;
        }
        Ok(())
    }
}

/// XᵀX of x̂ `[rows][units]`, row by row.
fn products(x: &[Vec<f64>], units: usize) -> Result<Vec<f64>> {
    let t = Tensor::from_vec(x.concat(), (x.len(), units), &Device::Cpu)?;
    Ok(t.t()?.contiguous()?.matmul(&t)?.flatten_all()?.to_vec1()?)
}

/// `candidates` in the order in which they leave: each time the one that keeps the norm of the removed sum least; of equals the first.
fn order(products: &[f64], units: usize, candidates: &[usize]) -> Vec<usize> {
    let at = |i: usize, j: usize| products.get(i * units + j).copied().unwrap_or_default();
    let mut left = candidates.to_vec();
    let mut with_sum = vec![0.0; units];
    let mut out = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let cost = |j: &usize| 2.0 * with_sum.get(*j).copied().unwrap_or_default() + at(*j, *j);
        let mut best = (0, f64::INFINITY);
        for (place, unit) in left.iter().enumerate() {
            let value = cost(unit);
            if value < best.1 {
                best = (place, value);
            }
        }
        let unit = left.remove(best.0);
        for (j, d) in with_sum.iter_mut().enumerate() {
            *d += at(unit, j);
        }
        out.push(unit);
    }
    out
}

/// The factor of each kept unit, with a word where the least squares needed damping. A unit that gave nothing keeps the factor 1.
fn rescale(products: &[f64], units: usize, kept: &[usize]) -> Option<(Vec<f64>, Option<f64>)> {
    let at = |i: usize, j: usize| products.get(i * units + j).copied().unwrap_or_default();
    let live: Vec<usize> = kept.iter().copied().filter(|u| at(*u, *u) > 0.0).collect();
    let n = live.len();
    let b: Vec<f64> = live.iter().map(|i| (0..units).map(|j| at(*i, j)).sum()).collect();
    let mean = live.iter().map(|i| at(*i, *i)).sum::<f64>() / n.max(1) as f64;
    for attempt in 0..=RETRIES {
        let damp = if attempt == 0 { 0.0 } else { LEAST_DAMP * 100f64.powi(attempt as i32 - 1) };
        let mut a: Vec<f64> = live.iter().flat_map(|i| live.iter().map(|j| at(*i, *j)).collect::<Vec<_>>()).collect();
        a.iter_mut().step_by(n + 1).for_each(|d| *d += damp * mean);
        if let Some(w) = solve(&a, &b) {
            let factor = |u: &usize| live.iter().position(|l| l == u).and_then(|p| w.get(p)).copied().unwrap_or(1.0);
            return Some((kept.iter().map(factor).collect(), (attempt > 0).then_some(damp)));
        }
    }
    None
}

impl ThiNet {
    fn samples(&self) -> Samples {
        Samples { capacity: self.samples, seed: self.seed, kept: BTreeMap::new(), real: None }
    }

    /// x̂ᵀx̂ of one site.
    fn site(&self, model: &Transformer, key: Key, samples: &Samples) -> Result<Vec<f64>> {
        let units = count(model, key)?;
        let columns: Vec<Consumer> = (0..units).map(|u| consumer(NAME, model, key, u)).collect::<Result<_>>()?;
        let layer = key.layer.unwrap_or_default();
        let point = if key.kind == SiteKind::Neurons { Point::Intermediate } else { Point::HeadContext };
        let rows =
            samples.kept.get(&(point, layer)).filter(|r| !r.rows.is_empty()).ok_or(PruneError::NoData { method: NAME, batches: 0 })?;
        let Some(slot) = columns.first().map(|c| c.slot.clone()) else { return Ok(Vec::new()) };
        let w = model.params().require(&slot)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        // One output of the consumer for each row.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(layer as u64 + 1);
        let mut x = Vec::with_capacity(rows.rows.len());
        for row in &rows.rows {
            let output = w.get(rng.random_range(0..w.len().max(1))).map(Vec::as_slice).unwrap_or_default();
            let give = |c: &usize| output.get(*c).copied().unwrap_or_default() * row.get(*c).copied().map_or(0.0, f64::from);
            x.push(columns.iter().map(|u| u.columns.iter().map(give).sum()).collect::<Vec<f64>>());
        }
        let products = products(&x, units)?;
        if let Some(i) = products.iter().position(|v| !v.is_finite()) {
            let value = products.get(i).map_or(f32::NAN, |v| *v as f32);
            return Err(PruneError::NotFinite { method: NAME, key, unit: i / units.max(1), value });
        }
        Ok(products)
    }

    /// Places in the removal order as shares; units that are not asked for have 0.
    fn scores_of(
        &self,
        model: &Transformer,
        sites: &Sites,
        removed: &Removed,
        samples: &Samples,
    ) -> Result<(Scores, BTreeMap<Key, Vec<f64>>)> {
        let (mut scores, mut kept) = (Scores::default(), BTreeMap::new());
        for (key, selected) in sites.units.iter().filter(|(_, u)| !u.is_empty()) {
            let products = self.site(model, *key, samples)?;
            let units = count(model, *key)?;
            let candidates: Vec<usize> = selected.iter().filter(|u| !removed.has(*key, *u)).collect();
            let mut own = vec![0f32; units];
            for (place, unit) in order(&products, units, &candidates).into_iter().enumerate() {
                if let Some(score) = own.get_mut(unit) {
                    *score = place as f32 / candidates.len().max(1) as f32;
                }
            }
            scores.sites.insert(*key, own);
            kept.insert(*key, products);
        }
        Ok((scores.checked(NAME)?, kept))
    }

    /// Multiplies the consumer's columns of each kept unit.
    fn apply(&self, model: &mut Transformer, key: Key, kept: &[usize], products: &[f64], progress: &dyn Progress) -> Result<()> {
        let units = count(model, key)?;
        let Some((factors, damp)) = rescale(products, units, kept) else {
            progress.note(&format!("{NAME}: {key}: the least squares is singular at any damping; its units keep their size"));
            return Ok(());
        };
        if let Some(damp) = damp {
            progress.note(&format!("{NAME}: {key}: the least squares is singular; damped by {damp:e} of its mean diagonal"));
        }
        let mut by_column: BTreeMap<String, BTreeMap<usize, f64>> = BTreeMap::new();
        for (unit, factor) in kept.iter().zip(&factors) {
            let own = consumer(NAME, model, key, *unit)?;
            by_column.entry(own.slot).or_default().extend(own.columns.into_iter().map(|c| (c, *factor)));
        }
        for (slot, factors) in by_column {
            let w = model.params().require(&slot)?;
            let scale: Vec<f64> = (0..w.dim(1)?).map(|c| factors.get(&c).copied().unwrap_or(1.0)).collect();
            let n = scale.len();
            let scale = Tensor::from_vec(scale, (1, n), &Device::Cpu)?.to_dtype(w.dtype())?.to_device(w.device())?;
            let scaled = w.broadcast_mul(&scale)?;
            model.params_mut().set(slot, scaled);
        }
        Ok(())
    }

    fn supported(&self, sites: &Sites) -> Result<()> {
        let hint = "it scores heads, KV groups and the neurons of dense MLPs";
        match sites.weights.is_empty() {
            true => Ok(()),
            false => Err(PruneError::Site { method: NAME, kind: SiteKind::Weights, hint }),
        }
    }
}

impl Criterion for ThiNet {
    fn needs_data(&self) -> bool {
        true
    }

    fn default_scope(&self, kind: SiteKind) -> Scope {
        if kind == SiteKind::Weights { Scope::Matrix } else { Scope::Layer }
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        self.supported(sites)?;
        let mut samples = self.samples();
        let mut done = 0;
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            samples.begin(&batch)?;
            model.hidden(&batch, &Gates::default(), &mut samples)?;
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        Ok(self.scores_of(model, sites, &Removed::default(), &samples)?.0)
    }

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        Some(self)
    }

    fn updates_weights(&self) -> bool {
        self.rescale
    }

    fn holds_products(&self) -> bool {
        true
    }
}

impl Layerwise for ThiNet {
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        self.supported(request.sites)?;
        let amounts = layer_amounts(request.amount, request.sites)?;
        // A ranking over all layers is decided before the first block changes; only the rescaling is block by block then.
        let first = match request.scope == Scope::Global && amounts.is_none() {
            true => {
                let scores = self.score(model, request.sites, data, progress)?;
                Some(select(&scores, &Request { removed, ..*request }, &Shape::of(model, request.sites)?)?)
            }
            false => None,
        };
        let (mut decision, mut scores) = (Decision::default(), Scores::default());
        blocks::each(NAME, model, request.sites, data, progress, |model, layer, own, stream| {
            let mut samples = self.samples();
            stream.watch(model, layer, &mut samples, Samples::begin)?;
            let (here, products) = self.scores_of(model, own, removed, &samples)?;
            let chosen = match &first {
                Some(all) => {
                    let of_layer = all.sites.iter().filter(|(k, _)| own.units.contains_key(*k));
                    Decision { sites: of_layer.map(|(k, v)| (*k, v.clone())).collect(), ..Decision::default() }
                }
                None => {
                    let amount = amounts.as_ref().and_then(|a| a.get(&layer)).unwrap_or(request.amount);
                    select(&here, &Request { sites: own, amount, removed, ..*request }, &Shape::of(model, own)?)?
                }
            };
            if self.rescale {
                for (key, kept) in &chosen.sites {
                    let whole: BTreeSet<usize> = kept.iter().copied().collect();
                    let gone = (0..count(model, *key)?).any(|u| !whole.contains(&u) && !removed.has(*key, u));
                    if let Some(products) = products.get(key).filter(|_| gone) {
                        self.apply(model, *key, kept, products, progress)?;
                    }
                }
            }
            surgery::mask(model, removed, &chosen)?;
            decision.sites.extend(chosen.sites);
            scores.sites.extend(here.sites);
            Ok(())
        })?;
        Ok((decision, scores))
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let samples = usize::try_from(args.count("samples")?).unwrap_or(usize::MAX);
    Ok(Box::new(ThiNet { samples, rescale: args.flag("rescale")?, seed: args.count("seed")? }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(sequential(criterion(
        "thinet",
        "Luo et al., ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression (2017), eq. 6-7",
        &[
            CALIBRATION,
            within(param("samples", Ty::Count, "4096", "Rows of the consumer's output that the choice is made on."), 1.0, 1e7),
            param("rescale", Ty::Bool, "true", "Rescale the survivors by least squares."),
            within(param("seed", Ty::Count, "0", "Which rows and outputs are drawn."), 0.0, 9e15),
        ],
        INNER_SITES,
        "Greedy removed set T that changes the consumer's output least: `Σ (Σ_{j∈T} x̂_ij)²`; survivors are rescaled by least squares.\n\n\
         Mind: the consumer is `down` for neurons and `o` for heads; ties go to the lowest index. The default scope is `layer`. \
         `score`, `prune … using SCORES` and `inputs = dense` rescale nothing.\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 20% using thinet(on = d.train.sample(64, seed = 0)) { scope = layer }\n```",
    ))),
    build,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Three channels of two rows: x̂ = [[1, 2, -2], [0, 1, -1]]. Channel 0 alone gives 1, the others 5 each; then 1 with 2 cancels, so after
    /// channel 0 goes 2 (‖(−1, −1)‖² = 2 against ‖(3, 1)‖² = 10), not 1.
    #[test]
    fn order_by_hand() {
        let x = vec![vec![1.0, 2.0, -2.0], vec![0.0, 1.0, -1.0]];
        let g = products(&x, 3).unwrap();
        assert_eq!(g, [1.0, 2.0, -2.0, 2.0, 5.0, -5.0, -2.0, -5.0, 5.0]);
        assert_eq!(order(&g, 3, &[0, 1, 2]), [0, 2, 1]);
        // y = (1, 0): of channel 1 alone, w = (x₁·y) / (x₁·x₁) = 2/5.
        let (w, damp) = rescale(&g, 3, &[1]).unwrap();
        assert!((w[0] - 0.4).abs() < 1e-15 && damp.is_none());
        // Channels 1 and 2 are one line: singular, and said so.
        assert!(rescale(&g, 3, &[1, 2]).unwrap().1.is_some());
        // A dead channel keeps its size.
        assert_eq!(rescale(&[0.0], 1, &[0]).unwrap().0, [1.0]);
    }

    #[test]
    fn equals_the_authors() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods/12_thinet");
        let load = |file: &str| candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap();
        let (inputs, expected) = (load("inputs.safetensors"), load("expected.safetensors"));
        let case: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
        let f64s = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
        let (w, a) = (f64s(&inputs["weight"]), f64s(&inputs["input"]));
        let outputs = inputs["output_unit"].to_vec1::<i64>().unwrap();
        let x: Vec<Vec<f64>> =
            a.iter().zip(&outputs).map(|(row, o)| row.iter().zip(&w[*o as usize]).map(|(x, w)| x * w).collect()).collect();
        let g = products(&x, 32).unwrap();
        let gone = order(&g, 32, &(0..32).collect::<Vec<_>>());
        let mut worst = 0f64;
        for (rate, n) in [("0.5", 16), ("0.25", 8)] {
            let mut kept = gone[32 - n..].to_vec();
            kept.sort_unstable();
            let theirs: Vec<usize> = expected[&format!("kept.{rate}")].to_vec1::<i64>().unwrap().iter().map(|k| *k as usize).collect();
            assert_eq!(kept, theirs, "rate {rate}");
            let (factors, damp) = rescale(&g, 32, &kept).unwrap();
            assert!(damp.is_none());
            let name = format!("rescale.{rate}");
            let tolerance = |k: &str| case["expected"][&name][k].as_f64().unwrap();
            for (ours, theirs) in factors.iter().zip(expected[&name].to_vec1::<f32>().unwrap()) {
                let theirs = f64::from(theirs);
                assert!((ours - theirs).abs() <= tolerance("atol") + tolerance("rtol") * theirs.abs(), "{name}: {ours} {theirs}");
                worst = worst.max((ours / theirs - 1.0).abs());
            }
            let new = expected[&format!("new_weight.{rate}")].to_vec2::<f32>().unwrap();
            for (row, new) in w.iter().zip(&new) {
                for ((unit, factor), new) in kept.iter().zip(&factors).zip(new) {
                    assert!((row[*unit] * factor - f64::from(*new)).abs() <= 1.1e-5 + 1e-3 * f64::from(new.abs()));
                }
            }
        }
        println!("golden 12_thinet: kept units exact, worst relative error of a factor {worst:.1e}");
    }
}
