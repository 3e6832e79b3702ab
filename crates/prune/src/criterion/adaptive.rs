//! Adaptive activation-based pruning: a threshold on activation attention that grows until the target is missed.
//!
//! Zhao et al., Adaptive Activation-based Structured Pruning (2023), algorithm 2, from the paper's description. A unit's attention is the
//! mean of |a|^p over all tokens, divided by the largest of its layer: that is its score. `prune` runs the loop: T starts at 0; a round
//! removes every unit whose score is below T; where the target still holds the round is accepted and T grows by λ, else the last accepted
//! units come back, λ is halved and T starts again from the last accepted threshold plus λ. The amount of the `prune` is the most that may go.
//!
//! The paper retrains in each round; here the weights stay, so nothing but the units that come back has to be restored.

use std::collections::{BTreeMap, BTreeSet};

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};

use super::activation::Activation;
use super::{Criterion, Layerwise};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed, UnitMap};
use crate::error::{PruneError, Result};
use crate::eval::{Inputs, METRICS};
use crate::row::{CALIBRATION, INNER_SITES, criterion, needs_data, optional, param, within};
use crate::scores::Scores;
use crate::selection::{Request, Shape, chains, select};
use crate::site::{Sites, plural};
use crate::surgery;

const NAME: &str = "adaptive";
/// Accuracy that may go where the recipe names no bound.
const ACCURACY_LOST: f64 = 0.01;
/// Share of parameters or FLOPs that is aimed at where the recipe names none.
const SIZE_LEFT: f64 = 0.5;
/// Tokens of the sequence whose FLOPs count.
const LENGTH_TOKENS: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Accuracy,
    Params,
    Flops,
}

struct Adaptive {
    target: Target,
    step: f64,
    bound: f64,
    rounds: usize,
    p: f64,
}

/// One round of the loop.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Round {
    threshold: f64,
    accepted: bool,
}

/// The loop: `holds(T)` says whether the target holds with every unit below T gone. The rounds, and the last accepted threshold.
fn search(step: f64, rounds: usize, mut holds: impl FnMut(f64) -> Result<bool>) -> Result<(Vec<Round>, f64)> {
    let (mut threshold, mut step, mut last) = (0.0, step, 0.0);
    let mut out = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let accepted = holds(threshold)?;
        out.push(Round { threshold, accepted });
        if accepted {
            last = threshold;
        } else {
            step /= 2.0;
        }
        threshold = last + step;
    }
    Ok((out, last))
}

/// Divides each site by its largest value; a site of zeros stays zeros.
fn normalise(scores: &mut Scores) {
    for values in scores.sites.values_mut() {
        let most = values.iter().copied().fold(0f32, f32::max);
        if most > 0.0 {
            values.iter_mut().for_each(|v| *v /= most);
        }
    }
}

impl Adaptive {
    fn accuracy(&self, model: &Transformer, data: &mut dyn Batches, progress: &dyn Progress) -> Result<f64> {
        let metric = crate::build(METRICS, "accuracy", &Args::default())?;
        let mut inputs =
            Inputs { model, batches: Some(data), stream: None, questions: None, asked: None, teacher: None, batch: 1, progress };
        Ok(metric.measure(&mut inputs)?.value)
    }

    /// Parameters or FLOPs of the compacted model.
    fn size(&self, model: &Transformer) -> f64 {
        match self.target {
            Target::Flops => prunectl_model::cost::flops(model.blueprint(), model.dims(), LENGTH_TOKENS) as f64,
            _ => model.parameter_count() as f64,
        }
    }
}

impl Criterion for Adaptive {
    fn needs_data(&self) -> bool {
        true
    }

    fn passes(&self, _: usize) -> u64 {
        // Attention, the dense accuracy, and one measurement a round.
        if self.target == Target::Accuracy { 2 + self.rounds as u64 } else { 1 }
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        let mut scores = Activation { p: self.p }.score(model, sites, data, progress)?;
        normalise(&mut scores);
        scores.checked(NAME)
    }

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        Some(self)
    }
}

