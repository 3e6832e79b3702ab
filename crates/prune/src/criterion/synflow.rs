//! SynFlow: how much of the flow through the network passes a weight.
//!
//! Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow (2020), eq. 2 and algorithm 1:
//! `|w| · ∂R/∂|w|`, R the sum of the outputs of the network of absolute values (every parameter, norms and biases too), fed ones: here a
//! residual stream of ones in place of the embeddings. `prune` goes in rounds, the density falling exponentially, scored again in each.
//!
//! Everything runs in f64: flows grow with depth past what f32 holds. Scores above 1e30 are scaled down together, by a power of two.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use prunectl_kernels::autograd;
use prunectl_model::{Params, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};
use prunectl_recipe::plan::{Amount, Scope, Share};

use super::weight_gradients::variables;
use super::{Criterion, Formula, Layerwise};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::groups::{Fold, same, slots, sums};
use crate::network::Network;
use crate::row::{INNER_AND_WEIGHTS, criterion, param, within};
use crate::scores::Scores;
use crate::selection::{Request, Shape, select};
use crate::site::Sites;
use crate::surgery;

const NAME: &str = "synflow";
/// Larger scores are scaled down.
const LARGEST: f64 = 1e30;

struct SynFlow {
    rounds: u32,
}

/// `|w|·∂R/∂|w|` of the parameters `slots`, f64 on the host.
fn entries(network: &dyn Network, slots: &BTreeSet<String>) -> Result<BTreeMap<String, Tensor>> {
    let network = network.wide()?;
    let mut params = network.params().clone();
    for slot in network.params().slots() {
        params.set(slot, network.params().require(slot)?.abs()?);
    }
    let (params, vars) = variables(&params, slots)?;
    let network = network.with(params);
    let r = network.flow()?;
    let flow = r.to_scalar::<f64>()?;
    if !flow.is_finite() {
        if let Some(error) = not_finite(network.params())? {
            return Err(error);
        }
        return Err(PruneError::Invalid {
            what: "synaptic flow",
            found: format!("{flow}"),
            expected: "a finite sum of outputs in f64: check the weights, or use `snip`".into(),
        });
    }
    let mut grads = autograd::backward(&r)?;
    let mut out = BTreeMap::new();
    for (slot, var) in &vars {
        let w = var.as_tensor().detach();
        let score = match grads.take(var.as_tensor())? {
            Some(g) => g.mul(&w)?.abs()?.to_device(&Device::Cpu)?,
            None => w.zeros_like()?.to_device(&Device::Cpu)?,
        };
        out.insert(slot.clone(), score);
    }
    Ok(out)
}

/// The first parameter that is NaN or infinite.
fn not_finite(params: &Params) -> Result<Option<PruneError>> {
    for slot in params.slots() {
        let values = params.read(slot)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some((index, value)) = values.into_iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Ok(Some(PruneError::WeightNotFinite { method: NAME, slot: slot.to_owned(), index, value }));
        }
    }
    Ok(None)
}

/// Σ of it over the parameters `slots`, as large as it is.
pub(crate) fn total(network: &dyn Network, slots: &BTreeSet<String>) -> Result<f64> {
    let mut sum = 0.0;
    for t in entries(network, slots)?.values() {
        sum += t.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(sum)
}

fn flow(network: &dyn Network, sites: &Sites) -> Result<Scores> {
    let entries = entries(network, &slots(network, sites)?)?;
    let mut largest = 0.0f64;
    for score in entries.values() {
        largest = largest.max(score.flatten_all()?.max(0)?.to_scalar::<f64>()?);
    }
    let scale = if largest > LARGEST { (-(largest / LARGEST).log2().ceil()).exp2() } else { 1.0 };
    let of = |slot: &str| -> Result<Tensor> {
        let score = entries.get(slot).ok_or_else(|| PruneError::NoScores { key: slot.to_owned() })?;
        Ok((score * scale)?)
    };
    let mut out = Scores::default();
    for (key, sums) in sums(network, sites, Fold { entry: same, line: same }, &of)? {
        out.sites.insert(key, sums.iter().map(|g| g.sum as f32).collect());
    }
    for slot in &sites.weights {
        out.weights.insert(slot.clone(), of(slot)?.to_dtype(DType::F32)?);
    }
    out.checked(NAME)
}

/// The share that is gone after round `k` of `n`: densities fall by the same factor in each.
fn after_round(share: Share, k: u32, n: u32) -> Share {
    if k >= n { share } else { Share::from_fraction(1.0 - (1.0 - share.fraction()).powf(f64::from(k) / f64::from(n))) }
}

impl Criterion for SynFlow {
    fn score(&self, model: &Transformer, sites: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        flow(model, sites)
    }

    fn formula(&self) -> Option<&dyn Formula> {
        Some(self)
    }

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        (self.rounds > 1).then_some(self)
    }
}

