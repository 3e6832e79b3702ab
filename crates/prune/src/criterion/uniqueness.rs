//! Uniqueness and sensitivity of neurons: the two plain scores that GUM sets against each other.
//!
//! Santacroce et al., What Matters In The Structured Pruning of Generative Language Models? (2023), sec. 4: how much a neuron's activation
//! resembles the others', `u_j = Σ_{k≠j} |cos(h_j, h_k)| / N`, cosines over the tokens of all batches (the authors add 1e-6 to the product of
//! the norms, which makes neurons of small activations look unique; `quirk = "reference"` gives
//! that); and how much the loss depends on it, `|Σ g·w|` over its weights and the biases of its own rows.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use prunectl_kernels::autograd;
use prunectl_model::{Gates, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind};

use super::weight_gradients::variables;
use super::{Criterion, blocks};
use crate::calibrate::{Gram, Inputs};
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::{CALIBRATION, ON, QUIRK, criterion, needs_data};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::{count, group};

/// What the authors add to the product of two norms.
const EPSILON: f64 = 1e-6;

struct Uniqueness {
    /// Added to the product of two norms.
    epsilon: f64,
}
struct Sensitivity;

fn only_dense_neurons(method: &'static str, model: &Transformer, sites: &Sites) -> Result<()> {
    let hint = "it scores the neurons of dense MLPs: `m.layers[*].mlp.neurons`";
    if let Some(kind) = sites.kinds().into_iter().find(|k| *k != SiteKind::Neurons) {
        return Err(PruneError::Site { method, kind, hint });
    }
    let routed = |k: &Key| k.layer.and_then(|l| model.dims().get(l)).is_some_and(|d| d.experts > 0);
    match sites.units.keys().any(routed) {
        true => Err(PruneError::Site { method, kind: SiteKind::Neurons, hint }),
        false => Ok(()),
    }
}

/// Σ_{k≠j} |cos(h_j, h_k)| / N of each column, from their inner products; None where a column is all zeros.
fn resemblance(gram: &Tensor, epsilon: f64) -> Result<Vec<Option<f64>>> {
    let n = gram.dim(0)?;
    let values = gram.flatten_all()?.to_vec1::<f64>()?;
    let norms: Vec<f64> = values.iter().step_by(n + 1).map(|x| x.sqrt()).collect();
    let row = |(j, row): (usize, &[f64])| {
        let own = norms.get(j).copied().unwrap_or_default();
        let others = row.iter().zip(&norms).enumerate().filter(|(k, _)| *k != j);
        // What is all zeros resembles nothing.
        let sum: f64 = others.filter(|(_, (_, norm))| own * **norm != 0.0).map(|(_, (x, norm))| (x / (own * norm + epsilon)).abs()).sum();
        (own != 0.0).then_some(sum / n as f64)
    };
    Ok(values.chunks(n.max(1)).enumerate().map(row).collect())
}

impl Criterion for Uniqueness {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        const NAME: &str = "uniqueness";
        only_dense_neurons(NAME, model, sites)?;
        let gated = model.blueprint().mlp.gated;
        let mut out = Scores::default();
        // One block at a time: N² numbers of one layer are held.
        blocks::each(NAME, &mut model.clone(), sites, data, progress, |model, layer, own, stream| {
            let slot = format!("layers.{layer}.mlp.down.weight");
            let only: BTreeSet<String> = [slot.clone()].into();
            let stats: Inputs<Gram> = stream.inputs(model, layer, Inputs::new(gated, Some(layer)).only(&only))?;
            for key in own.units.keys() {
                let none = PruneError::NoData { method: NAME, batches: 0 };
                let gram = stats.get(&slot).map(Gram::whole).transpose()?.flatten().ok_or(none)?;
                // A neuron that is always zero resembles nothing, yet does nothing: it goes first.
                let scores = resemblance(&gram, self.epsilon)?.into_iter().map(|u| u.map_or(-1.0, |u| -u) as f32).collect();
                out.sites.insert(*key, scores);
            }
            Ok(())
        })?;
        out.checked(NAME)
    }
}