impl Layerwise for Adaptive {
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        if request.step.is_some() {
            return Err(PruneError::Invalid {
                what: "`rescore` of adaptive",
                found: "a step".into(),
                expected: "no `rescore`: it has rounds of its own".into(),
            });
        }
        let scores = self.score(model, request.sites, data, progress)?;
        let shape = Shape::of(model, request.sites)?;
        let before = removed.clone();
        let request = Request { removed: &before, ..*request };
        // The most that may go, by site kind.
        let most: BTreeMap<SiteKind, usize> = counts(&select(&scores, &request, &shape)?, &before, &shape);
        let chains = chains(&scores, &request, &shape)?;
        let decide = |threshold: f64| -> Decision {
            let mut out = Decision::default();
            for (key, chain) in &chains {
                let score = |u: &usize| scores.get(*key).and_then(|s| s.get(*u)).map_or(0.0, |s| f64::from(*s));
                let below = chain.iter().take_while(|units| units.iter().all(|u| score(u) < threshold));
                let gone: BTreeSet<usize> = below.flatten().copied().collect();
                out.sites.insert(*key, (0..shape.count(*key)).filter(|u| !gone.contains(u) && !before.has(*key, *u)).collect());
            }
            out
        };
        let dense = match self.target {
            Target::Accuracy => self.accuracy(model, data, progress)?,
            _ => self.size(model),
        };
        let mut reached: Option<f64> = None;
        let (rounds, last) = search(self.step, self.rounds, |threshold| {
            progress.check()?;
            let decision = decide(threshold);
            if counts(&decision, &before, &shape).iter().any(|(kind, n)| *n > most.get(kind).copied().unwrap_or(0)) {
                return Ok(false);
            }
            let (mut candidate, mut gone) = (model.clone(), before.clone());
            surgery::mask(&mut candidate, &mut gone, &decision)?;
            if self.target == Target::Accuracy {
                return Ok(self.accuracy(&candidate, data, progress)? >= dense - self.bound);
            }
            surgery::compact(&mut candidate, &mut gone, &mut UnitMap::default())?;
            let above = self.size(&candidate) > self.bound * dense;
            if !above {
                reached = Some(reached.map_or(threshold, |r| r.min(threshold)));
            }
            Ok(above)
        })?;
        // A size is to be reached, an accuracy to be kept: of the former the least threshold that reached it counts.
        let threshold = reached.unwrap_or(last);
        let decision = decide(threshold);
        let gone: Vec<String> = counts(&decision, &before, &shape).iter().map(|(kind, n)| format!("{n} {}", plural(*kind))).collect();
        let accepted = rounds.iter().filter(|r| r.accepted).count();
        progress.note(&format!(
            "{NAME}: threshold {threshold:.4} after {} rounds ({accepted} accepted): {} go",
            rounds.len(),
            gone.join(", ")
        ));
        if self.target != Target::Accuracy && reached.is_none() {
            progress.note(&format!("{NAME}: the target is not reached within {} rounds and the amount", rounds.len()));
        }
        surgery::mask(model, removed, &decision)?;
        Ok((decision, scores))
    }
}

