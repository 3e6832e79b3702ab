//! FLAP: units whose activation hardly fluctuates are replaced by their mean.
//!
//! An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models (2024), eq. 5-8. Of each input column j of a consumer
//! (`o` for heads, `down` for neurons): `Var(x_j) · ‖W_:j‖²`; standardised within the layer's site, a head the mean of its columns, ranked
//! over all layers. What goes is made up for by its mean: `bias += Σ_j W_:j · mean(x_j)`.
//!
//! The authors' code (`quirk = "reference"`): a running fluctuation that forgets its first sequence and adds sums over tokens, heads'
//! metrics squared before they are standardised, means over sequences, a cut at the score where the kept cost comes nearest to its target.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Gates, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::{Amount, Scope};

use super::{Criterion, Layerwise};
use crate::calibrate::{Inputs, Moments};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::row::{CALIBRATION, INNER_SITES, QUIRK, criterion, needs_data, param};
use crate::scores::Scores;
use crate::selection::{Request, Shape, select, select_together};
use crate::site::{Key, Sites};
use crate::surgery;
use crate::units::{count, group};

const NAME: &str = "flap";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// Var(x_j)·‖W_:j‖²
    Weighted,
    /// Var(x_j)
    Plain,
    /// mean_i |W_ij| · ‖x_j‖ (Wanda's, summed up)
    Norm,
}

struct Flap {
    measure: Measure,
    bias: bool,
    reference: bool,
}

/// The matrix that reads a unit's activation, and the columns that are the unit's.
pub(super) struct Consumer {
    pub(super) slot: String,
    pub(super) columns: Vec<usize>,
}

