//! SynFlow: how much of the flow through the network passes a weight.
//!
//! Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow (2020), eq. 2 and algorithm 1:
//! `|w| · ∂R/∂|w|`, R the sum of the outputs of the network of absolute values (every parameter, norms and biases too), fed ones: here a
//! residual stream of ones in place of the embeddings. `prune` goes in rounds, the density falling exponentially, scored again in each.
//!
//! Everything runs in f64: flows grow with depth past what f32 holds. Scores above 1e30 are scaled down together, by a power of two.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Params, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};
use prunectl_recipe::plan::{Amount, Scope, Share};

use super::weight_gradients::with_variables;
use super::{Criterion, Layerwise};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::groups::{Fold, same, slots, sums};
use crate::row::{INNER_AND_WEIGHTS, criterion, param, within};
use crate::scores::Scores;
use crate::selection::{Request, Shape, select};
use crate::site::Sites;
use crate::surgery;

const NAME: &str = "synflow";
/// Positions that are fed. Each carries the same, so more of them only scale the scores.
const TOKENS: usize = 8;
/// Larger scores are scaled down.
const LARGEST: f64 = 1e30;

struct SynFlow {
    rounds: u32,
}

/// `|w|·∂R/∂|w|` of the parameters `slots`, f64 on the host.
fn entries(model: &Transformer, slots: &BTreeSet<String>) -> Result<BTreeMap<String, Tensor>> {
    let mut model = model.to_dtype(DType::F64)?;
    let names: Vec<String> = model.params().slots().map(str::to_owned).collect();
    for slot in names {
        let positive = model.params().require(&slot)?.abs()?;
        model.params_mut().set(slot, positive);
    }
    let (model, vars) = with_variables(&model, slots)?;
    let (x, context) = model.embed(&Batch::new(Tensor::zeros((1, TOKENS), DType::U32, model.device())?))?;
    let mut x = x.ones_like()?.detach();
    for layer in 0..model.n_layers() {
        x = model.block(layer, &x, &context, None, &mut ())?;
    }
    let r = model.finish(&x, &context, &mut ())?.sum_all()?;
    let flow = r.to_scalar::<f64>()?;
    if !flow.is_finite() {
        if let Some(error) = not_finite(model.params())? {
            return Err(error);
        }
        return Err(PruneError::Invalid {
            what: "synaptic flow",
            found: format!("{flow}"),
            expected: "a finite sum of outputs in f64: check the weights, or use `snip`".into(),
        });
    }
    let grads = r.backward()?;
    let mut out = BTreeMap::new();
    for (slot, var) in &vars {
        let w = var.as_tensor().detach();
        let score = match grads.get(var.as_tensor()) {
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
pub(crate) fn total(model: &Transformer, slots: &BTreeSet<String>) -> Result<f64> {
    let mut sum = 0.0;
    for t in entries(model, slots)?.values() {
        sum += t.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(sum)
}

fn flow(model: &Transformer, sites: &Sites) -> Result<Scores> {
    let entries = entries(model, &slots(model, sites)?)?;
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
    for (key, sums) in sums(model, sites, Fold { entry: same, line: same }, &of)? {
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

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        (self.rounds > 1).then_some(self)
    }
}

impl Layerwise for SynFlow {
    /// Not block by block, but in rounds; the scores given are the first round's.
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        _: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        let refused = |what, found: String, expected: &str| Err(PruneError::Invalid { what, found, expected: expected.into() });
        let Amount::Share { share, each } = request.amount else {
            return refused("amount of synflow in rounds", format!("{:?}", request.amount), "a share such as `50%`, or `rounds = 1`");
        };
        if request.step.is_some() {
            return refused("`rescore` of synflow", "a step".into(), "no `rescore`: it scores again in each round; or `rounds = 1`");
        }
        let attention = |slot: &String| slot.contains(".attention.q.") || slot.contains(".attention.k.");
        if request.scope == Scope::Global && request.sites.weights.iter().any(attention) {
            progress.note(
                "synflow: ones in every position give query and key weights a flow of zero, so a global ranking removes them first; use `scope = layer` or `matrix`",
            );
        }
        let mut first = None;
        let mut decision = Decision::default();
        for round in 1..=self.rounds {
            progress.check()?;
            let scores = flow(model, request.sites)?;
            let amount = Amount::Share { share: after_round(*share, round, self.rounds), each: *each };
            let align = request.align.filter(|_| round == self.rounds);
            let step = Request { amount: &amount, align, removed, ..*request };
            decision = select(&scores, &step, &Shape::of(model, request.sites)?)?;
            surgery::mask(model, removed, &decision)?;
            first.get_or_insert(scores);
            progress.advance(u64::from(round), u64::from(self.rounds), NAME);
        }
        Ok((decision, first.unwrap_or_default()))
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

    #[test]
    fn densities_fall_by_one_factor() {
        // 75% in two rounds: half stays of all, then half of that.
        let share = Share::from_fraction(0.75);
        assert!((after_round(share, 1, 2).fraction() - 0.5).abs() < 1e-9);
        assert_eq!(after_round(share, 2, 2), share);
    }
}