impl Criterion for Sensitivity {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        const NAME: &str = "sensitivity";
        only_dense_neurons(NAME, model, sites)?;
        let mut sums: BTreeMap<Key, Vec<f64>> = BTreeMap::new();
        let mut slots = BTreeSet::new();
        for (key, units) in &sites.units {
            sums.insert(*key, vec![0.0; count(model, *key)?]);
            for unit in units.iter().take(1) {
                slots.extend(group(model, *key, unit)?.into_iter().map(|s| s.slot));
            }
        }
        let (params, vars) = variables(model.params(), &slots)?;
        let mut network = model.clone();
        *network.params_mut() = params;
        let (mut examples, mut done) = (0usize, 0);
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            for row in 0..batch.size()?.0 {
                let loss = network.forward_loss(&batch.rows(&[row as u32])?, &Gates::default(), &mut ())?;
                if loss.count() == 0 {
                    continue;
                }
                examples += 1;
                let mut grads = autograd::backward(&(loss.sum()? / loss.count() as f64)?)?;
                let mut lines: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
                for (slot, var) in &vars {
                    let Some(g) = grads.take(var.as_tensor())? else { continue };
                    let product = g.mul(var.as_tensor())?.detach().to_dtype(DType::F64)?;
                    // Rows of what writes the neuron, columns of what reads it.
                    let line = match (product.rank(), slot.ends_with("down.weight")) {
                        (1, _) => product,
                        (_, true) => product.sum(0)?,
                        (_, false) => product.sum(1)?,
                    };
                    lines.insert(slot, line.to_vec1()?);
                }
                for (key, sums) in &mut sums {
                    let prefix = format!("layers.{}.mlp.", key.layer.unwrap_or_default());
                    for (unit, sum) in sums.iter_mut().enumerate() {
                        let own = lines.iter().filter(|(slot, _)| slot.starts_with(&prefix)).filter_map(|(_, line)| line.get(unit));
                        *sum += own.sum::<f64>().abs();
                    }
                }
            }
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        if examples == 0 {
            return Err(PruneError::NoData { method: NAME, batches: done as usize });
        }
        let mean = |sums: Vec<f64>| sums.into_iter().map(|s| (s / examples as f64) as f32).collect();
        Scores { sites: sums.into_iter().map(|(k, s)| (k, mean(s))).collect(), ..Scores::default() }.checked(NAME)
    }
}

fn build_uniqueness(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Uniqueness { epsilon: if args.word("quirk")? == "reference" { EPSILON } else { 0.0 } }))
}

fn build_sensitivity(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Sensitivity))
}

pub(super) const UNIQUENESS: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "uniqueness",
        "Santacroce et al., What Matters In The Structured Pruning of Generative Language Models? (2023), eq. 3",
        &[CALIBRATION, QUIRK],
        &[SiteKind::Neurons],
        "How little a neuron's activation resembles the others': the negative of `u_j = Σ_{k≠j} |cos(h_j, h_k)| / N`.\n\n\
         Mind: N² memory, of one layer at a time; cosines run over the tokens of all batches. A neuron that is always zero scores −1, the lowest. \
         The authors add 1e-6 to the product of two norms, which makes neurons of small activations look unique (`quirk = \"reference\"`).\n\n\
         ```prune\nscore m.layers[*].mlp.neurons using uniqueness(on = d.train.sample(64, seed = 0)) as s\n```",
    )),
    build: build_uniqueness,
};

pub(super) const SENSITIVITY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "sensitivity",
        "Santacroce et al., What Matters In The Structured Pruning of Generative Language Models? (2023), sec. 4",
        &[ON],
        &[SiteKind::Neurons],
        "Mean over examples of `|Σ g·w|` of a neuron's group, the biases of its own rows included: the sensitivity that GUM's authors set against uniqueness.\n\n\
         Mind: the authors take the absolute value once a batch; here it is once an example, so that the score does not depend on the batch.\n\n\
         ```prune\nscore m.layers[*].mlp.neurons using sensitivity(on = d.train.sample(64, seed = 0)) as s\n```",
    )),
    build: build_sensitivity,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::Device;
    use prunectl_model::{Batch, Point, Tap};

    use super::*;

    /// The first step's activations through the tap that the criterion uses; the authors sum, we take the mean.
    #[test]
    fn equals_the_authors_uniqueness() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods/11_gum/expected.safetensors");
        let expected = candle_core::safetensors::load(dir, &Device::Cpu).unwrap();
        let mut worst = 0f64;
        for layer in 0..2 {
            let first = |name: &str| expected[&format!("{layer}.{name}")].get(0).unwrap();
            let mut stats: Inputs<Gram> = Inputs::new(false, None);
            stats.begin(&Batch::new(Tensor::zeros((1, 10), DType::U32, &Device::Cpu).unwrap())).unwrap();
            stats.see(layer, Point::Intermediate, &first("activations").unsqueeze(0).unwrap()).unwrap();
            let gram = stats.get(&format!("layers.{layer}.mlp.down.weight")).unwrap().whole().unwrap().unwrap();
            let ours = resemblance(&gram, EPSILON).unwrap();
            for (a, b) in ours.iter().zip(first("uniqueness_score").to_vec1::<f32>().unwrap()) {
                let (a, b) = (a.unwrap() * 48.0, f64::from(b));
                assert!((a - b).abs() <= 2.2e-4 + 1e-4 * b, "{a} {b}");
                worst = worst.max((a / b - 1.0).abs());
            }
        }
        println!("golden 11_gum (uniqueness): worst relative error {worst:.1e}");
    }

    #[test]
    fn by_hand_with_a_dead_neuron() {
        // h₁ = (1, 0), h₂ = (1, 1), h₃ = 0: one cosine of √½.
        let gram = Tensor::new(&[[1f64, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let u = resemblance(&gram, 0.0).unwrap();
        assert!((u[0].unwrap() - 0.5f64.sqrt() / 3.0).abs() < 1e-6 && u[0] == u[1] && u[2].is_none());
    }
}
