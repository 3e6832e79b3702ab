//! GraSP: weights whose removal keeps the gradient flowing go first.
//!
//! Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow (2020), eq. 8: removing a weight changes the squared
//! gradient norm by about `−w·Hg` (halved); the authors remove the **highest** of it, so our score is `w·Hg`, H and g over the weights that
//! are scored, the logits divided by a temperature (their 200).
//!
//! Hg is a central difference of gradients along g, in f64: `(∇L(w + εg) − ∇L(w − εg)) / 2ε`. Its error is about ε²; with
//! `ε·‖g‖ = 1e-4` it and f64's rounding stay below 1e-6 of Hg.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use prunectl_kernels::autograd;
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::weight_gradients::variables;
use super::{Criterion, Formula};
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::network::Network;
use crate::row::{ON, WEIGHTS, criterion, needs_data, param, within};
use crate::scores::Scores;
use crate::site::Sites;

const NAME: &str = "grasp";
/// How far the weights are moved along the gradient, as a length.
const STEP: f64 = 1e-4;

struct Grasp {
    temperature: f64,
}

type BySlot = BTreeMap<String, Tensor>;

impl Grasp {
    /// Gradients of the mean loss with the logits divided by the temperature; zeros where it does not depend on a weight.
    fn gradient(&self, network: &dyn Network, slots: &BTreeSet<String>, data: &mut dyn Batches, progress: &dyn Progress) -> Result<BySlot> {
        let (params, vars) = variables(network.params(), slots)?;
        let network = network.with(params);
        let mut sums = BySlot::new();
        let (mut tokens, mut done) = (0, 0);
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            done += 1;
            let loss = network.loss_of(&batch, &(network.outputs(&batch)? / self.temperature)?)?;
            if loss.count() == 0 {
                continue;
            }
            tokens += loss.count();
            let mut grads = autograd::backward(&loss.sum()?)?;
            for (slot, var) in &vars {
                let Some(g) = grads.take(var.as_tensor())? else { continue };
                let sum = match sums.get(slot) {
                    Some(sum) => (sum + g)?,
                    None => g,
                };
                sums.insert(slot.clone(), sum.detach());
            }
        }
        if tokens == 0 {
            return Err(PruneError::NoData { method: NAME, batches: done });
        }
        let mut out = BySlot::new();
        for (slot, var) in &vars {
            let mean = match sums.get(slot) {
                Some(sum) => (sum / tokens as f64)?,
                None => var.as_tensor().zeros_like()?.detach(),
            };
            out.insert(slot.clone(), mean);
        }
        Ok(out)
    }
}

/// The network with its weights moved by `by` times `along`.
fn moved(network: &dyn Network, along: &BySlot, by: f64) -> Result<Box<dyn Network>> {
    let mut params = network.params().clone();
    for (slot, g) in along {
        let w = (params.require(slot)? + (g * by)?)?;
        params.set(slot.clone(), w);
    }
    Ok(network.with(params))
}

impl Criterion for Grasp {
    fn needs_data(&self) -> bool {
        true
    }

    fn passes(&self, _: usize) -> u64 {
        3
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        self.scores(model, sites, data, progress)
    }

    fn formula(&self) -> Option<&dyn Formula> {
        Some(self)
    }
}

impl Formula for Grasp {
    fn scores(&self, network: &dyn Network, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| *k != prunectl_recipe::catalogue::SiteKind::Weights) {
            return Err(PruneError::Site { method: NAME, kind, hint: "it scores single weights: `m.layers[*].linears.weights`" });
        }
        let network = network.wide()?;
        let g = self.gradient(&*network, &sites.weights, data, progress)?;
        let mut squares = 0.0;
        for (slot, t) in &g {
            let values = t.flatten_all()?.to_vec1::<f64>()?;
            if let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
                return Err(PruneError::WeightNotFinite { method: NAME, slot: slot.clone(), index, value: *value as f32 });
            }
            squares += values.iter().map(|v| v * v).sum::<f64>();
        }
        // Without a gradient Hg is zero: all weights tie.
        let step = if squares > 0.0 { STEP / squares.sqrt() } else { 1.0 };
        let ahead = self.gradient(&*moved(&*network, &g, step)?, &sites.weights, data, progress)?;
        let behind = self.gradient(&*moved(&*network, &g, -step)?, &sites.weights, data, progress)?;
        let mut out = Scores::default();
        for (slot, ahead) in &ahead {
            let Some(behind) = behind.get(slot) else { continue };
            let hg = ((ahead - behind)? / (2.0 * step))?;
            let score = network.params().require(slot)?.mul(&hg)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            out.weights.insert(slot.clone(), score);
        }
        out.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Grasp { temperature: args.float("temperature")? }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "grasp",
        "Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow (2020), eq. 8",
        &[ON, within(param("temperature", Ty::Float, "200", "Logits are divided by it before the softmax (the authors' 200)."), 1e-6, 1e6)],
        WEIGHTS,
        "Gradient flow kept: `−w·Hg` names the weights whose removal reduces the gradient norm least; the method removes the **highest**, so our score is its negative, `w·Hg`.\n\n\
         Mind: Hg is a Hessian-vector product in f64, three passes over the data; with temperature 200 the softmax is nearly uniform and the ranking differs from temperature 1.\n\n\
         ```prune\nprune m.layers[*].linears.weights by 50% using grasp(on = d.train.sample(64, seed = 0)) { scope = global }\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use prunectl_model::{Batch, Labels};

    use super::*;
    use crate::criterion::by_hand::{Product, numbers, tensor};
    use crate::data::InMemory;

    /// L = (w·x/T − y)², w = (3, 1), x = (1, 2), y = 1. At T = 1: g = 2·(5 − 1)·x = (8, 16), H = 2·xxᵀ, Hg = 2·40·x = (80, 160),
    /// w·Hg = (240, 160). At T = 2: g = (5/2 − 1)·x = (1½, 3), H = ½·xxᵀ, Hg = ½·7½·x = (3¾, 7½), w·Hg = (11¼, 7½).
    #[test]
    fn by_hand() {
        let network = Product::of(&[&[&[3.0, 1.0]]]);
        let one = Batch { labels: Some(Labels::Values(tensor(&[&[1.0]]).squeeze(1).unwrap())), ..Batch::new(tensor(&[&[1.0, 2.0]])) };
        // Twice the same example: the mean over all data.
        let mut data = InMemory::new(vec![one.clone(), one]);
        for (temperature, expected) in [(1.0, [240.0, 160.0]), (2.0, [11.25, 7.5])] {
            let scores = Grasp { temperature }.scores(&network, &network.weights(), &mut data, &()).unwrap();
            assert!(numbers(&scores.weights["0"]).iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b), "{temperature}");
        }
    }
}