/// Units that a decision removes now, by kind.
fn counts(decision: &Decision, before: &Removed, shape: &Shape) -> BTreeMap<SiteKind, usize> {
    let mut out = BTreeMap::new();
    for (key, kept) in &decision.sites {
        let gone = (0..shape.count(*key)).filter(|u| kept.binary_search(u).is_err() && !before.has(*key, *u)).count();
        *out.entry(key.kind).or_default() += gone;
    }
    out
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let target = match args.word("target")? {
        "params" => Target::Params,
        "flops" => Target::Flops,
        _ => Target::Accuracy,
    };
    let given = args.get("bound").and_then(prunectl_recipe::plan::Value::as_f64);
    let bound = given.unwrap_or(if target == Target::Accuracy { ACCURACY_LOST } else { SIZE_LEFT });
    let rounds = usize::try_from(args.count("rounds")?).unwrap_or(usize::MAX);
    Ok(Box::new(Adaptive { target, step: args.float("step")?, bound, rounds, p: args.float("p")? }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "adaptive",
        "Zhao et al., Adaptive Activation-based Structured Pruning (2023), algorithm 2",
        &[
            CALIBRATION,
            param("target", Ty::OneOf(&["accuracy", "params", "flops"]), "accuracy", "What the loop aims at."),
            within(param("step", Ty::Percent, "5%", "λ: how much the threshold grows in a round; halved after a miss."), 0.0, 100.0),
            optional(
                "bound",
                Ty::Percent,
                "Accuracy that may be lost (1% where left out), or the share of parameters or FLOPs to reach (50%).",
            ),
            within(param("rounds", Ty::Count, "20", "Rounds of the loop."), 1.0, 1e4),
            within(param("p", Ty::Float, "1", "The exponent of a unit's attention."), 0.1, 16.0),
        ],
        INNER_SITES,
        "Grows a threshold on activation attention until the target is missed, brings back the last accepted units and halves the step. \
         The amount of the `prune` is the most that may go.\n\n\
         Mind: written from the paper's description, without its retraining between rounds. Scores are divided by the largest of their layer; \
         `score` gives them alone.\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 60% using adaptive(on = d.train.sample(64, seed = 0), target = params, bound = 80%)\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::Device;

    use super::*;
    use crate::site::Key;

    /// The loop on recorded activations, the accuracy of so many removed units given by a table.
    #[test]
    fn the_loop_equals_the_formula() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods/12_adaptive_activation");
        let load = |file: &str| candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap();
        let (inputs, expected) = (load("inputs.safetensors"), load("expected.safetensors"));
        let mut scores = Scores::default();
        for layer in 0..3 {
            let mean = inputs[&format!("activations.{layer}")].abs().unwrap().mean(0).unwrap().to_vec1::<f32>().unwrap();
            scores.sites.insert(Key::of(SiteKind::Neurons, layer), mean);
        }
        normalise(&mut scores);
        let table = inputs["accuracy_table"].to_vec1::<f32>().unwrap();
        let below = |t: f64| scores.sites.values().flatten().filter(|s| f64::from(**s) < t).count();
        let mut pruned = Vec::new();
        let (rounds, last) = search(0.05, 20, |t| {
            pruned.push(below(t) as i64);
            Ok(table[below(t)] >= table[0] - 0.05)
        })
        .unwrap();
        for (round, theirs) in rounds.iter().zip(expected["threshold"].to_vec1::<f32>().unwrap()) {
            assert!((round.threshold - f64::from(theirs)).abs() <= 3.5e-6 + 1e-5 * f64::from(theirs), "{round:?} {theirs}");
        }
        let accepted: Vec<i64> = rounds.iter().map(|r| i64::from(r.accepted)).collect();
        assert_eq!(accepted, expected["accepted"].to_vec1::<i64>().unwrap());
        assert_eq!(pruned, expected["pruned"].to_vec1::<i64>().unwrap());
        let kept: Vec<u8> = scores.sites.values().flatten().map(|s| u8::from(f64::from(*s) >= last)).collect();
        assert_eq!(kept, expected["mask"].flatten_all().and_then(|m| m.to_vec1::<u8>()).unwrap());
    }

    /// Attention (2, 4, 1) is (½, 1, ¼) of the largest. The threshold grows by ¼ until one misses: then half of that from the last that held.
    #[test]
    fn by_hand() {
        let mut scores = Scores { sites: [(Key::of(SiteKind::Neurons, 0), vec![2.0, 4.0, 1.0])].into(), ..Scores::default() };
        normalise(&mut scores);
        assert_eq!(scores.sites.values().next().unwrap(), &[0.5, 1.0, 0.25]);
        let (rounds, last) = search(0.25, 5, |t| Ok(t <= 0.375)).unwrap();
        let of = |threshold, accepted| Round { threshold, accepted };
        assert_eq!(rounds, [of(0.0, true), of(0.25, true), of(0.5, false), of(0.375, true), of(0.5, false)]);
        assert_eq!(last, 0.375);
    }

    #[test]
    fn a_layer_without_activations_stays_zero() {
        let mut scores = Scores { sites: [(Key::of(SiteKind::Neurons, 0), vec![0.0, 0.0])].into(), ..Scores::default() };
        normalise(&mut scores);
        assert_eq!(scores.sites.values().next().unwrap(), &[0.0, 0.0]);
    }
}