impl Formula for SynFlow {
    fn scores(&self, network: &dyn Network, sites: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        flow(network, sites)
    }

    /// What all rounds leave, and the scores of the first; each masks what it removes before the next one scores.
    fn decide(
        &self,
        network: &dyn Network,
        shape: &Shape,
        request: &Request<'_>,
        _: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        let Amount::Share { share, each } = request.amount else {
            return Err(PruneError::Invalid {
                what: "amount of synflow in rounds",
                found: format!("{:?}", request.amount),
                expected: "a share such as `50%`, or `rounds = 1`".into(),
            });
        };
        let mut removed = request.removed.clone();
        let mut masked: Option<Box<dyn Network>> = None;
        let mut first = None;
        let mut decision = Decision::default();
        for round in 1..=self.rounds {
            progress.check()?;
            let current = masked.as_deref().unwrap_or(network);
            let scores = flow(current, request.sites)?;
            let amount = Amount::Share { share: after_round(*share, round, self.rounds), each: *each };
            let align = request.align.filter(|_| round == self.rounds);
            decision = select(&scores, &Request { amount: &amount, align, removed: &removed, ..*request }, shape)?;
            masked = Some(current.masked(&mut removed, &decision)?);
            first.get_or_insert(scores);
            progress.advance(u64::from(round), u64::from(self.rounds), NAME);
        }
        Ok((decision, first.unwrap_or_default()))
    }
}

impl Layerwise for SynFlow {
    /// Not block by block, but in rounds; the scores given are the first round's.
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
                what: "`rescore` of synflow",
                found: "a step".into(),
                expected: "no `rescore`: it scores again in each round; or `rounds = 1`".into(),
            });
        }
        let attention = |slot: &String| slot.contains(".attention.q.") || slot.contains(".attention.k.");
        if request.scope == Scope::Global && request.sites.weights.iter().any(attention) {
            progress.note(
                "synflow: ones in every position give query and key weights a flow of zero, so a global ranking removes them first; use `scope = layer` or `matrix`",
            );
        }
        let shape = Shape::of(model, request.sites)?;
        let (decision, first) = self.decide(model, &shape, &Request { removed, ..*request }, data, progress)?;
        surgery::mask(model, removed, &decision)?;
        Ok((decision, first))
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(SynFlow { rounds: args.count("rounds")?.clamp(1, 10_000) as u32 }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: criterion(
        "synflow",
        "Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow (2020), eq. 2",
        &[within(param("rounds", Ty::Count, "100", "Rounds of scoring, the density falling exponentially."), 1.0, 1e4)],
        INNER_AND_WEIGHTS,
        "Synaptic flow: `|w| · ∂R/∂|w|` with R the sum of the outputs of the network of absolute weights, fed embeddings of ones; no data. `score` is one round; `prune` goes in `rounds`, for shares.\n\n\
         Mind: it runs in f64. With inputs of ones every position carries the same value vector, so query and key weights score zero in a transformer: rank by layer.\n\n\
         ```prune\nprune m.layers[*].linears.weights by 50% using synflow(rounds = 20) { scope = layer }\n```",
    ),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::by_hand::{Product, numbers};

    /// |A| = [[1, 2], [3, 0]], |B| = (2, 1), fed ones: R = 2·(1 + 2) + 1·3 = 9. An entry of A is worth itself times what its row is
    /// multiplied by, one of B itself times its row's sum: 2·1, 2·2, 1·3, 0 and 2·3, 1·3; each layer adds up to R.
    #[test]
    fn by_hand() {
        let network = Product::of(&[&[&[1.0, -2.0], &[-3.0, 0.0]], &[&[2.0, -1.0]]]);
        let scores = flow(&network, &network.weights()).unwrap();
        assert_eq!(numbers(&scores.weights["0"]), [2.0, 4.0, 3.0, 0.0]);
        assert_eq!(numbers(&scores.weights["1"]), [6.0, 3.0]);
        assert_eq!(total(&network, &["0".to_owned()].into()).unwrap(), 9.0);
    }

    #[test]
    fn densities_fall_by_one_factor() {
        // 75% in two rounds: half stays of all, then half of that.
        let share = Share::from_fraction(0.75);
        assert!((after_round(share, 1, 2).fraction() - 0.5).abs() < 1e-9);
        assert_eq!(after_round(share, 2, 2), share);
    }
}