pub(super) fn consumer(method: &'static str, model: &Transformer, key: Key, unit: usize) -> Result<Consumer> {
    let mut found: Option<Consumer> = None;
    for slice in group(model, key, unit)? {
        if slice.dim == 1 && (slice.slot.ends_with("attention.o.weight") || slice.slot.ends_with("mlp.down.weight")) {
            let own = found.get_or_insert_with(|| Consumer { slot: slice.slot.clone(), columns: Vec::new() });
            own.columns.extend(slice.start..slice.start + slice.len);
        }
    }
    found.ok_or(PruneError::Site { method, kind: key.kind, hint: "it scores heads, KV groups and the neurons of dense MLPs" })
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

impl Flap {
    /// The metric of each input column of a consumer.
    fn metric(&self, model: &Transformer, slot: &str, x: &Moments) -> Result<Vec<f64>> {
        let w = model.params().read(slot)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let rows = w.dim(0)?.max(1) as f64;
        let fluctuation: Vec<f64> = match self.reference {
            true => x.published.clone(),
            false => x.squares.iter().map(|s| s / (x.rows - 1.0).max(1.0)).collect(),
        };
        let times = |of: Vec<f64>, by: &[f64]| of.iter().zip(by).map(|(a, b)| a * b).collect();
        Ok(match self.measure {
            Measure::Plain => fluctuation,
            Measure::Weighted => times(w.sqr()?.sum(0)?.to_vec1::<f64>()?, &fluctuation),
            Measure::Norm => {
                // Σ x² over the sequences, as the authors average it.
                let norms = x.squares.iter().zip(&x.mean).map(|(s, m)| ((s + x.rows * m * m) / x.sequences.max(1.0)).sqrt());
                times(w.abs()?.sum(0)?.to_vec1::<f64>()?.iter().map(|s| s / rows).collect(), &norms.collect::<Vec<_>>())
            }
        })
    }

    fn means<'a>(&self, x: &'a Moments) -> &'a [f64] {
        if self.reference { &x.sequence_mean } else { &x.mean }
    }

    fn statistics(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Inputs<Moments>> {
        let mut slots = BTreeSet::new();
        for (key, units) in sites.units.iter().filter(|(_, u)| !u.is_empty()) {
            if let Some(unit) = units.first() {
                slots.insert(consumer(NAME, model, *key, unit)?.slot);
            }
        }
        let mut stats = Inputs::new(model.blueprint().mlp.gated, None).only(&slots);
        let mut done = 0;
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            stats.begin(&batch)?;
            model.hidden(&batch, &Gates::default(), &mut stats)?;
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        if stats.sequences == 0 {
            return Err(PruneError::NoData { method: NAME, batches: done as usize });
        }
        Ok(stats)
    }

    fn scores(&self, model: &Transformer, sites: &Sites, stats: &Inputs<Moments>) -> Result<Scores> {
        let mut out = Scores::default();
        for (key, units) in sites.units.iter().filter(|(_, u)| !u.is_empty()) {
            let Some(first) = units.first() else { continue };
            let slot = consumer(NAME, model, *key, first)?.slot;
            let missing = || PruneError::NoData { method: NAME, batches: 0 };
            let mut metric = self.metric(model, &slot, stats.get(&slot).ok_or_else(missing)?)?;
            if self.reference && key.kind != SiteKind::Neurons {
                metric.iter_mut().for_each(|m| *m *= *m);
            }
            // Columns that all fluctuate alike stand in no order: 0.
            let (mean, deviation) = mean_and_deviation(&metric);
            let standardised = |m: &f64| if deviation == 0.0 { 0.0 } else { (m - mean) / deviation };
            let mut scores = vec![0f32; count(model, *key)?];
            for unit in units {
                let columns = consumer(NAME, model, *key, unit)?.columns;
                let sum: f64 = columns.iter().filter_map(|c| metric.get(*c)).map(standardised).sum();
                if let Some(score) = scores.get_mut(unit) {
                    *score = (sum / columns.len().max(1) as f64) as f32;
                }
            }
            out.sites.insert(*key, scores);
        }
        out.checked(NAME)
    }

    /// Adds what the removed units gave on average to their consumers' biases, by the weights before they are masked.
    fn compensate(&self, model: &mut Transformer, decision: &Decision, removed: &Removed, stats: &Inputs<Moments>) -> Result<()> {
        let mut columns: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (key, kept) in &decision.sites {
            for unit in (0..count(model, *key)?).filter(|u| kept.binary_search(u).is_err() && !removed.has(*key, *u)) {
                let own = consumer(NAME, model, *key, unit)?;
                columns.entry(own.slot).or_default().extend(own.columns);
            }
        }
        let touches = |name: &str| columns.keys().any(|slot| slot.ends_with(name));
        *model = model.with_output_biases(touches("attention.o.weight"), touches("mlp.down.weight"))?;
        for (slot, columns) in &columns {
            let Some(x) = stats.get(slot) else { continue };
            let mut gone = vec![0.0; self.means(x).len()];
            for c in columns {
                if let (Some(to), Some(mean)) = (gone.get_mut(*c), self.means(x).get(*c)) {
                    *to = *mean;
                }
            }
            let w = model.params().read(slot)?;
            let mean = Tensor::from_vec(gone, (w.dim(1)?, 1), &Device::Cpu)?;
            let lost = w.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.matmul(&mean)?.squeeze(1)?;
            let name = format!("{}.bias", slot.trim_end_matches(".weight"));
            let old = model.params().require(&name)?;
            let bias = (old.to_device(&Device::Cpu)?.to_dtype(DType::F64)? + lost)?.to_dtype(old.dtype())?.to_device(old.device())?;
            model.params_mut().set(name, bias);
        }
        Ok(())
    }

    /// The authors' cut: of all units from the best down, those before the one whose cumulated cost is nearest to what may stay.
    fn published_cut(&self, scores: &Scores, request: &Request<'_>, model: &Transformer) -> Result<Decision> {
        let Amount::OfParams(share) = request.amount else {
            return Err(PruneError::Invalid {
                what: "amount of flap(quirk = \"reference\")",
                found: format!("{:?}", request.amount),
                expected: "a share `of params`".into(),
            });
        };
        if request.at_least.is_some() || request.align.is_some() || !request.protect.is_empty() || !request.removed.is_empty() {
            return Err(PruneError::Invalid {
                what: "flap(quirk = \"reference\")",
                found: "at_least, align, protect or units removed before".into(),
                expected: "none of them: the authors' cut knows none; leave `quirk` out".into(),
            });
        }
        let mut units = Vec::new();
        for (key, own) in &request.sites.units {
            // A head costs 4·head_dim rows or columns of the residual stream's width, a neuron 3.
            let d = key.layer.and_then(|l| model.dims().get(l)).copied().unwrap_or_default();
            let cost = match key.kind {
                SiteKind::Heads => 4.0 * d.head_dim as f64 / 3.0,
                SiteKind::KvGroups => 4.0 * (d.head_dim * d.group_size()) as f64 / 3.0,
                _ => 1.0,
            };
            let values = scores.get(*key).unwrap_or_default();
            units.extend(own.iter().filter_map(|u| Some((*values.get(u)?, cost, *key, u))));
        }
        units.sort_by(|a, b| b.0.total_cmp(&a.0));
        let target = units.iter().map(|u| u.1).sum::<f64>() * (1.0 - share.fraction());
        let (mut sum, mut nearest) = (0.0, (f64::INFINITY, f32::NEG_INFINITY));
        for (score, cost, ..) in &units {
            sum += cost;
            if (sum - target).abs() < nearest.0 {
                nearest = ((sum - target).abs(), *score);
            }
        }
        let mut decision = Decision::default();
        for key in request.sites.units.keys() {
            let gone: BTreeSet<usize> = units.iter().filter(|u| u.2 == *key && u.0 <= nearest.1).map(|u| u.3).collect();
            decision.sites.insert(*key, (0..count(model, *key)?).filter(|u| !gone.contains(u)).collect());
        }
        Ok(decision)
    }

    fn decide(&self, scores: &Scores, request: &Request<'_>, model: &Transformer) -> Result<Decision> {
        if self.reference {
            return self.published_cut(scores, request, model);
        }
        let shape = Shape::of(model, request.sites)?;
        if matches!(request.amount, Amount::OfParams(_)) && request.scope == Scope::Global {
            return Ok(Decision { sites: select_together(scores, request, &shape)?, ..Decision::default() });
        }
        select(scores, request, &shape)
    }
}

impl Criterion for Flap {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        if !sites.weights.is_empty() {
            let hint = "it scores heads, KV groups and the neurons of dense MLPs";
            return Err(PruneError::Site { method: NAME, kind: SiteKind::Weights, hint });
        }
        self.scores(model, sites, &self.statistics(model, sites, data, progress)?)
    }

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        Some(self)
    }

    fn updates_weights(&self) -> bool {
        self.bias
    }
}

impl Layerwise for Flap {
    /// Not block by block: the authors measure the dense model once, and rank over all layers.
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        if !request.sites.weights.is_empty() {
            let hint = "it scores heads, KV groups and the neurons of dense MLPs";
            return Err(PruneError::Site { method: NAME, kind: SiteKind::Weights, hint });
        }
        if request.step.is_some() {
            return Err(PruneError::Invalid {
                what: "`rescore` of flap",
                found: "a step".into(),
                expected: "no `rescore`: each round would add its means to the biases; write several `prune` steps instead".into(),
            });
        }
        let stats = self.statistics(model, request.sites, data, progress)?;
        let scores = self.scores(model, request.sites, &stats)?;
        let decision = self.decide(&scores, request, model)?;
        if self.bias {
            self.compensate(model, &decision, removed, &stats)?;
        }
        surgery::mask(model, removed, &decision)?;
        Ok((decision, scores))
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let measure = match args.word("metric")? {
        "ifv" => Measure::Plain,
        "wifn" => Measure::Norm,
        _ => Measure::Weighted,
    };
    Ok(Box::new(Flap { measure, bias: args.flag("bias")?, reference: args.word("quirk")? == "reference" }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "flap",
        "An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models (2024), eq. 5-8",
        &[
            CALIBRATION,
            param(
                "metric",
                Ty::OneOf(&["wifv", "ifv", "wifn"]),
                "wifv",
                "Weighted input fluctuation (the paper's), the fluctuation alone, or the weighted input norm.",
            ),
            param("bias", Ty::Bool, "true", "Add W·mean(removed input) to the consumer's bias."),
            QUIRK,
        ],
        INNER_SITES,
        "Fluctuation of a unit's activation times the consumer's weights: `Var(x_j) · ‖W_:j‖²`, standardised per layer, ranked globally; what is removed is replaced by its mean in the consumer's bias. \
         With a share `of params`, units of all selected kinds are ranked together, each taking its own parameters from the amount.\n\n\
         Mind: a consumer without a bias gets one; on Llama that throws the config's `attention_bias` and `mlp_bias`, with zeros for the other projections. \
         `prune … using SCORES` and `inputs = dense` compensate nothing. \
         The published code's running mean overwrites itself, and squares heads' metrics (`quirk = \"reference\"`).\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 20% using flap(on = d.train.sample(64, seed = 0))\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::PathBuf;

    use prunectl_model::{Batch, LoadOptions, Point, Tap};
    use prunectl_recipe::plan::Share;

    use super::*;

    fn golden(path: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods").join(path)
    }

    fn flat(t: &Tensor) -> Vec<f32> {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    struct Check {
        expected: HashMap<String, Tensor>,
        json: serde_json::Value,
        worst: (f64, String),
    }

    impl Check {
        fn close(&mut self, name: &str, ours: &[f64]) {
            let theirs = flat(&self.expected[name]);
            let (rtol, atol) =
                (self.json["expected"][name]["rtol"].as_f64().unwrap(), self.json["expected"][name]["atol"].as_f64().unwrap());
            assert_eq!(ours.len(), theirs.len());
            let scale = theirs.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
            for (a, b) in ours.iter().zip(&theirs).map(|(a, b)| (*a, f64::from(*b))) {
                assert!((a - b).abs() <= atol + rtol * b.abs(), "{name}: {a} {b}");
                if (a - b).abs() / scale > self.worst.0 {
                    self.worst = ((a - b).abs() / scale, name.to_owned());
                }
            }
        }
    }

    /// The authors' consumers stand in for those of a tiny model with 8 heads of 4 and 48 neurons, recorded inputs for its activations.
    #[test]
    fn equals_the_authors_numbers() {
        let load = |file: &str| candle_core::safetensors::load(golden("13_flap").join(file), &Device::Cpu).unwrap();
        let inputs = load("inputs.safetensors");
        let json = serde_json::from_slice(&std::fs::read(golden("13_flap/case.json")).unwrap()).unwrap();
        let mut check = Check { expected: load("expected.safetensors"), json, worst: (0.0, String::new()) };
        let mut model = prunectl_model::load(&golden("models/llama-tiny"), &LoadOptions::default()).unwrap();
        let slot = |layer: usize, part: &str| format!("layers.{layer}.{}.weight", if part == "attn" { "attention.o" } else { "mlp.down" });
        let mut stats: Inputs<Moments> = Inputs::new(true, None);
        let mut sites = Sites::default();
        for layer in 0..3 {
            for part in ["attn", "mlp"] {
                model.params_mut().set(slot(layer, part), inputs[&format!("{layer}.{part}.weight")].clone());
            }
            sites.add(Key::of(SiteKind::Heads, layer), 0..8);
            sites.add(Key::of(SiteKind::Neurons, layer), 0..48);
        }
        for rows in [0..2, 2..5] {
            let n = rows.len();
            stats.begin(&Batch::new(Tensor::zeros((n, 12), DType::U32, &Device::Cpu).unwrap())).unwrap();
            for layer in 0..3 {
                for (part, point) in [("attn", Point::HeadContext), ("mlp", Point::Intermediate)] {
                    let x = inputs[&format!("{layer}.{part}.x")].narrow(0, rows.start, n).unwrap();
                    let x = if part == "attn" { x.reshape((n, 12, 8, 4)).unwrap() } else { x };
                    stats.see(layer, point, &x).unwrap();
                }
            }
        }
        let flap = |measure, reference| Flap { measure, bias: true, reference };
        for layer in 0..3 {
            for part in ["attn", "mlp"] {
                let slot = slot(layer, part);
                let x = stats.get(&slot).unwrap();
                let name = |what: &str| format!("{layer}.{part}.{what}");
                check.close(&name("baseline"), &x.sequence_mean);
                check.close(&name("baseline"), &x.mean);
                check.close(&name("peer.fluc"), &flap(Measure::Plain, true).metric(&model, &slot, x).unwrap());
                check.close(&name("formula.variance"), &flap(Measure::Plain, false).metric(&model, &slot, x).unwrap());
                check.close(&name("WIFV"), &flap(Measure::Weighted, true).metric(&model, &slot, x).unwrap());
                check.close(&name("WIFN"), &flap(Measure::Norm, true).metric(&model, &slot, x).unwrap());
            }
        }
        let method = flap(Measure::Weighted, true);
        let scores = method.scores(&model, &sites, &stats).unwrap();
        let all = |kind| scores.sites.iter().filter(|(k, _)| k.kind == kind).flat_map(|(_, v)| v.iter().map(|s| f64::from(*s))).collect();
        let (heads, neurons): (Vec<f64>, Vec<f64>) = (all(SiteKind::Heads), all(SiteKind::Neurons));
        check.close("attn.standardised", &heads);
        check.close("mlp.standardised", &neurons);
        for ratio in ["0.2", "0.5"] {
            let amount = Amount::OfParams(Share::from_fraction(ratio.parse().unwrap()));
            let removed = Removed::default();
            let request = Request::plain(&sites, &amount, Scope::Global, &removed);
            let decision = method.decide(&scores, &request, &model).unwrap();
            for (kind, name, units) in [(SiteKind::Heads, "heads", 8), (SiteKind::Neurons, "neurons", 48)] {
                let ours: Vec<f32> = (0..3)
                    .flat_map(|l| (0..units).map(move |u| (l, u)))
                    .map(|(l, u)| if decision.sites[&Key::of(kind, l)].contains(&u) { 1.0 } else { 0.0 })
                    .collect();
                assert_eq!(ours, flat(&check.expected[&format!("alam.{ratio}.{name}")]), "{ratio} {name}");
            }
            let mut compensated = model.clone();
            method.compensate(&mut compensated, &decision, &removed, &stats).unwrap();
            for layer in 0..3 {
                for part in ["attn", "mlp"] {
                    let bias = slot(layer, part).replace(".weight", ".bias");
                    let bias: Vec<f64> = flat(compensated.params().get(&bias).unwrap()).iter().map(|b| f64::from(*b)).collect();
                    check.close(&format!("alam.{ratio}.{layer}.{part}.bias"), &bias);
                }
            }
        }
        println!("golden 13_flap: worst relative error {:.1e} ({})", check.worst.0, check.worst.1);
    }

    /// Inputs (1, 5) and (3, 5): variances 2 and 0, means 2 and 5; of the weights the columns' squares are 5 and 1.
    #[test]
    fn by_hand() {
        use crate::criterion::by_hand::{SLOT, holding};
        let (model, _) = holding(&[&[1.0, 1.0], &[2.0, 0.0]]);
        let mut stats: Inputs<Moments> = Inputs::new(true, None);
        stats.begin(&Batch::new(Tensor::zeros((1, 2), DType::U32, &Device::Cpu).unwrap())).unwrap();
        stats.see(0, Point::AttentionInput, &Tensor::new(&[[[1f32, 5.0], [3.0, 5.0]]], &Device::Cpu).unwrap()).unwrap();
        let x = stats.get(SLOT).unwrap();
        let flap = |measure| Flap { measure, bias: true, reference: false };
        assert_eq!(flap(Measure::Plain).metric(&model, SLOT, x).unwrap(), [2.0, 0.0]);
        assert_eq!(flap(Measure::Weighted).metric(&model, SLOT, x).unwrap(), [10.0, 0.0]);
        assert_eq!(flap(Measure::Plain).means(x), [2.0, 5.0]);
        assert_eq!(mean_and_deviation(&[10.0, 0.0]), (5.0, 50f64.sqrt()));
    }
}
